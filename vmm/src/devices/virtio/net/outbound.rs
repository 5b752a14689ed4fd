//! Checks the frames that a guest sends: only frames from the VM's own addresses may leave the
//! card. Pure functions on a frame that the guest cannot change any more.
//!
//! A clone starts with its parent's connections. Packets that its kernel sends on them have the
//! parent's address, and would disturb the parent's connections. So such a packet is dropped. If it
//! is TCP, the guest gets the answer of a host that does not know the connection: a reset (RFC
//! 9293, 3.5.2).
//!
//! The source MAC must be the card's, or a guest could attract frames for others. A frame with a
//! VLAN tag is dropped, whatever follows the tag: Linux removes a tag of VLAN 0 and handles the
//! packet as if it had none. IPv4 and ARP are checked. All other types pass unchanged.
//!
//! **An ARP request for a neighbour's address** is not broadcast. The address determines the
//! neighbour's MAC, so the request goes to that MAC only, and the neighbour's vmm answers it (the
//! module `inbound`). No other VM is disturbed. If the neighbour does not run, there is no answer:
//! programs get "no route to host" within seconds, as on any network. A request for the gateway,
//! which is always there, is answered here. Announcements of the VM's own address are dropped
//! because all others know it anyway, and so are probes for it.

use super::frame::{ANSWER_BYTES, Answer, ETHERNET_BYTES, ETHERTYPE_ARP, IPV4_BYTES, TCP_BYTES, array};
use super::neighbours::{Mac, Owner, is_group};
use super::{HEADER_BYTES, arp};
use std::net::Ipv4Addr;
use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

/// The decision on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent unchanged.
    Pass,
    /// It is sent to this address instead of broadcast.
    PassTo(Mac),
    /// It is dropped.
    Drop,
    /// It is dropped, and the guest gets this answer.
    Answer(Answer),
}

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Types that say that a tag follows, and the real type behind it: 802.1Q, 802.1ad, those in use
/// before it, 802.1ah.
const TAGS: [[u8; 2]; 6] =
    [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00], [0x92, 0x00], [0x93, 0x00], [0x88, 0xe7]];

const PROTOCOL_TCP: u8 = 6;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0x00];
const TIME_TO_LIVE: u8 = 64;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Checks a frame behind its virtio header. A frame of type IPv4 or ARP that cannot be parsed as
/// such is dropped.
pub fn judge(frame: &[u8], own: &Owner) -> Verdict {
    verdict(frame, own).unwrap_or(Verdict::Drop)
}

fn verdict(frame: &[u8], own: &Owner) -> Option<Verdict> {
    let ethernet: [u8; ETHERNET_BYTES] = array(frame, HEADER_BYTES)?;
    let payload = frame.get(HEADER_BYTES + ETHERNET_BYTES..)?;
    let ethertype = [ethernet[12], ethernet[13]];
    if ethernet[6..12] != own.mac || TAGS.contains(&ethertype) {
        return None;
    }
    let (from, judged_bytes) = match ethertype {
        ETHERTYPE_IPV4 => (Some(ipv4_source(payload)?), ETHERNET_BYTES + IPV4_BYTES),
        ETHERTYPE_ARP => (Some(arp::parse(payload)?.sender), ETHERNET_BYTES + arp::BYTES),
        _ => (None, ETHERNET_BYTES),
    };
    // The host writes the checksum where the guest says. It must not overwrite what was checked.
    if checksum_place(frame)?.is_some_and(|at| at < judged_bytes) {
        return Some(Verdict::Drop);
    }
    if from.is_none_or(|from| from == own.ip || from.is_unspecified()) {
        return match ethertype {
            ETHERTYPE_ARP => arp_verdict(array(frame, HEADER_BYTES)?, &arp::parse(payload)?, own),
            _ => Some(Verdict::Pass),
        };
    }
    let refused = if ethertype == ETHERTYPE_IPV4 { reset(&ethernet, payload) } else { None };
    Some(refused.map_or(Verdict::Drop, Verdict::Answer))
}

/// Of a packet that is from the VM's address, or from nobody's yet.
fn arp_verdict(to: Mac, arp: &arp::Arp, own: &Owner) -> Option<Verdict> {
    if arp.sender_mac != own.mac {
        return None;
    }
    let Some(neighbours) = &own.neighbours else { return Some(Verdict::Pass) };
    match arp.operation {
        arp::REQUEST if arp.target == own.ip => None,
        arp::REQUEST if arp.target == neighbours.gateway_ip => {
            Some(Verdict::Answer(arp::reply(arp, neighbours.gateway_mac)))
        }
        arp::REQUEST if is_group(to) => {
            Some(neighbours.mac_of(arp.target).map_or(Verdict::Pass, Verdict::PassTo))
        }
        arp::REPLY if is_group(to) => None,
        _ => Some(Verdict::Pass),
    }
}

/// Where in the Ethernet frame the host is to put a checksum, if it is.
fn checksum_place(frame: &[u8]) -> Option<Option<usize>> {
    let header: [u8; HEADER_BYTES] = array(frame, 0)?;
    let start = u16::from_le_bytes([header[6], header[7]]);
    let offset = u16::from_le_bytes([header[8], header[9]]);
    let is_asked = u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    Some(is_asked.then(|| usize::from(start) + usize::from(offset)))
}

fn ipv4_source(packet: &[u8]) -> Option<Ipv4Addr> {
    let ip: [u8; IPV4_BYTES] = array(packet, 0)?;
    let is_ipv4 = ip[0] >> 4 == 4 && ipv4_header_bytes(&ip) >= IPV4_BYTES;
    is_ipv4.then(|| Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]))
}

fn ipv4_header_bytes(ip: &[u8; IPV4_BYTES]) -> usize {
    4 * usize::from(ip[0] & 15)
}

/// The answer to a TCP segment; none to other packets, to later fragments, to resets, and to what
/// is cut off.
fn reset(ethernet: &[u8; ETHERNET_BYTES], packet: &[u8]) -> Option<Answer> {
    let ip: [u8; IPV4_BYTES] = array(packet, 0)?;
    let is_later_fragment = u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_OFFSET != 0;
    if ip[9] != PROTOCOL_TCP || is_later_fragment {
        return None;
    }
    let tcp: [u8; TCP_BYTES] = array(packet, ipv4_header_bytes(&ip))?;
    let tcp_header_bytes = 4 * usize::from(tcp[12] >> 4);
    let headers_bytes = ipv4_header_bytes(&ip) + tcp_header_bytes;
    // Of a segment longer than a frame (TSO) this is the whole length too.
    let data_bytes = usize::from(u16::from_be_bytes([ip[2], ip[3]])).checked_sub(headers_bytes)?;
    let flags = tcp[13];
    if tcp_header_bytes < TCP_BYTES || packet.len() < headers_bytes || flags & RST != 0 {
        return None;
    }
    let (sequence, acknowledged) = if flags & ACK == 0 {
        let length = data_bytes as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(length);
        ([0; 4], Some(next.to_be_bytes()))
    } else {
        ([tcp[8], tcp[9], tcp[10], tcp[11]], None)
    };
    let ip = ipv4_back(&ip);
    Some(join(&ethernet_back(ethernet), &ip, &tcp_back(&ip, &tcp, sequence, acknowledged)))
}

fn ethernet_back(ethernet: &[u8; ETHERNET_BYTES]) -> [u8; ETHERNET_BYTES] {
    let mut back = *ethernet;
    back[..6].copy_from_slice(&ethernet[6..12]);
    back[6..12].copy_from_slice(&ethernet[..6]);
    back
}

fn ipv4_back(ip: &[u8; IPV4_BYTES]) -> [u8; IPV4_BYTES] {
    let mut back = [0; IPV4_BYTES];
    back[0] = 0x45;
    back[3] = (IPV4_BYTES + TCP_BYTES) as u8;
    back[6..8].copy_from_slice(&DO_NOT_FRAGMENT);
    back[8] = TIME_TO_LIVE;
    back[9] = PROTOCOL_TCP;
    back[12..16].copy_from_slice(&ip[16..20]);
    back[16..20].copy_from_slice(&ip[12..16]);
    let sum = checksum(&[&back]);
    back[10..12].copy_from_slice(&sum);
    back
}

/// A reset in the packet that `ip` heads, to the sender of `tcp`.
fn tcp_back(
    ip: &[u8; IPV4_BYTES],
    tcp: &[u8; TCP_BYTES],
    sequence: [u8; 4],
    acknowledged: Option<[u8; 4]>,
) -> [u8; TCP_BYTES] {
    let mut back = [0; TCP_BYTES];
    back[..2].copy_from_slice(&tcp[2..4]);
    back[2..4].copy_from_slice(&tcp[..2]);
    back[4..8].copy_from_slice(&sequence);
    back[8..12].copy_from_slice(&acknowledged.unwrap_or_default());
    back[12] = (TCP_BYTES as u8 / 4) << 4;
    back[13] = if acknowledged.is_some() { RST | ACK } else { RST };
    let pseudo_header_end = [0, PROTOCOL_TCP, 0, TCP_BYTES as u8];
    let sum = checksum(&[&ip[12..20], &pseudo_header_end, &back]);
    back[16..18].copy_from_slice(&sum);
    back
}

/// The Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.as_chunks::<2>().0);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A frame with a complete checksum: its virtio header says nothing.
fn join(ethernet: &[u8; ETHERNET_BYTES], ip: &[u8; IPV4_BYTES], tcp: &[u8; TCP_BYTES]) -> Answer {
    let mut frame = [0; ANSWER_BYTES];
    let bytes = ethernet.iter().chain(ip).chain(tcp);
    frame.iter_mut().skip(HEADER_BYTES).zip(bytes).for_each(|(to, from)| *to = *from);
    frame
}

#[cfg(test)]
#[path = "outbound_test.rs"]
mod tests;
