//! Numbers of families: each has a /20 out of the host's range, a bridge and a tap per VM.
//!
//! ```text
//!  100.64.0.0/10, family 3:   100.64.48.0/20   bridge pt3
//!    vmid 0 (master)          100.64.48.1      tap pt3.0   02:70:00:03:00:00
//!    vmid 1                   100.64.48.2      tap pt3.1   02:70:00:03:00:01
//!    the host                 100.64.63.254
//!    other hosts              VNI 0x64403      device pt3.x
//! ```
//! A family has the same network on every host that it has VMs on. `.254` is each host's own.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Prefix length of a family's network.
pub const FAMILY_PREFIX: u8 = 20;
/// Greatest vmid: the address after it is the host's.
pub const VMID_MAX: u32 = scheduler::core::api::VMID_MAX;
/// How the name of a family's VXLAN device ends: no tap's does.
pub const VXLAN_SUFFIX: &str = ".x";
/// Shortest prefix of a host's range: it still numbers its families in 16 bits.
const PREFIX_MIN: u8 = 8;

/// The range that families are numbered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: u32,
    prefix: u8,
}

/// Why a text is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not `ADDRESS/PREFIX`.
    #[error("{0:?} is not a network: write it like 100.64.0.0/10")]
    Form(String),
    /// The prefix leaves no room for a family, or for too many.
    #[error("the prefix /{0} is not between /8 and /20: each family gets a /20")]
    Prefix(u8),
    /// Bits are set behind the prefix.
    #[error("{address}/{prefix} has bits set after its prefix: did you mean {meant}/{prefix}?")]
    HostBits {
        /// The address that was given.
        address: Ipv4Addr,
        /// The length of the prefix that was given, bits.
        prefix: u8,
        /// The address with the bits behind the prefix cleared.
        meant: Ipv4Addr,
    },
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let form = || RangeError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(PREFIX_MIN..=FAMILY_PREFIX).contains(&prefix) {
            return Err(RangeError::Prefix(prefix));
        }
        let base = u32::from(address);
        let kept = base & (u32::MAX << (32 - prefix));
        if kept != base {
            return Err(RangeError::HostBits { address, prefix, meant: kept.into() });
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl Range {
    /// The whole of it.
    #[must_use]
    pub fn network(&self) -> patina_daemon::network::Network {
        patina_daemon::network::Network::of(Ipv4Addr::from(self.base), self.prefix)
    }

    /// How many families have room in it.
    #[must_use]
    pub fn families(&self) -> u16 {
        1 << (FAMILY_PREFIX - self.prefix)
    }

    /// The network of one family; None past [`Self::families`].
    #[must_use]
    pub fn family(&self, index: u16) -> Option<FamilyNet> {
        (index < self.families())
            .then(|| FamilyNet { index, base: Ipv4Addr::from(self.base + u32::from(index) * 4096) })
    }

    /// Takes the network of a family that comes from another host, as that one said it.
    ///
    /// # Errors
    /// It is not one of this range's: the hosts have different ones, or the other one is wrong.
    pub fn admit(&self, net: FamilyNet) -> Result<(), ForeignNet> {
        let known = self.family(net.index) == Some(net);
        known.then_some(()).ok_or(ForeignNet { net, range: *self })
    }
}

/// A family's network that has no place in this host's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the family's network {net} is not number {} of this host's range {range}; start vmmd with the same --network on all hosts", .net.index)]
pub struct ForeignNet {
    /// The network.
    pub net: FamilyNet,
    /// The range.
    pub range: Range,
}

/// The network of one family. Recorded whole, so that it stays when the host's range is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyNet {
    /// Its number on this host.
    pub index: u16,
    /// Its first address.
    pub base: Ipv4Addr,
}

impl FamilyNet {
    /// A VM's address; None past [`VMID_MAX`].
    #[must_use]
    pub fn ip(&self, vmid: u32) -> Option<Ipv4Addr> {
        (vmid <= VMID_MAX).then(|| Ipv4Addr::from(u32::from(self.base) + 1 + vmid))
    }

    /// The host's address on the family's bridge: the last usable one.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 4094)
    }

    /// A VM's MAC: locally administered, from the family's number and the vmid.
    #[must_use]
    pub fn mac(&self, vmid: u32) -> String {
        mac_text(self.mac_bytes(vmid))
    }

    /// The same as bytes. The vmms count on it that addresses and MACs are in the same order.
    #[must_use]
    pub fn mac_bytes(&self, vmid: u32) -> [u8; 6] {
        let [a, b] = self.index.to_be_bytes();
        let [_, _, c, d] = vmid.to_be_bytes();
        [0x02, 0x70, a, b, c, d]
    }

    /// Name of the bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("pt{}", self.index)
    }

    /// Name of the VXLAN device to other hosts.
    #[must_use]
    pub fn vxlan(&self) -> String {
        format!("pt{}{VXLAN_SUFFIX}", self.index)
    }

    /// The identifier of the family's network between hosts (VNI): unique where networks are.
    #[must_use]
    pub fn vni(&self) -> u32 {
        u32::from(self.base) >> (32 - FAMILY_PREFIX)
    }

    /// The VM that has this MAC.
    #[must_use]
    pub fn vmid_of(&self, mac: &[u8]) -> Option<u32> {
        let [_, _, _, _, a, b] = <[u8; 6]>::try_from(mac).ok()?;
        let vmid = u32::from(u16::from_be_bytes([a, b]));
        (vmid <= VMID_MAX && self.mac_bytes(vmid) == mac).then_some(vmid)
    }

    /// Name of a VM's tap.
    #[must_use]
    pub fn tap(&self, vmid: u32) -> String {
        format!("pt{}.{vmid}", self.index)
    }
}

impl fmt::Display for FamilyNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{FAMILY_PREFIX}", self.base)
    }
}

/// A MAC in text.
#[must_use]
pub fn mac_text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_range_has_1024_families() {
        let range: Range = "100.64.0.0/10".parse().unwrap();
        assert_eq!(range.families(), 1024);
        let family = range.family(3).unwrap();
        assert_eq!(family.ip(0), Some(Ipv4Addr::new(100, 64, 48, 1)));
        assert_eq!(family.gateway(), Ipv4Addr::new(100, 64, 63, 254));
        assert_eq!(family.mac(258), "02:70:00:03:01:02");
        assert_eq!(range.family(1023).unwrap().gateway(), Ipv4Addr::new(100, 127, 255, 254));
        assert_eq!(range.family(1024), None);
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        assert!(matches!("100.64.0.0".parse::<Range>(), Err(RangeError::Form(_))));
        assert!(matches!("x/10".parse::<Range>(), Err(RangeError::Form(_))));
        assert_eq!("10.0.0.0/21".parse::<Range>(), Err(RangeError::Prefix(21)));
        assert_eq!("0.0.0.0/0".parse::<Range>(), Err(RangeError::Prefix(0)));
        let error = "100.64.1.0/10".parse::<Range>().unwrap_err().to_string();
        assert!(error.contains("did you mean 100.64.0.0/10"), "{error}");
    }

    #[test]
    fn a_family_of_another_range_is_refused() {
        let (ours, theirs): (Range, Range) =
            ("100.64.0.0/10".parse().unwrap(), "10.0.0.0/12".parse().unwrap());
        let error = ours.admit(theirs.family(3).unwrap()).unwrap_err().to_string();
        assert!(error.contains("10.0.48.0/20") && error.contains("100.64.0.0/10"), "{error}");
        // The right number, with another's addresses.
        let crossed = FamilyNet { index: 4, ..ours.family(3).unwrap() };
        assert!(ours.admit(crossed).is_err());
    }

    #[test]
    fn identifiers_between_hosts_have_24_bits_and_differ() {
        let range: Range = "100.64.0.0/10".parse().unwrap();
        let of = |index| range.family(index).unwrap().vni();
        assert_eq!((of(0), of(3)), (0x64400, 0x64403));
        let all: std::collections::BTreeSet<u32> = (0..range.families()).map(of).collect();
        assert_eq!(all.len(), 1024);
        let last: Range = "255.255.240.0/20".parse().unwrap();
        assert!(last.family(0).unwrap().vni() < 1 << 24);
        assert!(FamilyNet { index: u16::MAX, base: Ipv4Addr::UNSPECIFIED }.vxlan().len() <= 15);
        assert_eq!(range.family(3).unwrap().vmid_of(&range.family(4).unwrap().mac_bytes(1)), None);
    }

    proptest! {
        #[test]
        fn addresses_and_names_never_meet(index in 0u16..4096, vmid in 0u32..5000) {
            let range: Range = "10.0.0.0/8".parse().unwrap();
            let family = range.family(index).unwrap();
            prop_assert!(family.tap(VMID_MAX).len() <= 15);
            prop_assert_ne!(family.tap(vmid), family.vxlan());
            prop_assert_eq!(range.admit(family), Ok(()));
            prop_assert_eq!(family.vmid_of(&family.mac_bytes(vmid)), family.ip(vmid).map(|_| vmid));
            match family.ip(vmid) {
                Some(ip) => {
                    prop_assert!(ip < family.gateway());
                    prop_assert_eq!(u32::from(ip) >> 12, u32::from(family.base) >> 12);
                }
                None => prop_assert!(vmid > VMID_MAX),
            }
        }
    }
}
