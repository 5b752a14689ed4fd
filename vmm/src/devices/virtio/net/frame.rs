//! The layout of an Ethernet frame behind its virtio header, for the modules that check and answer
//! frames.

use super::HEADER_BYTES;

/// Length of an Ethernet header without tags, bytes.
pub const ETHERNET_BYTES: usize = 14;
/// The Ethernet type of ARP.
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Length of an IPv4 header without options, bytes.
pub const IPV4_BYTES: usize = 20;
/// Length of a TCP header without options, bytes.
pub const TCP_BYTES: usize = 20;

/// Size of an [`Answer`], bytes.
pub const ANSWER_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES + IPV4_BYTES + TCP_BYTES;
/// A frame for the guest, behind its virtio header.
pub type Answer = [u8; ANSWER_BYTES];

/// `N` bytes at `at`. None: there are fewer.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
