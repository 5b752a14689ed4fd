//! A network link between the scheduler and a host in a network namespace of its own, which can be
//! cut: packets are lost, and nobody is told.

use crate::{
    daemon::{HostError, system},
    leftovers::interface_exists,
    process,
};
use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

/// How long `ip` may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The links of this process.
static LINKS: AtomicU8 = AtomicU8::new(0);

/// A pair of interfaces. Ours is removed when this is dropped, and theirs with it.
#[derive(Debug)]
pub struct Link {
    ours: String,
    theirs: String,
    /// The addresses of both: of a network for measurements between devices (RFC 2544).
    network: [u8; 3],
    port: u16,
}

impl Link {
    /// A link to whoever listens on a Unix socket: to the host it is a TCP address.
    ///
    /// # Errors
    /// The interfaces cannot be made.
    pub fn to(socket: &Path) -> Result<Self, HostError> {
        let number = LINKS.fetch_add(1, Ordering::Relaxed);
        let [low, high, ..] = std::process::id().to_le_bytes();
        let name = |side: char| format!("link{side}{:x}.{number}", std::process::id());
        let mut link = Self {
            ours: name('a'),
            theirs: name('b'),
            network: [low, high, number.wrapping_mul(4)],
            port: 0,
        };
        ip(&["link", "add", &link.ours, "type", "veth", "peer", "name", &link.theirs])?;
        ip(&["addr", "add", &format!("{}/30", link.ip(1)), "dev", &link.ours])?;
        link.mend()?;
        link.port = relay(&link.ip(1), socket.to_owned()).map_err(system("listen on a link"))?;
        Ok(link)
    }

    /// The address, for the host.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}:{}", self.ip(1), self.port)
    }

    /// Gives the host its end: a process of it, in its namespace.
    ///
    /// # Errors
    /// The interface cannot be moved.
    pub fn plug(&self, pid: u32) -> Result<(), HostError> {
        let pid = pid.to_string();
        ip(&["link", "set", &self.theirs, "netns", &pid])?;
        let there =
            |arguments: &[&str]| run(Command::new("nsenter").args(["-t", &pid, "-n", "ip"]), arguments);
        there(&["addr", "add", &format!("{}/30", self.ip(2)), "dev", &self.theirs])?;
        there(&["link", "set", &self.theirs, "up"])
    }

    /// Cuts it.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn cut(&self) -> Result<(), HostError> {
        ip(&["link", "set", &self.ours, "down"])
    }

    /// Makes it whole again.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn mend(&self) -> Result<(), HostError> {
        ip(&["link", "set", &self.ours, "up"])
    }

    fn ip(&self, side: u8) -> String {
        let [low, high, host] = self.network;
        format!("198.{}.{low}.{}", 18 + (high & 1), host.wrapping_add(side))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It goes with the other end, some time after the last process of the host's namespace:
        // maybe now.
        if let Err(error) = ip(&["link", "del", &self.ours])
            && interface_exists(&self.ours)
        {
            patina_daemon::say!("remove {}: {error}", self.ours);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), HostError> {
    run(&mut Command::new("ip"), arguments)
}

fn run(command: &mut Command, arguments: &[&str]) -> Result<(), HostError> {
    let output = process::run(command.args(arguments), b"", DEADLINE)?;
    if output.code == 0 {
        return Ok(());
    }
    let source = io::Error::other(format!("ip {}: {}", arguments.join(" "), output.errors()));
    Err(HostError::System { what: "change a link", source })
}

/// Connects whoever comes to the socket, until this process ends. Returns the port.
fn relay(ip: &str, socket: PathBuf) -> io::Result<u16> {
    let listener = TcpListener::bind((ip, 0))?;
    let port = listener.local_addr()?.port();
    thread::Builder::new().name("link".into()).spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Whoever comes while nobody listens there sees its connection end.
            if let Ok(other) = UnixStream::connect(&socket) {
                join(stream, other);
            }
        }
    })?;
    Ok(port)
}

/// Copies both ways until either side ends.
fn join(stream: TcpStream, other: UnixStream) {
    let both = Arc::new((stream, other));
    let end = |both: &(TcpStream, UnixStream)| {
        let why = "the other way has ended it";
        patina_control::best_effort(both.0.shutdown(Shutdown::Both), why);
        patina_control::best_effort(both.1.shutdown(Shutdown::Both), why);
    };
    let why = "a side that breaks has ended";
    let there = Arc::clone(&both);
    thread::spawn(move || {
        patina_control::best_effort(io::copy(&mut &there.0, &mut &there.1), why);
        end(&there);
    });
    thread::spawn(move || {
        patina_control::best_effort(io::copy(&mut &both.1, &mut &both.0), why);
        end(&both);
    });
}
