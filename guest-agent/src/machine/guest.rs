//! A real guest.

use super::connections::Connections;
use super::marks::Marks;
use super::rtnetlink::{Batch, RtNetlink};
use super::{ApplyError, Machine};
use crate::cgroup::{self, Cgroup};
use crate::identity::{parse_mac, parse_seed};
use crate::sys::netdev;
use crate::sys::random::{Generator, SEED_BYTES};
use crate::sys::vsock;
use patina_abi::link::Identity;
use patina_abi::{HOST_CID, LINK_PORT};
use rustix::time::{ClockId, Timespec};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The guest's only network card.
const INTERFACE: &str = "eth0";
/// A clock that is off by less is left alone: setting it wakes every timer of the guest.
pub const CLOCK_SLACK_NS: u64 = 1_000_000;

/// The guest that the program runs in. What a clone needs open is open before there is one.
#[derive(Debug)]
pub struct Guest {
    /// None: a kernel without cgroup2; gc-init has told.
    cgroup: Option<Cgroup>,
    marks: Marks,
    generator: Option<Generator>,
    network: Option<(RtNetlink, u32)>,
    /// For the next connection to the host.
    spare: Option<OwnedFd>,
    connections: Option<Connections>,
    /// The address of before, whose connections are not ours.
    stale: Option<Ipv4Addr>,
}

impl Guest {
    /// The guest that the program runs in.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cgroup: Cgroup::make(Path::new(cgroup::GUEST)).ok(),
            marks: Marks::open(),
            generator: None,
            network: None,
            spare: None,
            connections: Connections::open(),
            stale: None,
        }
    }

    fn reseed(&mut self, seed: [u8; SEED_BYTES]) -> io::Result<()> {
        let generator = match self.generator.take() {
            Some(generator) => generator,
            None => Generator::open()?,
        };
        self.generator.insert(generator).reseed(seed)
    }

    fn set_network(&mut self, identity: &Identity, previous: Option<&Identity>) -> io::Result<()> {
        let (netlink, index) = match self.network.take() {
            Some(network) => network,
            None => {
                let netlink = RtNetlink::open()?;
                let index = netlink.index(INTERFACE)?;
                (netlink, index)
            }
        };
        let mac = parse_mac(&identity.mac).filter(|_| previous.is_none_or(|p| p.mac != identity.mac));
        let with_mac = mac.map_or(Ok(()), |mac| netdev::set_mac(netlink.socket.as_fd(), INTERFACE, mac));
        self.network.insert((netlink, index)).0.send(network_changes(identity, previous, index))?;
        with_mac
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine for Guest {
    fn connect(&mut self) -> io::Result<OwnedFd> {
        let socket = match self.spare.take() {
            Some(socket) => socket,
            None => vsock::socket()?,
        };
        vsock::connect(socket, HOST_CID, LINK_PORT)
    }

    fn prepare_to_connect(&mut self) {
        if self.spare.is_none() {
            // Without one the next connection makes its own.
            self.spare = vsock::socket().ok();
        }
    }

    fn apply(&mut self, identity: &Identity, previous: Option<&Identity>) -> Vec<ApplyError> {
        let mut failed = Failures::default();
        // Before anything else: until then a clone draws the same numbers as its siblings.
        if let Some(seed) = parse_seed(&identity.seed) {
            failed.note("mix the host's randomness in", self.reseed(seed));
        }
        // Next, because the host's clock was read when it sent this.
        failed.note("set the clock", set_clock(identity.clock_ns));
        if previous.is_none_or(|p| p.hostname != identity.hostname) {
            let set = rustix::system::sethostname(identity.hostname.as_bytes());
            failed.note("set the host name", set.map_err(io::Error::from));
        }
        if previous.is_none_or(|p| network_of(p) != network_of(identity)) {
            failed.note("set eth0's address", self.set_network(identity, previous));
            self.stale = previous.map(|p| p.ip).filter(|ip| *ip != identity.ip);
        }
        failed.0
    }

    fn settle(&mut self, is_clone: bool) -> Vec<ApplyError> {
        let mut failed = Vec::new();
        if let Some((netlink, _)) = &mut self.network {
            failed.extend(netlink.failures().into_iter().map(|(step, source)| ApplyError { step, source }));
        }
        if is_clone {
            failed.extend(self.marks.renew());
            if let (Some(connections), Some(stale)) = (&mut self.connections, self.stale.take())
                && let Err(error) = connections.end_those_of(stale)
            {
                failed.push(ApplyError { step: "end the parent's connections", source: error.into() });
            }
        }
        failed
    }

    fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::directory)
    }

    fn hold(&mut self) -> io::Result<()> {
        let cgroup = self.cgroup.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(cgroup.freeze(true)?)
    }

    fn stopping(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::events)
    }

    fn all_held(&mut self) -> io::Result<bool> {
        let cgroup = self.cgroup.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(cgroup.is_frozen()?)
    }

    fn release(&mut self) -> io::Result<()> {
        match &self.cgroup {
            Some(cgroup) => Ok(cgroup.freeze(false)?),
            None => Ok(()),
        }
    }

    fn say(&mut self, text: &str) {
        crate::console::say(text);
    }
}

#[derive(Default)]
struct Failures(Vec<ApplyError>);

impl Failures {
    fn note(&mut self, step: &'static str, result: io::Result<()>) {
        if let Err(source) = result {
            self.0.push(ApplyError { step, source });
        }
    }
}

fn network_of(identity: &Identity) -> (&str, Ipv4Addr, u8, Ipv4Addr) {
    (&identity.mac, identity.ip, identity.prefix, identity.gateway)
}

/// What the kernel is to be told.
fn network_changes(identity: &Identity, previous: Option<&Identity>, index: u32) -> Batch {
    let Identity { ip, prefix, gateway, .. } = *identity;
    let mut batch = Batch::default();
    match previous {
        None => batch.link(index),
        // A clone: its family's network is its parent's. The last address of a card would take all routes along.
        Some(old) if (old.prefix, old.gateway) == (prefix, gateway) => {
            if old.ip != ip {
                batch.add_address(index, ip);
                batch.remove_address(index, old.ip);
            }
            return batch;
        }
        Some(old) => batch.remove_address(index, old.ip),
    }
    batch.add_address(index, ip);
    batch.routes(index, ip, prefix, gateway);
    batch
}

fn set_clock(clock_ns: u64) -> io::Result<()> {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let now_ns = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    if now_ns.abs_diff(i128::from(clock_ns)) <= u128::from(CLOCK_SLACK_NS) {
        return Ok(());
    }
    let seconds = i64::try_from(clock_ns / 1_000_000_000).map_err(io::Error::other)?;
    let nanoseconds = i64::try_from(clock_ns % 1_000_000_000).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}
