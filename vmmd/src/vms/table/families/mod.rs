//! The families with running VMs: their numbers, their vmids, their pools of warm VMs.

pub(super) mod family;
mod living;
mod shared;

pub use shared::Joined;

use super::{HeldName, Inner, Slot, Table};
use crate::{
    plan::{
        address::{FamilyNet, Range, VMID_MAX},
        names::VmName,
    },
    process::generation::PrefaultList,
    store::record::Record,
    vms::{
        error::{Error, VMS_MAX},
        warm::PoolSlot,
    },
};
use family::{Family, List};
use std::sync::Arc;
use tokio::sync::Notify;
use uuid::Uuid;

/// What is to be done for a family's pool.
#[derive(Debug)]
pub(in crate::vms) enum Work {
    /// It is as it should be.
    Nothing,
    /// Make these: vmid and name.
    Make(Vec<(u32, String)>),
    /// End this one.
    Trim(u32, PoolSlot),
}

/// What one clone is made of; taken until it is a VM, or is not made after all.
#[derive(Debug)]
pub struct CloneSlot {
    /// The clone's vmid.
    pub vmid: u32,
    /// The clone's name, which is held for it.
    pub held_name: HeldName,
    /// Its warm VM; None: it has to be made.
    pub pool_slot: Option<PoolSlot>,
}

/// What [`Table::take_clone_slots`] gives.
#[derive(Debug)]
pub struct CloneSlots {
    /// In the order of their vmids, but for one that is bound again.
    pub slots: Vec<CloneSlot>,
    /// Warm VMs whose name is another VM's: they cannot be used any more.
    pub passed: Vec<PoolSlot>,
}

/// What is left when a VM of a family has gone.
#[derive(Debug)]
pub enum Left {
    /// Other VMs of the family live.
    Others,
    /// It was the last; what was kept is to be ended, and [`Table::forget_family`] is due.
    Nobody(Vec<PoolSlot>),
}

impl Inner {
    fn family(&mut self, index: u16, uuid: Uuid) -> Option<&mut Family> {
        self.families.get_mut(&index).filter(|family| family.uuid == uuid && !family.living.is_empty())
    }

    fn take_clone_slots(&mut self, parent: &Record, count: u32) -> Result<Numbered, Error> {
        let free = VMS_MAX.saturating_sub(self.slots.len());
        let Self { slots, families } = self;
        let family = families.get_mut(&parent.net.index);
        let Some(family) = family.filter(|family| family.uuid == parent.family && !family.living.is_empty())
        else {
            return Err(Error::NotReady { name: parent.name.clone(), state: "ended" });
        };
        if usize::try_from(count).is_ok_and(|count| count > free) {
            return Err(Error::TooMany);
        }
        let left = family.pool.left();
        let mut numbered = Numbered::default();
        while numbered.slots.len() < count as usize {
            let Some((vmid, pool_slot)) = family.pool.take() else {
                for (vmid, name, pool_slot) in numbered.slots {
                    slots.remove(&name);
                    match pool_slot {
                        Some(pool_slot) => family.pool.keep(vmid, pool_slot),
                        None => family.pool.release(vmid),
                    }
                }
                for (vmid, pool_slot) in numbered.passed {
                    family.pool.keep(vmid, pool_slot);
                }
                return Err(Error::NoVmid { master: parent.master().to_owned(), count, left });
            };
            let name = VmName::of_clone(parent.master(), vmid);
            if slots.contains_key(&name) {
                // A user's own VM has it: the next vmid does as well.
                numbered.passed.extend(pool_slot.map(|pool_slot| (vmid, pool_slot)));
                continue;
            }
            slots.insert(name.clone(), Slot::Reserved);
            numbered.slots.push((vmid, name, pool_slot));
        }
        family.living.add(numbered.slots.iter().map(|(vmid, ..)| *vmid));
        family.wake();
        Ok(numbered)
    }
}

#[derive(Default)]
struct Numbered {
    slots: Vec<(u32, String, Option<PoolSlot>)>,
    passed: Vec<(u32, PoolSlot)>,
}

impl Table {
    /// Numbers a new family with its master: the first free number from `from` on.
    #[must_use]
    pub fn number_family(&self, range: &Range, from: u16, uuid: Uuid) -> Option<FamilyNet> {
        let mut inner = self.lock();
        let free = (from..range.families()).find(|index| !inner.families.contains_key(index))?;
        let mut family = Family::new(uuid, 1);
        family.living.add([0]);
        inner.families.insert(free, family);
        range.family(free)
    }

    /// One more VM of a family is found alive; vmids below `next_vmid` are taken.
    pub fn join_family(&self, index: u16, uuid: Uuid, vmid: u32, next_vmid: u32) {
        let mut inner = self.lock();
        let family = inner.families.entry(index).or_insert_with(|| Family::new(uuid, next_vmid));
        family.living.add([vmid]);
        family.pool.raise(next_vmid);
        if next_vmid > VMID_MAX {
            family.shared_from.get_or_insert(0);
        }
        family.written = family.written.max(next_vmid);
    }

    /// Takes vmids, names and, as far as there are, warm VMs for `count` clones of a VM; so many
    /// VMs more live. Before a vmid is used, [`Self::unwritten`] must be written.
    ///
    /// # Errors
    /// The family has ended or has not so many vmids left, or the host keeps too many VMs.
    pub fn take_clone_slots(&self, parent: &Record, count: u32) -> Result<CloneSlots, Error> {
        let Numbered { slots, passed } = self.lock().take_clone_slots(parent, count)?;
        let slot = |(vmid, name, pool_slot)| {
            let held_name = HeldName { table: self.clone(), name: Some(name) };
            CloneSlot { vmid, held_name, pool_slot }
        };
        let slots = slots.into_iter().map(slot).collect();
        Ok(CloneSlots { slots, passed: passed.into_iter().map(|(_, pool_slot)| pool_slot).collect() })
    }

    /// Gives back the warm VM of a clone that was not made after all.
    ///
    /// # Errors
    /// The family has ended: here it is again.
    pub fn keep_pool_slot(
        &self,
        index: u16,
        uuid: Uuid,
        vmid: u32,
        pool_slot: PoolSlot,
    ) -> Result<(), PoolSlot> {
        let mut inner = self.lock();
        let Some(family) = inner.family(index, uuid) else { return Err(pool_slot) };
        family.pool.keep(vmid, pool_slot);
        family.wake();
        Ok(())
    }

    /// A clone of this vmid was not made, and nothing for it: the next one may have the vmid.
    pub fn unbind(&self, index: u16, uuid: Uuid, vmid: u32) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.pool.release(vmid);
            family.wake();
        }
    }

    /// How many warm VMs wait, of all families.
    #[must_use]
    pub fn warm(&self) -> u32 {
        let inner = self.lock();
        let made = inner
            .families
            .values()
            .flat_map(|family| family.pool.all())
            .filter(|pool_slot| pool_slot.is_made());
        u32::try_from(made.count()).unwrap_or(u32::MAX)
    }

    /// Takes a warm VM out of its family's pool, if nobody has taken it.
    #[must_use]
    pub fn pull_pool_slot(&self, index: u16, uuid: Uuid, vmid: u32) -> Option<PoolSlot> {
        let mut inner = self.lock();
        let family = inner.family(index, uuid)?;
        let pool_slot = family.pool.pull(vmid)?;
        family.clearing += 1;
        Some(pool_slot)
    }

    /// Nothing is left of a warm VM that was pulled or trimmed: its vmid may be bound again.
    pub fn release_vmid(&self, index: u16, uuid: Uuid, vmid: u32) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.release(vmid);
        }
    }

    /// A warm VM has died.
    pub fn lost_pool_slot(&self, index: u16, uuid: Uuid, vmid: u32) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.losses += 1;
            family.release(vmid);
        }
    }

    /// How many have died since this was asked last.
    #[must_use]
    pub fn take_losses(&self, index: u16, uuid: Uuid) -> u32 {
        self.lock().family(index, uuid).map_or(0, |family| std::mem::take(&mut family.losses))
    }

    /// True for the first who wants to keep the family's pool.
    #[must_use]
    pub fn begin_pool(&self, index: u16, uuid: Uuid) -> bool {
        let mut inner = self.lock();
        let Some(family) = inner.family(index, uuid).filter(|family| family.changed.is_none()) else {
            return false;
        };
        family.changed = Some(Arc::default());
        true
    }

    /// What tells that there may be something to do for the family's pool; None when the family has
    /// ended.
    #[must_use]
    pub fn pool_changed(&self, index: u16, uuid: Uuid) -> Option<Arc<Notify>> {
        self.lock().family(index, uuid)?.changed.clone()
    }

    /// The number of warm VMs that a family should have may have changed.
    pub fn wake_pool(&self, index: u16, uuid: Uuid) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.wake();
        }
    }

    /// Whether the family's pool is not as large as it should be.
    #[must_use]
    pub fn wants(&self, index: u16, uuid: Uuid, target: usize) -> bool {
        self.lock().family(index, uuid).is_some_and(|family| family.pool.kept() < target)
    }

    /// What is to be done so that `target` warm VMs are ready, at most `at_once` now; None when the
    /// family has ended.
    #[must_use]
    pub(in crate::vms) fn pool_work(&self, of: &Record, target: usize, at_once: usize) -> Option<Work> {
        let mut inner = self.lock();
        let Inner { slots, families } = &mut *inner;
        let family = families.get_mut(&of.net.index);
        let family = family.filter(|family| family.uuid == of.family && !family.living.is_empty())?;
        if let Some((vmid, pool_slot)) = family.pool.trim(target) {
            family.clearing += 1;
            return Some(Work::Trim(vmid, pool_slot));
        }
        // A warm VM that is being removed is replaced later, under its own vmid.
        let missing = target.saturating_sub(family.pool.kept() + family.clearing).min(at_once);
        let mut vmids = Vec::new();
        while vmids.len() < missing {
            let Some(vmid) = family.pool.bind() else { break };
            let name = VmName::of_clone(of.master(), vmid);
            if !slots.contains_key(&name) {
                vmids.push((vmid, name));
            }
        }
        Some(if vmids.is_empty() { Work::Nothing } else { Work::Make(vmids) })
    }

    /// What must be written down as the family's next vmid before any vmid that was taken is used;
    /// None: it stands.
    #[must_use]
    pub fn unwritten(&self, index: u16, uuid: Uuid) -> Option<u32> {
        let mut inner = self.lock();
        let family = inner.family(index, uuid)?;
        let mark = family.pool.mark();
        (mark > family.written).then_some(mark)
    }

    /// Whether no clone of the family was made yet, nor begun.
    #[must_use]
    pub fn is_uncloned(&self, index: u16, uuid: Uuid) -> bool {
        self.lock().family(index, uuid).is_some_and(|family| family.written <= 1)
    }

    /// It is written.
    pub fn written(&self, index: u16, uuid: Uuid, next_vmid: u32) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.written = family.written.max(next_vmid);
        }
    }

    /// A VM does not live any more.
    #[must_use]
    pub fn leave_family(&self, index: u16, vmid: u32) -> Left {
        let mut inner = self.lock();
        let Some(family) = inner.families.get_mut(&index) else { return Left::Others };
        family.living.remove(vmid);
        if !family.living.is_empty() {
            return Left::Others;
        }
        family.wake();
        Left::Nobody(family.pool.clear())
    }

    /// The number is free again.
    pub fn forget_family(&self, index: u16) {
        self.lock().families.remove(&index);
    }

    /// The numbers in use.
    #[must_use]
    pub fn families(&self) -> Vec<u16> {
        self.lock().families.keys().copied().collect()
    }

    /// Takes every warm VM out, and lets no more be made.
    #[must_use]
    pub fn clear_pools(&self) -> Vec<PoolSlot> {
        let mut inner = self.lock();
        let clear = |family: &mut Family| {
            family.changed = None;
            family.pool.clear()
        };
        inner.families.values_mut().flat_map(clear).collect()
    }

    /// The list of pages that the family's clones touch, if it is known.
    #[must_use]
    pub fn prefault_list(&self, index: u16, uuid: Uuid) -> Option<Arc<PrefaultList>> {
        match &self.lock().family(index, uuid)?.prefault_list {
            List::Known(list) => Some(Arc::clone(list)),
            List::Unknown | List::Asked => None,
        }
    }

    /// True for the one who is to ask for the list, which nobody knows.
    #[must_use]
    pub fn ask_prefault_list(&self, index: u16, uuid: Uuid) -> bool {
        let mut inner = self.lock();
        let Some(family) = inner.family(index, uuid) else { return false };
        let is_unknown = matches!(family.prefault_list, List::Unknown);
        if is_unknown {
            family.prefault_list = List::Asked;
        }
        is_unknown
    }

    /// Keeps the outcome of the request for the list; None: the list could not be had.
    pub fn set_prefault_list(&self, index: u16, uuid: Uuid, list: Option<PrefaultList>) {
        if let Some(family) = self.lock().family(index, uuid) {
            family.prefault_list = list.map_or(List::Unknown, |list| List::Known(Arc::new(list)));
        }
    }
}

#[cfg(test)]
#[path = "families_test.rs"]
mod tests;
