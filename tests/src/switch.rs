//! Hosts in network namespaces that outlive their `vmmd`, on one Ethernet. Nothing of it is in the
//! machine's own network.

use crate::{
    daemon::{HostError, system},
    process::{self, Output},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

/// How long `ip` may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// An Ethernet address that no interface has.
const NOBODY: &str = "02:00:00:00:00:01";
/// The switches of this process.
static SWITCHES: AtomicU8 = AtomicU8::new(0);

/// Namespaces on one Ethernet; the first one has the switch. They are removed when this is dropped.
#[derive(Debug)]
pub struct Switch {
    spaces: Vec<String>,
}

impl Switch {
    /// For so many hosts. What they send to each other may have 1550 bytes, as VXLAN needs.
    ///
    /// # Errors
    /// The namespaces or the interfaces cannot be made.
    pub fn of(hosts: u8) -> Result<Self, HostError> {
        let number = SWITCHES.fetch_add(1, Ordering::Relaxed);
        let name = |host: u8| format!("patina-{}-{number}-{host}", std::process::id());
        let mut switch = Self { spaces: Vec::new() };
        for host in 0..hosts {
            run(&["ip", "netns", "add", &name(host)])?;
            switch.spaces.push(name(host));
            switch.call(host, &["ip", "link", "set", "lo", "up"])?;
        }
        switch.call(0, &["ip", "link", "add", "hosts", "mtu", "1550", "type", "bridge"])?;
        switch.call(0, &["ip", "link", "set", "hosts", "up"])?;
        for host in 1..hosts {
            let (port, space) = (format!("port{host}"), name(host));
            let peer = ["peer", "name", "hosts", "mtu", "1550", "netns", &space];
            let link = ["ip", "link", "add", &port, "mtu", "1550", "type", "veth"];
            switch.call(0, &[&link[..], &peer[..]].concat())?;
            switch.call(0, &["ip", "link", "set", &port, "master", "hosts", "up"])?;
            switch.call(host, &["ip", "link", "set", "hosts", "up"])?;
        }
        for host in 0..hosts {
            let address = format!("{}/24", switch.address(host));
            switch.call(host, &["ip", "addr", "add", &address, "dev", "hosts"])?;
        }
        Ok(switch)
    }

    /// From now on all that a host sends to another one is lost, and neither is told. What the
    /// other one sends still arrives.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn cut(&self, from: u8, to: u8) -> Result<(), HostError> {
        let to = self.address(to);
        let nobody = ["lladdr", NOBODY, "dev", "hosts", "nud", "permanent"];
        self.call(from, &[&["ip", "neigh", "replace", &to], &nobody[..]].concat()).map(drop)
    }

    /// From now on it arrives again.
    ///
    /// # Errors
    /// It was not cut, or the kernel does not let us.
    pub fn mend(&self, from: u8, to: u8) -> Result<(), HostError> {
        self.call(from, &["ip", "neigh", "del", &self.address(to), "dev", "hosts"]).map(drop)
    }

    /// Pulls a host's cable, or plugs it in again. Not the first host's: it has the switch.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn plug(&self, host: u8, is_in: bool) -> Result<(), HostError> {
        let state = if is_in { "up" } else { "down" };
        self.call(0, &["ip", "link", "set", &format!("port{host}"), state]).map(drop)
    }

    /// A host's address, in a network for documentation.
    #[must_use]
    pub fn address(&self, host: u8) -> String {
        format!("192.0.2.{}", host + 1)
    }

    /// What starts a program in a host's namespace.
    #[must_use]
    pub fn wrapper(&self, host: u8) -> [String; 2] {
        let space = self.spaces.get(usize::from(host)).map_or("", String::as_str);
        ["nsenter".to_owned(), format!("--net=/run/netns/{space}")]
    }

    /// Takes this thread into a host's namespace. Threads and processes that it starts there stay
    /// there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self, host: u8) -> Result<Entered, HostError> {
        let failed = system("enter a host's network namespace");
        let space = self.spaces.get(usize::from(host)).map_or("", String::as_str);
        let before = File::open("/proc/thread-self/ns/net").map_err(&failed)?;
        let entered = File::open(format!("/run/netns/{space}")).and_then(|space| enter(&space));
        entered.map_err(&failed)?;
        Ok(Entered { before, _not_send: PhantomData })
    }

    /// Runs a program in a host's namespace, which must work: what it printed.
    ///
    /// # Errors
    /// It does not end in time, or not with 0.
    pub fn call(&self, host: u8, words: &[&str]) -> Result<String, HostError> {
        let wrapper = self.wrapper(host);
        Ok(run(&[&[wrapper[0].as_str(), wrapper[1].as_str()], words].concat())?.text())
    }
}

/// A thread is in a host's namespace. It goes back when this is dropped, on that thread.
#[derive(Debug)]
pub struct Entered {
    before: File,
    /// Threads have namespaces of their own.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.before) {
            patina_daemon::say!("leave a host's network namespace: {error}");
        }
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Drop for Switch {
    fn drop(&mut self) {
        for space in &self.spaces {
            if let Err(error) = run(&["ip", "netns", "del", space]) {
                patina_daemon::say!("remove the network namespace {space}: {error}");
            }
        }
    }
}

fn run(words: &[&str]) -> Result<Output, HostError> {
    let failed = system("change the network of hosts");
    let Some((program, arguments)) = words.split_first() else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let output = process::run_even_now(Command::new(program).args(arguments), b"", DEADLINE)?;
    if output.code == 0 {
        return Ok(output);
    }
    Err(failed(io::Error::other(format!("{}: {}", words.join(" "), output.errors()))))
}
