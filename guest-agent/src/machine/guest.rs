//! A real guest.

use super::{ApplyError, Machine};
use crate::identity::{parse_mac, parse_seed};
use crate::sys::netdev::NetConfig;
use crate::sys::random;
use crate::sys::vsock;
use patina_abi::link::Identity;
use rustix::time::{ClockId, Timespec};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// The guest's only network card.
const INTERFACE: &str = "eth0";
/// A clock that is off by less is left alone: setting it wakes every timer of the guest.
pub const CLOCK_SLACK_NS: u64 = 1_000_000;

/// The guest that the program runs in.
#[derive(Debug, Default)]
pub struct Guest;

impl Machine for Guest {
    fn connect(&mut self) -> io::Result<OwnedFd> {
        vsock::connect(patina_abi::HOST_CID, patina_abi::LINK_PORT)
    }

    fn apply(&mut self, identity: &Identity, previous: Option<&Identity>) -> Vec<ApplyError> {
        let mut failed = Failures::default();
        // Before anything else: until then a clone draws the same numbers as its siblings.
        if let Some(seed) = parse_seed(&identity.seed) {
            failed.note("mix the host's randomness in", random::reseed(seed));
        }
        // Next, because the host's clock was read when it sent this.
        failed.note("set the clock", set_clock(identity.clock_ns));
        if previous.is_none_or(|p| p.hostname != identity.hostname) {
            let set = rustix::system::sethostname(identity.hostname.as_bytes());
            failed.note("set the host name", set.map_err(io::Error::from));
        }
        if previous.is_none_or(|p| network_of(p) != network_of(identity)) {
            set_network(identity, previous, &mut failed);
        }
        failed.0
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

/// The netmask of a prefix length.
#[must_use]
pub fn netmask(prefix: u8) -> Ipv4Addr {
    let host_bits = u32::from(32_u8.saturating_sub(prefix));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
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

fn set_network(identity: &Identity, previous: Option<&Identity>, failed: &mut Failures) {
    let net = match NetConfig::open() {
        Ok(net) => net,
        Err(e) => return failed.note("open a socket for the network's settings", Err(e)),
    };
    failed.note("set the MAC address of eth0", set_mac(&net, &identity.mac));
    let mask = netmask(identity.prefix);
    failed.note("set the address of eth0", net.set_address(INTERFACE, identity.ip, mask));
    failed.note("take eth0 up", net.set_up(INTERFACE, true));
    if let Some(old) = previous.map(|p| p.gateway).filter(|old| *old != identity.gateway) {
        match net.delete_default_route(old) {
            // The kernel drops a route together with the address that it leaves by.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            other => failed.note("remove the old default route", other),
        }
    }
    match net.add_default_route(identity.gateway) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => failed.note("add the default route", other),
    }
}

fn set_mac(net: &NetConfig, text: &str) -> io::Result<()> {
    let wanted = parse_mac(text).ok_or(io::ErrorKind::InvalidInput)?;
    if net.mac(INTERFACE)? == wanted {
        return Ok(());
    }
    match net.set_mac(INTERFACE, wanted) {
        // virtio-net changes it live; other cards want to be down.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            net.set_up(INTERFACE, false)?;
            net.set_mac(INTERFACE, wanted)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(20), Ipv4Addr::new(255, 255, 240, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }
}
