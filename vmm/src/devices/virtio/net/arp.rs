//! Reads and writes ARP packets for Ethernet and IPv4 (RFC 826) in frames behind their virtio
//! headers.

use super::HEADER_BYTES;
use super::frame::{ANSWER_BYTES, Answer, ETHERNET_BYTES, ETHERTYPE_ARP, array};
use super::neighbours::Mac;
use std::net::Ipv4Addr;

/// Length of a packet.
pub const BYTES: usize = 28;
/// How a packet begins: hardware, protocol, and the sizes of their addresses.
const START: [u8; 6] = [0, 1, 8, 0, 6, 4];

pub const REQUEST: u16 = 1;
pub const REPLY: u16 = 2;

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    pub operation: u16,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target: Ipv4Addr,
}

/// Reads one; None: it is of another kind, or cut off.
pub fn parse(packet: &[u8]) -> Option<Arp> {
    let bytes: [u8; BYTES] = array(packet, 0)?;
    let ip = |at| array(packet, at).map(|ip: [u8; 4]| Ipv4Addr::from(ip));
    let operation = u16::from_be_bytes([bytes[6], bytes[7]]);
    let (sender, target) = (ip(14)?, ip(24)?);
    bytes.starts_with(&START).then_some(Arp { operation, sender_mac: array(packet, 8)?, sender, target })
}

/// The answer to a request: its target has this MAC. It is as long as any other answer, which
/// receivers take for padding.
pub fn reply(request: &Arp, mac: Mac) -> Answer {
    let mut frame = [0; ANSWER_BYTES];
    let operation = REPLY.to_be_bytes();
    let (sender, target) = (request.sender.octets(), request.target.octets());
    let parts: [&[u8]; 9] = [
        &request.sender_mac,
        &mac,
        &ETHERTYPE_ARP,
        &START,
        &operation,
        &mac,
        &target,
        &request.sender_mac,
        &sender,
    ];
    let bytes = parts.into_iter().flatten();
    frame.iter_mut().skip(HEADER_BYTES).zip(bytes).for_each(|(to, from)| *to = *from);
    frame
}

const _: () = assert!(HEADER_BYTES + ETHERNET_BYTES + BYTES <= ANSWER_BYTES);
