//! An interface's settings over rtnetlink. All of them are sent in one message; the kernel answers
//! only if one fails.
//!
//! The address has a prefix of 32 bits, and the routes of its network are set separately. To the
//! kernel an address with a network is six settings, each with its notification. A clone would have
//! to undo and redo all of them, at 50,000 instructions. With a prefix of 32 bits a clone changes
//! the address alone, and its routes stay.

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;

const REQUEST: u16 = 0x1;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const TYPE_BROADCAST: u8 = 3;

/// An address stands for itself; see above.
const ADDRESS_PREFIX: u8 = 32;

/// Header of a message, with its length, type, flags, sequence number and sender.
const HEADER_BYTES: usize = 16;
/// Longest answer that is understood: an error with the message that it is about.
const ANSWER_MAX_BYTES: usize = 1024;

/// Settings to be made together, each with a name for people.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    /// An error that means that there was nothing to do.
    harmless: Option<Errno>,
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A message's body about an address: family, prefix length, flags, scope, interface; the address.
fn about_address(index: u32, address: Ipv4Addr) -> [Vec<u8>; 2] {
    let header = [&[AF_INET, ADDRESS_PREFIX, 0, 0][..], &index.to_ne_bytes()].concat();
    [header, attribute(IFA_LOCAL, &address.octets())]
}

/// A message's body about a route: family, prefix lengths of destination and source, type of
/// service; table, protocol, scope, type; flags; where it leads and leaves.
fn about_route(
    index: u32,
    prefix: u8,
    [table, scope, kind]: [u8; 3],
    whither: (u16, Ipv4Addr),
) -> [Vec<u8>; 3] {
    let header = [AF_INET, prefix, 0, 0, table, PROTOCOL_BOOT, scope, kind, 0, 0, 0, 0].to_vec();
    [header, attribute(whither.0, &whither.1.octets()), attribute(RTA_OIF, &index.to_ne_bytes())]
}

impl Batch {
    fn add(&mut self, step: Step, kind: u16, flags: u16, body: &[Vec<u8>]) {
        let body = body.concat();
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
        let number = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&number.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&body);
        self.steps.push(step);
    }

    /// Takes the interface up.
    pub fn link(&mut self, index: u32) {
        // Family, padding, type; interface; flags and which of them change.
        let words = [0, index, IFF_UP, IFF_UP].map(u32::to_ne_bytes).concat();
        let step = Step { name: "take the interface up", harmless: None };
        self.add(step, RTM_NEWLINK, REQUEST, &[words]);
    }

    /// Removes an address.
    pub fn remove_address(&mut self, index: u32, address: Ipv4Addr) {
        let step = Step { name: "remove the old address", harmless: Some(Errno::ADDRNOTAVAIL) };
        self.add(step, RTM_DELADDR, REQUEST, &about_address(index, address));
    }

    /// Adds an address, without its network.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr) {
        let step = Step { name: "set the address", harmless: None };
        self.add(step, RTM_NEWADDR, REQUEST | CREATE | REPLACE, &about_address(index, address));
    }

    /// Sets the routes to the network of `prefix` bits that `address` is in, to all of it at once,
    /// and, through `gateway`, to everywhere else.
    pub fn routes(&mut self, index: u32, address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) {
        let flags = REQUEST | CREATE | REPLACE;
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let network = Ipv4Addr::from_bits(address.to_bits() & !host_bits);
        let everybody = Ipv4Addr::from_bits(address.to_bits() | host_bits);
        let step = Step { name: "set the route to the own network", harmless: None };
        let words = [TABLE_MAIN, SCOPE_LINK, TYPE_UNICAST];
        self.add(step, RTM_NEWROUTE, flags, &about_route(index, prefix, words, (RTA_DST, network)));
        let step = Step { name: "set the network's broadcast address", harmless: None };
        let words = [TABLE_LOCAL, SCOPE_LINK, TYPE_BROADCAST];
        self.add(step, RTM_NEWROUTE, flags, &about_route(index, 32, words, (RTA_DST, everybody)));
        let step = Step { name: "set the default route", harmless: None };
        let words = [TABLE_MAIN, SCOPE_UNIVERSE, TYPE_UNICAST];
        self.add(step, RTM_NEWROUTE, flags, &about_route(index, 0, words, (RTA_GATEWAY, gateway)));
    }
}

/// A socket for such messages.
#[derive(Debug)]
pub struct RtNetlink {
    /// As a socket it is good for ioctls too.
    pub socket: OwnedFd,
    /// Those of the batch that was sent last.
    steps: Vec<Step>,
}

impl RtNetlink {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self { socket, steps: Vec::new() })
    }

    /// The number of an interface.
    ///
    /// # Errors
    /// ENODEV without such an interface.
    pub fn index(&self, interface: &str) -> io::Result<u32> {
        Ok(name_to_index(&self.socket, interface)?)
    }

    /// Has the kernel make all settings. What it refuses is told by [`Self::failures`].
    ///
    /// # Errors
    /// It did not take the message.
    pub fn send(&mut self, batch: Batch) -> io::Result<()> {
        self.steps = batch.steps;
        let sent = send(&self.socket, &batch.bytes, SendFlags::empty())?;
        if sent == batch.bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// What of the last batch the kernel has refused.
    pub fn failures(&mut self) -> Vec<(&'static str, io::Error)> {
        let mut failures = Vec::new();
        let mut answer = [0; ANSWER_MAX_BYTES];
        // Answers are there when the send has returned; the one beyond the last is EAGAIN.
        for _ in 0..self.steps.len() {
            match recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    failures.extend(answer.get(..length).and_then(|bytes| self.failure(bytes)));
                }
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    failures.push(("hear what the kernel says of the network's settings", error.into()));
                    break;
                }
            }
        }
        self.steps.clear();
        failures
    }

    /// The step and the error of an answer.
    fn failure(&self, answer: &[u8]) -> Option<(&'static str, io::Error)> {
        let word = |at: usize| answer.get(at..at + 4)?.first_chunk().copied();
        let kind = u16::from_ne_bytes(*answer.get(4..6)?.first_chunk()?);
        let (number, code) = (u32::from_ne_bytes(word(8)?), i32::from_ne_bytes(word(HEADER_BYTES)?));
        let step = self.steps.get(usize::try_from(number).ok()?)?;
        if kind != NLMSG_ERROR || code >= 0 || step.harmless.is_some_and(|e| e.raw_os_error() == -code) {
            return None;
        }
        Some((step.name, io::Error::from_raw_os_error(-code)))
    }
}

#[cfg(test)]
#[path = "rtnetlink_test.rs"]
mod tests;
