//! What hosts say to each other of the VMs of a family.

use super::error::TellError;
use crate::plan::address::VMID_MAX;
use patina_proto::v1::{FamilyHost, FamilyMembers};
use std::{collections::BTreeSet, net::SocketAddr};
use uuid::Uuid;

/// Most other hosts of a family.
pub const HOSTS_MAX: usize = 255;
/// Longest address of a vmmd.
const ADDRESS_MAX_BYTES: usize = 256;

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its vmmd.
    pub address: String,
    /// Where it receives what VMs of other hosts send to its own.
    pub overlay: SocketAddr,
}

/// The VMs of a family on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnHost {
    /// The host's id.
    pub host: Uuid,
    /// Where it is.
    pub place: Place,
    /// Its VMs.
    pub vmids: BTreeSet<u32>,
}

/// Which of a host's messages is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// How often its vmmd was started.
    pub start: u64,
    /// Counts on since then.
    pub number: u64,
}

/// What a host says of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The family.
    pub family: Uuid,
    /// The newer, the greater.
    pub version: Version,
    /// The host itself.
    pub speaker: OnHost,
    /// Other hosts that it knows of.
    pub others: Vec<OnHost>,
}

/// How it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// With clones that are made together. The scheduler knows of them, and so who speaks may be
    /// new.
    WithClones,
    /// As news.
    AsNews,
    /// As the answer of whoever is where the host is said to be.
    AsAnswer,
}

impl OnHost {
    fn check(host: FamilyHost) -> Result<Self, TellError> {
        let field = |field, found: &str| TellError::Field { field, found: found.chars().take(64).collect() };
        if host.address.is_empty() || host.address.len() > ADDRESS_MAX_BYTES {
            return Err(field("address", &host.address));
        }
        if host.vmids.len() > VMID_MAX as usize + 1 {
            return Err(field("number of vmids", &host.vmids.len().to_string()));
        }
        if let Some(vmid) = host.vmids.iter().find(|vmid| **vmid > VMID_MAX) {
            return Err(field("vmid", &vmid.to_string()));
        }
        Ok(Self {
            host: host.host_id.parse().map_err(|_| field("host", &host.host_id))?,
            place: Place {
                overlay: host.overlay.parse().map_err(|_| field("overlay address", &host.overlay))?,
                address: host.address,
            },
            vmids: host.vmids.into_iter().collect(),
        })
    }

    fn message(&self) -> FamilyHost {
        FamilyHost {
            host_id: self.host.to_string(),
            address: self.place.address.clone(),
            overlay: self.place.overlay.to_string(),
            vmids: self.vmids.iter().copied().collect(),
        }
    }
}

impl Told {
    /// Checks a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(members: FamilyMembers) -> Result<Self, TellError> {
        let field = |field, found: String| TellError::Field { field, found };
        if members.others.len() > HOSTS_MAX {
            return Err(field("number of hosts", members.others.len().to_string()));
        }
        let family = members.family.parse();
        Ok(Self {
            family: family
                .map_err(|_| field("family", members.family.chars().take(64).collect::<String>()))?,
            version: Version { start: members.start, number: members.number },
            speaker: OnHost::check(members.speaker.unwrap_or_default())?,
            others: members.others.into_iter().map(OnHost::check).collect::<Result<_, _>>()?,
        })
    }

    /// As a message.
    #[must_use]
    pub fn message(&self) -> FamilyMembers {
        FamilyMembers {
            family: self.family.to_string(),
            start: self.version.start,
            number: self.version.number,
            speaker: Some(self.speaker.message()),
            others: self.others.iter().map(OnHost::message).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(host: u128, vmids: &[u32]) -> OnHost {
        let place = Place { address: format!("unix:/{host}"), overlay: "192.0.2.1:4789".parse().unwrap() };
        OnHost { host: Uuid::from_u128(host), place, vmids: vmids.iter().copied().collect() }
    }

    #[test]
    fn what_a_host_says_is_checked_whole() {
        let version = Version { start: 2, number: 3 };
        let others = vec![on(5, &[1]), on(6, &[])];
        let told = Told { family: Uuid::from_u128(9), version, speaker: on(4, &[0, VMID_MAX]), others };
        assert_eq!(Told::check(told.message()).unwrap(), told);
        let wrong: [fn(&mut FamilyMembers); 8] = [
            |members| members.family = "web".into(),
            |members| members.speaker = None,
            |members| members.others = vec![members.others[0].clone(); HOSTS_MAX + 1],
            |members| members.others[1].host_id.clear(),
            |members| members.others[0].address = "x".repeat(ADDRESS_MAX_BYTES + 1),
            |members| members.others[0].overlay = "192.0.2.1".into(),
            |members| members.others[0].vmids = vec![VMID_MAX + 1],
            |members| members.others[0].vmids = vec![1; VMID_MAX as usize + 2],
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut changed = told.message();
            change(&mut changed);
            let error = Told::check(changed).unwrap_err();
            assert!(matches!(error, TellError::Field { .. }) && error.to_string().len() < 200, "{number}");
        }
    }
}
