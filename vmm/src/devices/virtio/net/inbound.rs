//! Selects the frames from the network that the guest receives. Each frame costs the guest time,
//! and much of it if its kernel is emulated.
//!
//! Frames for another card are dropped: a bridge floods all ports with a frame whose address it
//! does not know. ARP requests for another address are dropped, too. A request for the VM's own
//! address is answered here.

use super::HEADER_BYTES;
use super::arp;
use super::frame::{Answer, ETHERNET_BYTES, ETHERTYPE_ARP, array};
use super::neighbours::{Owner, is_group};

/// The decision on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest gets it.
    Deliver,
    /// It is dropped.
    Drop,
    /// It is dropped, and this answer is sent to the network.
    Answer(Answer),
}

/// Checks a frame behind its virtio header.
pub fn judge(frame: &[u8], own: &Owner) -> Verdict {
    let Some(ethernet) = array::<ETHERNET_BYTES>(frame, HEADER_BYTES) else { return Verdict::Drop };
    let [to @ .., _, _, _, _, _, _, _, _] = ethernet;
    if to != own.mac && !is_group(to) {
        return Verdict::Drop;
    }
    let packet = frame.get(HEADER_BYTES + ETHERNET_BYTES..).unwrap_or_default();
    match arp::parse(packet).filter(|_| ethernet.ends_with(&ETHERTYPE_ARP)) {
        // Nobody else has that address.
        Some(arp) if arp.sender == own.ip => Verdict::Drop,
        Some(arp) if arp.operation == arp::REQUEST && arp.target == own.ip => {
            Verdict::Answer(arp::reply(&arp, own.mac))
        }
        Some(arp) if arp.operation == arp::REQUEST => Verdict::Drop,
        _ => Verdict::Deliver,
    }
}

#[cfg(test)]
#[path = "inbound_test.rs"]
mod tests;
