//! The other VMs on a VM's network, and their MAC addresses.

use patina_daemon::lock;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

/// A MAC address.
pub type Mac = [u8; 6];

/// The addresses of a card's VM.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The card's address; the guest sends from no other.
    pub mac: Mac,
    /// The VM's address. The guest sends from no other.
    pub ip: Ipv4Addr,
    /// None: the network is not known, and ARP requests are sent as the guest makes them.
    pub neighbours: Option<Neighbours>,
}

impl Owner {
    /// Of a card whose VM has no addresses yet.
    pub fn nobody() -> Self {
        Self { mac: [0; 6], ip: Ipv4Addr::UNSPECIFIED, neighbours: None }
    }
}

/// Gives a card that does not run yet another owner, from any thread. The card takes it when it is
/// restored.
#[derive(Clone, Default)]
pub struct CardOwner(Arc<Mutex<Option<Owner>>>);

impl CardOwner {
    /// The card's VM has these addresses from its restore on.
    pub fn set(&self, owner: Owner) {
        *lock(&self.0) = Some(owner);
    }

    pub(super) fn take(&self) -> Option<Owner> {
        lock(&self.0).take()
    }
}

/// The VMs of a family have addresses in a row, and MACs in the same order.
#[derive(Debug, Clone)]
pub struct Neighbours {
    /// Of the first VM.
    pub first_ip: Ipv4Addr,
    /// Of the first VM.
    pub first_mac: Mac,
    /// How many may be there.
    pub vms: u32,
    /// The host's on that network.
    pub gateway_ip: Ipv4Addr,
    /// The host's on that network.
    pub gateway_mac: Mac,
}

impl Neighbours {
    /// The MAC of the VM that has this address, whether it runs or not.
    pub fn mac_of(&self, ip: Ipv4Addr) -> Option<Mac> {
        let number = u32::from(ip).checked_sub(self.first_ip.into()).filter(|number| *number < self.vms)?;
        let [a, b, c, d, e, f] = self.first_mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) + u64::from(number);
        let [_, _, mac @ ..] = mac.to_be_bytes();
        Some(mac)
    }
}

/// Whether a frame to this address is for several.
pub fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_follow_addresses() {
        let neighbours = Neighbours {
            first_ip: Ipv4Addr::new(100, 64, 48, 1),
            first_mac: [2, 0x70, 0, 3, 0, 0],
            vms: 4093,
            gateway_ip: Ipv4Addr::new(100, 64, 63, 254),
            gateway_mac: [6, 1, 2, 3, 0, 3],
        };
        let mac_of = |c, d| neighbours.mac_of(Ipv4Addr::new(100, 64, c, d));
        assert_eq!(mac_of(48, 1), Some([2, 0x70, 0, 3, 0, 0]));
        assert_eq!(mac_of(49, 3), Some([2, 0x70, 0, 3, 1, 2]));
        assert_eq!(mac_of(63, 253), Some([2, 0x70, 0, 3, 0x0f, 0xfc]));
        for (c, d) in [(48, 0), (63, 254), (63, 255), (64, 1), (47, 255)] {
            assert_eq!(mac_of(c, d), None, "{c}.{d}");
        }
    }
}
