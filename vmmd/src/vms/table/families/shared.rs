//! Families that have VMs on several hosts. Their vmids are reserved at the scheduler, so that no
//! two hosts give the same one.

use super::{CloneSlot, family::Family};
use crate::{
    plan::{address::VMID_MAX, names::VmName},
    store::record::Record,
    vms::{error::Error, table::Table},
};
use std::{
    collections::{BTreeSet, btree_map::Entry},
    ops::Range,
};
use uuid::Uuid;

/// What [`Table::join_foreign_family`] found.
#[derive(Debug)]
pub enum Joined {
    /// VMs of the family live here.
    Others,
    /// These are its first VMs here.
    First,
    /// Another family has its number, or this one is just ending here.
    Taken(Uuid),
    /// A VM that lives here has this one of the vmids.
    Lives(u32),
}

impl Table {
    /// VMs of a family of another host, with these vmids, are made here. This host gives only such
    /// vmids of it as are reserved.
    #[must_use]
    pub fn join_foreign_family(&self, index: u16, uuid: Uuid, vmids: &[u32]) -> Joined {
        let above = vmids.iter().max().map_or(0, |vmid| vmid + 1);
        match self.lock().families.entry(index) {
            Entry::Vacant(entry) => {
                let mut family = Family::new(uuid, VMID_MAX + 1);
                family.living.add(vmids.iter().copied());
                entry.insert(Family { shared_from: Some(above), ..family });
                Joined::First
            }
            Entry::Occupied(mut entry) => {
                let family = entry.get_mut();
                if family.uuid != uuid || family.living.is_empty() {
                    return Joined::Taken(family.uuid);
                }
                if let Some(vmid) = family.living.vmids().find(|vmid| vmids.contains(vmid)) {
                    return Joined::Lives(vmid);
                }
                family.living.add(vmids.iter().copied());
                family.shared_from = family.shared_from.max(Some(above));
                Joined::Others
            }
        }
    }

    /// The VMs of a family that live here, or are being made.
    #[must_use]
    pub fn living(&self, index: u16, uuid: Uuid) -> BTreeSet<u32> {
        self.lock().family(index, uuid).map(|family| family.living.vmids().collect()).unwrap_or_default()
    }

    /// Those of the vmids that no other host's VM has: a VM here has them, or is still to get them.
    #[must_use]
    pub fn own_vmids(&self, index: u16, uuid: Uuid, of: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let mut inner = self.lock();
        let Some(family) = inner.family(index, uuid) else { return BTreeSet::new() };
        let living: BTreeSet<u32> = family.living.vmids().collect();
        of.filter(|vmid| living.contains(vmid) || family.pool.may_give(*vmid)).collect()
    }

    /// The family gets VMs on other hosts: this one gives no vmid any more that is not reserved.
    /// The result must be [written](Self::unwritten) before.
    pub fn share_family(&self, index: u16, uuid: Uuid) {
        let mut inner = self.lock();
        let Some(family) = inner.family(index, uuid).filter(|family| family.shared_from.is_none()) else {
            return;
        };
        family.shared_from = Some(family.pool.close());
    }

    /// Whether the family may have VMs on other hosts.
    #[must_use]
    pub fn is_shared(&self, index: u16, uuid: Uuid) -> bool {
        self.lock().family(index, uuid).is_some_and(|family| family.shared_from.is_some())
    }

    /// How many vmids must be reserved before `count` can be taken with nothing under them, and the
    /// least that they may be. None: there are enough, or the family gives its vmids itself.
    #[must_use]
    pub fn missing_vmids(&self, index: u16, uuid: Uuid, count: u32) -> Option<(u32, u32)> {
        let mut inner = self.lock();
        let family = inner.family(index, uuid)?;
        let missing = count.saturating_sub(family.pool.left_bare());
        family.shared_from.filter(|_| missing > 0).map(|from| (missing, from))
    }

    /// Vmids were reserved for this host.
    pub fn add_vmids(&self, index: u16, uuid: Uuid, vmids: Range<u32>) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.shared_from = family.shared_from.max(Some(vmids.end));
            family.pool.add(vmids);
            family.wake();
        }
    }

    /// Takes vmids for clones on other hosts. [`Self::unwritten`] must be written before they are
    /// used.
    ///
    /// # Errors
    /// The family has ended or has not so many vmids left.
    pub fn take_vmids(&self, parent: &Record, count: u32) -> Result<Vec<u32>, Error> {
        let mut inner = self.lock();
        let Some(family) = inner.family(parent.net.index, parent.family) else {
            return Err(Error::NotReady { name: parent.name.clone(), state: "ended" });
        };
        let left = family.pool.left_bare();
        if count > left {
            return Err(Error::NoVmid { master: parent.master().to_owned(), count, left });
        }
        Ok((0..count).map_while(|_| family.pool.take_bare()).collect())
    }

    /// Takes the names of clones whose vmids another host has given. The caller has joined the
    /// family for each of them.
    ///
    /// # Errors
    /// A name is in use, or the host keeps too many VMs.
    pub fn take_given_slots(&self, master: &str, vmids: &[u32]) -> Result<Vec<CloneSlot>, Error> {
        let slot = |vmid: &u32| {
            let held_name = self.reserve(&VmName::of_clone(master, *vmid))?;
            Ok(CloneSlot { vmid: *vmid, held_name, pool_slot: None })
        };
        vmids.iter().map(slot).collect()
    }
}
