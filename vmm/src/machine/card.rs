//! Who a VM is, on its network: the addresses that its network card needs.

use crate::devices::virtio::net::{Neighbours, Owner};
use patina_abi::link::Identity;
use patina_control::config;
use std::net::Ipv4Addr;

/// A text that should be a MAC address is none.
#[derive(Debug, thiserror::Error)]
#[error("use the VM's addresses: {0:?} is not a MAC address")]
pub struct MacError(String);

/// The addresses of a VM with this identity, among these neighbours.
///
/// # Errors
/// A MAC address is invalid.
pub fn card_owner(identity: &Identity, neighbours: Option<&config::Neighbours>) -> Result<Owner, MacError> {
    let mac = |text: &str| parse_mac(text).ok_or_else(|| MacError(text.to_owned()));
    let neighbours = neighbours.map(|neighbours| -> Result<_, MacError> {
        Ok(Neighbours {
            first_ip: neighbours.first_ip,
            first_mac: mac(&neighbours.first_mac)?,
            vms: neighbours.vms,
            gateway_ip: identity.gateway,
            gateway_mac: mac(&neighbours.gateway_mac)?,
        })
    });
    Ok(Owner { mac: mac(&identity.mac)?, ip: identity.ip, neighbours: neighbours.transpose()? })
}

/// In the place of an identity that is not known yet. No guest is told this one.
pub fn nobody() -> Identity {
    let none = Ipv4Addr::UNSPECIFIED;
    Identity {
        vmid: 0,
        family: String::new(),
        ip: none,
        prefix: 0,
        gateway: none,
        mac: String::new(),
        hostname: String::new(),
        ticket: String::new(),
        clock_ns: 0,
        seed: String::new(),
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::parse_mac;

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("02:00:0a:ff:00:01"), Some([2, 0, 10, 255, 0, 1]));
        for bad in ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "02:00:0a:ff:00:zz"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
