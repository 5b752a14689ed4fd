//! What is known of one family.

use super::told::{Came, HOSTS_MAX, OnHost, Place, Version};
use crate::plan::address::FamilyNet;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What is known of another host of a family.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) place: Place,
    /// What it said itself.
    pub(super) vmids: BTreeSet<u32>,
    /// What others say of it. It goes when the host speaks.
    pub(super) announced: BTreeSet<u32>,
    /// When it spoke last.
    pub(super) heard: Option<Version>,
    /// The last number that it has heard of this host.
    pub(super) knows: u64,
    /// Calls for clones that it has not answered yet. It may not know the family before.
    pub(super) calls: u32,
    /// Somebody is telling it.
    pub(super) is_being_told: bool,
    /// It has said itself where it is, or the scheduler has. Whoever answers elsewhere may be
    /// another one.
    pub(super) is_found: bool,
}

impl Known {
    pub(super) fn at(place: Place) -> Self {
        let (vmids, announced) = (BTreeSet::new(), BTreeSet::new());
        let (is_being_told, is_found) = (false, false);
        Self { place, vmids, announced, heard: None, knows: 0, calls: 0, is_being_told, is_found }
    }

    /// One that has none any more is kept for its version, and may speak.
    pub(super) fn has_vms(&self) -> bool {
        !self.vmids.is_empty() || !self.announced.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        self.vmids.union(&self.announced).copied()
    }
}

/// A family that has VMs on several hosts.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) net: FamilyNet,
    pub(super) own: BTreeSet<u32>,
    /// The number of what all hosts are to know.
    pub(super) said: u64,
    pub(super) hosts: BTreeMap<Uuid, Known>,
}

impl Family {
    /// The vmids that are not another host's than this one.
    pub(super) fn free_for(&self, host: Uuid, vmids: &BTreeSet<u32>) -> BTreeSet<u32> {
        let others = self.hosts.iter().filter(|(other, _)| **other != host);
        let taken: BTreeSet<u32> = others.flat_map(|(_, known)| known.all()).collect();
        vmids.iter().copied().filter(|vmid| !self.own.contains(vmid) && !taken.contains(vmid)).collect()
    }

    /// Whether there is room for a host. One that has no VM any more makes room.
    pub(super) fn has_room(&mut self, host: Uuid) -> bool {
        if self.hosts.contains_key(&host) || self.hosts.len() < HOSTS_MAX {
            return true;
        }
        let gone = |known: &Known| !known.has_vms() && known.calls == 0;
        let Some(gone) = self.hosts.iter().find(|(_, known)| gone(known)).map(|(host, _)| *host) else {
            return false;
        };
        self.hosts.remove(&gone);
        true
    }

    /// Something is said of a host that is not the speaker.
    pub(super) fn learn(&mut self, of: &OnHost, came: Came) -> bool {
        let is_new = !self.hosts.contains_key(&of.host);
        if of.vmids.is_empty() || !(is_new || came == Came::WithClones) || !self.has_room(of.host) {
            return false;
        }
        let vmids = self.free_for(of.host, &of.vmids);
        if vmids.is_empty() {
            return false;
        }
        let known = self.hosts.entry(of.host).or_insert_with(|| Known::at(of.place.clone()));
        let had_none = !known.has_vms();
        let announced = vmids.difference(&known.vmids).copied().collect::<Vec<_>>();
        known.announced.extend(announced);
        if !known.announced.is_empty() {
            // It is asked what is true.
            known.knows = 0;
        }
        had_none
    }
}
