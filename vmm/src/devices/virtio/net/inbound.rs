//! What of the frames from the network is for the guest: each that it must look at costs it time, which is much where its kernel is
//! emulated.
//!
//! A frame for another card is not (bridges send to all where they do not know whose an address is), nor is a request for another's
//! address. A request for the VM's own is answered here.

use super::HEADER_BYTES;
use super::arp;
use super::frame::{Answer, ETHERNET_BYTES, ETHERTYPE_ARP, array};
use super::neighbours::{Owner, is_group};

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest gets it.
    Deliver,
    /// Nobody does.
    Drop,
    /// The network gets this instead.
    Answer(Answer),
}

/// Judges a frame behind its virtio header.
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
