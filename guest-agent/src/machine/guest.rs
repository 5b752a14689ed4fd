//! The machine of a real guest.

use super::clock::{self, ClockWatch};
use super::connections::Connections;
use super::marks::Marks;
use super::rtnetlink::{Batch, RtNetlink};
use super::{ApplyError, Machine, vmcoreinfo};
use crate::cgroup::{self, Cgroup, HookCgroup};
use crate::identity::{parse_mac, parse_seed};
use crate::sys::netdev;
use crate::sys::random::{Generator, SEED_BYTES};
use crate::sys::vsock;
use patina_abi::link::{Identity, Vmcoreinfo};
use patina_abi::{AGENT_PORTS, HOST_CID, LINK_PORT};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::netdevice::index_to_name_inlined;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The guest's only network card.
const INTERFACE: &str = "eth0";

/// How many ports are tried for a connection to the host.
const PORT_TRIES: u32 = 4;

/// The guest that the program runs in. What a clone needs open is open before there is one.
#[derive(Debug)]
pub struct Guest {
    /// None: a kernel without cgroup2; gc-init has told.
    cgroup: Option<Cgroup>,
    hook_cgroup: HookCgroup,
    /// None: a kernel without timers that tell; a clock that is set stays so.
    clock: Option<ClockWatch>,
    /// It was set here, of which the watch need not tell.
    clock_set: bool,
    marks: Marks,
    generator: Option<Generator>,
    card: Option<Card>,
    /// For the next connection to the host.
    spare: Option<OwnedFd>,
    /// How many ports were tried for such connections.
    sockets: u32,
    connections: Option<Connections>,
    /// The address of before, whose connections are not ours.
    stale: Option<Ipv4Addr>,
    /// The others are held, or about to be.
    holds: bool,
    /// The marks are the parent's still.
    renews_marks: bool,
}

impl Guest {
    /// The guest that the program runs in.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cgroup: Cgroup::make(Path::new(cgroup::GUEST)).ok(),
            hook_cgroup: HookCgroup::default(),
            clock: ClockWatch::open().ok(),
            clock_set: false,
            marks: Marks::open(),
            generator: None,
            card: None,
            spare: None,
            sockets: 0,
            connections: Connections::open(),
            stale: None,
            holds: false,
            renews_marks: false,
        }
    }

    /// A socket for a connection to the host, from a port by which the host knows the agent.
    fn socket(&mut self) -> io::Result<OwnedFd> {
        let socket = vsock::socket()?;
        // The last one may be in use still. A port of the kernel's choice serves as well, but for
        // what the host believes only of an agent.
        for _ in 0..PORT_TRIES {
            let port = AGENT_PORTS.start + self.sockets % (AGENT_PORTS.end - AGENT_PORTS.start);
            self.sockets = self.sockets.wrapping_add(1);
            if vsock::bind(&socket, port).is_ok() {
                break;
            }
        }
        Ok(socket)
    }

    fn reseed(&mut self, seed: [u8; SEED_BYTES]) -> io::Result<()> {
        let generator = match self.generator.take() {
            Some(generator) => generator,
            None => Generator::open()?,
        };
        self.generator.insert(generator).reseed(seed)
    }

    fn turn_clock(&mut self, clock_ns: u64) -> io::Result<()> {
        self.clock_set |= clock::set(clock_ns)?;
        Ok(())
    }

    /// The watch has seen that the clock was set here, and would wake us.
    fn forget_own_turn(&mut self) {
        if std::mem::take(&mut self.clock_set) {
            self.clock_was_set();
        }
    }

    fn set_network(
        &mut self,
        identity: &Identity,
        previous: Option<&Identity>,
        failed: &mut Failures,
    ) -> io::Result<()> {
        let card = match self.card.take() {
            Some(card) => card,
            None => Card::open(INTERFACE)?,
        };
        let card = self.card.insert(card);
        let mac = parse_mac(&identity.mac).filter(|_| previous.is_none_or(|p| p.mac != identity.mac));
        failed.note("set the MAC address", mac.map_or(Ok(()), |mac| card.set_mac(mac)));
        card.netlink.send(network_changes(identity, previous, card.index))
    }

    /// A clone gets marks of its own: now if others run, and later if nobody could see them
    /// meanwhile.
    fn expect_marks(&mut self, is_clone: bool, failed: &mut Failures) {
        self.renews_marks |= is_clone;
        if !self.holds {
            self.renew_marks(failed);
        }
    }

    /// Gives a clone marks of its own, once.
    fn renew_marks(&mut self, failed: &mut Failures) {
        if std::mem::take(&mut self.renews_marks) {
            failed.0.extend(self.marks.renew());
        }
    }

    /// Notes what the kernel has refused of the network's settings.
    fn hear_of_network(&mut self, failed: &mut Failures) {
        let refused = self.card.iter_mut().flat_map(|card| card.netlink.failures());
        failed.0.extend(refused.map(|(step, source)| ApplyError { step, is_vital: true, source }));
    }
}

/// The network card, whatever the guest calls it by now.
#[derive(Debug)]
struct Card {
    netlink: RtNetlink,
    index: u32,
    /// As it was called when it was looked up last.
    name: String,
}

impl Card {
    fn open(name: &str) -> io::Result<Self> {
        let netlink = RtNetlink::open()?;
        let index = netlink.index(name)?;
        Ok(Self { netlink, index, name: name.to_owned() })
    }

    fn look_up_name(&mut self) -> io::Result<()> {
        let name = index_to_name_inlined(&self.netlink.socket, self.index)?;
        if self.name != name.as_str() {
            name.as_str().clone_into(&mut self.name);
        }
        Ok(())
    }

    fn set_mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        match netdev::set_mac(self.netlink.socket.as_fd(), &self.name, mac) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                self.look_up_name()?;
                netdev::set_mac(self.netlink.socket.as_fd(), &self.name, mac)
            }
            result => result,
        }
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
            None => self.socket()?,
        };
        vsock::connect(socket, HOST_CID, LINK_PORT)
    }

    fn vmcoreinfo(&self) -> Option<Vmcoreinfo> {
        vmcoreinfo::read()
    }

    fn prepare_to_connect(&mut self) {
        if self.spare.is_none() {
            // Without one the next connection makes its own.
            self.spare = self.socket().ok();
        }
        // What it is called by now is asked for again where this has failed.
        self.card.as_mut().map(Card::look_up_name);
    }

    fn keep_resident(&self) -> io::Result<()> {
        Ok(mlockall(MlockAllFlags::CURRENT)?)
    }

    fn apply(&mut self, identity: &Identity, previous: Option<&Identity>) -> Vec<ApplyError> {
        let mut failed = Failures::default();
        // Before anything else: until then a clone draws the same numbers as its siblings.
        let seed = parse_seed(&identity.seed).ok_or_else(|| io::Error::other("the host has sent none"));
        failed.note("mix the host's randomness in", seed.and_then(|seed| self.reseed(seed)));
        // Next, because the host's clock was read when it sent this.
        failed.note_slight("set the clock", self.turn_clock(identity.clock_ns));
        if previous.is_none_or(|p| p.hostname != identity.hostname) {
            let set = rustix::system::sethostname(identity.hostname.as_bytes());
            failed.note_slight("set the host name", set.map_err(io::Error::from));
        }
        let is_clone = previous.is_some_and(|p| !p.is_same_vm(identity));
        // Also if the new address is the old one, as it may be in another family: the connections
        // are the other VM's all the same.
        self.stale = previous.filter(|_| is_clone).map(|p| p.ip);
        if previous.is_none_or(|p| is_another_network(p, identity)) {
            let sent = self.set_network(identity, previous, &mut failed);
            failed.note("set eth0's address", sent);
            if is_clone {
                self.hear_of_network(&mut failed);
            }
        }
        self.expect_marks(is_clone, &mut failed);
        failed.0
    }

    fn settle(&mut self, is_clone: bool) -> Vec<ApplyError> {
        let mut failed = Failures::default();
        self.forget_own_turn();
        self.hear_of_network(&mut failed);
        self.renew_marks(&mut failed);
        if let (Some(connections), Some(stale)) =
            (&mut self.connections, self.stale.take().filter(|_| is_clone))
        {
            let ended = connections.end_those_of(stale);
            failed.note_slight("end the parent's connections", ended.map(drop).map_err(io::Error::from));
        }
        failed.0
    }

    fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::directory)
    }

    fn clock_events(&self) -> Option<BorrowedFd<'_>> {
        self.clock.as_ref().map(ClockWatch::fd)
    }

    fn clock_was_set(&mut self) -> bool {
        self.clock.as_ref().is_some_and(ClockWatch::was_set)
    }

    fn set_clock(&mut self, clock_ns: u64) -> io::Result<()> {
        self.turn_clock(clock_ns)?;
        self.forget_own_turn();
        Ok(())
    }

    fn hook_cgroup(&mut self) -> Option<BorrowedFd<'_>> {
        // Without one the hook is told from others by who started whom.
        self.hook_cgroup.fresh(self.cgroup.as_ref()?).ok()
    }

    fn hold(&mut self) -> io::Result<()> {
        let cgroup = self.cgroup.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        cgroup.freeze(true)?;
        self.holds = true;
        Ok(())
    }

    fn stopping(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::events)
    }

    fn all_held(&mut self) -> io::Result<bool> {
        let cgroup = self.cgroup.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(cgroup.is_frozen()?)
    }

    fn release(&mut self) -> io::Result<()> {
        self.holds = false;
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
        self.0.extend(result.err().map(|source| ApplyError { step, is_vital: true, source }));
    }

    /// One that a clone can do without.
    fn note_slight(&mut self, step: &'static str, result: io::Result<()>) {
        self.0.extend(result.err().map(|source| ApplyError { step, is_vital: false, source }));
    }
}

/// Whether something about the network is to be changed. The network of another family is another
/// one even if it has the same addresses: other machines may have them, with other MACs.
fn is_another_network(old: &Identity, new: &Identity) -> bool {
    let network = |identity: &Identity| {
        let Identity { ip, prefix, gateway, .. } = *identity;
        (ip, prefix, gateway)
    };
    old.family != new.family || old.mac != new.mac || network(old) != network(new)
}

/// What the kernel is to be told.
fn network_changes(identity: &Identity, previous: Option<&Identity>, index: u32) -> Batch {
    let Identity { ip, prefix, gateway, .. } = *identity;
    let mut batch = Batch::default();
    match previous {
        None => batch.link(index),
        // A clone: its family's network is its parent's. The last address of a card would take all
        // routes along.
        Some(old) if old.family == identity.family && (old.prefix, old.gateway) == (prefix, gateway) => {
            if old.ip != ip {
                batch.add_address(index, ip);
                batch.remove_address(index, old.ip);
            }
            return batch;
        }
        // With the card's last address the kernel forgets all routes, and all MACs of other
        // machines.
        Some(old) => batch.remove_address(index, old.ip),
    }
    batch.add_address(index, ip);
    batch.routes(index, ip, prefix, gateway);
    batch
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod tests;
