//! Ends the TCP connections that a clone inherits from its parent: they belong to the parent, which
//! still has their address. Programs get ECONNABORTED at once, instead of waiting for a peer that
//! never receives anything from this machine.
//!
//! The kernel lists the connections and ends them one by one (sock_diag(7),
//! CONFIG_INET_DIAG_DESTROY). If the kernel cannot, a connection ends when its program gives up on
//! it.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// All states of TCP in which there is a peer: not closed, not listening, not only waiting for old
/// segments to die.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Header of a message: length, type, flags, sequence number, sender.
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_sockid`: two ports, two addresses of 16 bytes, interface, cookie.
const ID_BYTES: usize = 48;
/// Where it is in `struct inet_diag_msg`, and where the own address is in it.
const ID_AT: usize = 4;
const SOURCE_AT: usize = 4;
/// The kernel's lists come in pieces of up to so many bytes, or as many as one takes.
const PIECE_BYTES: usize = 8 * 1024;
/// More than the kernel's few lines of numbers.
const SOCKSTAT_MAX_BYTES: usize = 1024;

/// A socket for such questions.
#[derive(Debug)]
pub struct Connections {
    socket: OwnedFd,
    /// The families that the kernel has.
    families: Vec<u8>,
    /// How many sockets are in use; open before there are clones.
    sockstat: Option<OwnedFd>,
    /// Room for a piece, made before there are clones: in each of them it would be page faults.
    piece: Box<[u8]>,
}

impl Connections {
    /// Opens the socket; none where the kernel has no such.
    #[must_use]
    pub fn open() -> Option<Self> {
        let open = |family, kind, protocol| socket_with(family, kind, SocketFlags::CLOEXEC, protocol).ok();
        let socket = open(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG))?;
        let has_ipv6 = open(AddressFamily::INET6, SocketType::DGRAM, None).is_some();
        let families = [AF_INET].into_iter().chain(has_ipv6.then_some(AF_INET6)).collect();
        let sockstat =
            rustix::fs::open("/proc/net/sockstat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Some(Self { socket, families, sockstat: sockstat.ok(), piece: vec![0; PIECE_BYTES].into() })
    }

    /// Whether there may be any connection. To list them the kernel goes through all of a large
    /// table; this it has counted.
    fn may_be(&self) -> bool {
        let mut text = [0; SOCKSTAT_MAX_BYTES];
        let read = self.sockstat.as_ref().map(|file| rustix::io::pread(file, &mut text, 0));
        let Some(Ok(length)) = read else { return true };
        let text = text.get(..length).unwrap_or_default();
        !text.split(|b| *b == b'\n').any(|line| line.starts_with(b"TCP: inuse 0 "))
    }

    /// Ends all connections whose own address is this one; how many they were.
    ///
    /// # Errors
    /// The kernel cannot list or end them.
    pub fn end_those_of(&mut self, address: Ipv4Addr) -> Result<usize, Errno> {
        let mut ended = 0;
        if !self.may_be() {
            return Ok(ended);
        }
        for family in self.families.clone() {
            let ids = self.list(family, address)?;
            for id in &ids {
                self.say(SOCK_DESTROY, REQUEST, family, id)?;
            }
            ended += ids.len();
        }
        Ok(ended)
    }

    fn say(&self, kind: u16, flags: u16, family: u8, id: &[u8; ID_BYTES]) -> Result<(), Errno> {
        let length = u32::try_from(HEADER_BYTES + 8 + ID_BYTES).unwrap_or(u32::MAX);
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family, IPPROTO_TCP, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(id);
        send(&self.socket, &message, SendFlags::empty()).map(|_| ())
    }

    /// The ids of a family's connections from this address.
    fn list(&mut self, family: u8, address: Ipv4Addr) -> Result<Vec<[u8; ID_BYTES]>, Errno> {
        let (v4, v6) = (address.octets(), address.to_ipv6_mapped().octets());
        let source = if family == AF_INET { &v4[..] } else { &v6 };
        self.say(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, family, &[0; ID_BYTES])?;
        let mut found = Vec::new();
        loop {
            let (_, length) = recv(&self.socket, &mut self.piece[..], RecvFlags::empty())?;
            let mut rest = self.piece.get(..length).unwrap_or_default();
            while let Some((kind, body, next)) = message(rest) {
                rest = next;
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => match number(body) {
                        // The answer to one that was ended: it had ended by itself.
                        Some(0) | None => {}
                        Some(code) => return Err(Errno::from_raw_os_error(code.saturating_neg())),
                    },
                    SOCK_DIAG_BY_FAMILY => found.extend(id_from(body, source)),
                    _ => {}
                }
            }
        }
    }
}

/// The first message: its type, its body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn number(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The id in a listed connection, if that is from this address.
fn id_from(body: &[u8], source: &[u8]) -> Option<[u8; ID_BYTES]> {
    let id: [u8; ID_BYTES] = body.get(ID_AT..ID_AT + ID_BYTES)?.try_into().ok()?;
    (id.get(SOURCE_AT..SOURCE_AT + source.len())? == source).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn connections_from_an_address_end_and_others_stay() {
        let listener = TcpListener::bind("127.0.0.9:0").unwrap();
        let to = listener.local_addr().unwrap();
        let connect = |from: [u8; 4]| {
            use rustix::net::{SocketAddrV4, bind, connect, socket};
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            bind(&socket, &SocketAddrV4::new(from.into(), 0)).unwrap();
            connect(&socket, &to).unwrap();
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        };
        let (mut stale, mut other) = (connect([127, 0, 0, 77]), connect([127, 0, 0, 78]));
        let accepted = [listener.accept().unwrap(), listener.accept().unwrap()];
        let mut connections = Connections::open().unwrap();
        let address = Ipv4Addr::new(127, 0, 0, 77);
        assert!(connections.may_be());
        assert_eq!(connections.end_those_of(Ipv4Addr::new(127, 0, 0, 76)), Ok(0));
        assert_eq!(connections.end_those_of(address), Ok(1));
        assert_eq!(stale.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(connections.end_those_of(address), Ok(0));
        drop(accepted);
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "its peer has closed it, nobody else");
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let whole = [20u32.to_ne_bytes().as_slice(), &3u16.to_ne_bytes(), &[0; 14]].concat();
        assert_eq!(message(&whole), Some((3, &[0; 4][..], &[][..])));
        assert_eq!(message(&whole[..19]), None);
        assert_eq!(message(&[0; 3]), None);
        assert_eq!(message(&8u32.to_ne_bytes()), None);
        assert_eq!(id_from(&[0; 51], &[0; 4]), None);
    }
}
