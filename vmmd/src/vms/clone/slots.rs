//! The clone slots of a call: vmids, names and warm VMs, taken before the clones are granted and
//! given back if they are not made.

use crate::{
    store::record::Record,
    vms::{
        error::Error,
        host::Host,
        table::{
            HeldName,
            families::{CloneSlot, CloneSlots},
        },
        warm::PoolSlot,
        warm_up::For,
    },
};
use std::sync::Arc;

/// A clone slot whose warm VM is made, or is being made.
#[derive(Debug)]
pub(in crate::vms) struct FilledSlot {
    pub vmid: u32,
    pub held_name: HeldName,
    pub pool_slot: PoolSlot,
}

impl Host {
    /// Takes clone slots for `count` clones of a VM: vmids and names, and what is warm. Each of
    /// them lives, until [`Self::leave_family`].
    ///
    /// # Errors
    /// The family has ended or has not so many vmids left; the host keeps too many VMs.
    pub(in crate::vms) fn take_clone_slots(
        &self,
        parent: &Record,
        count: u32,
    ) -> Result<Vec<CloneSlot>, Error> {
        let CloneSlots { slots, passed } = self.table.take_clone_slots(parent, count)?;
        self.members_changed();
        for pool_slot in passed {
            tokio::spawn(pool_slot.discard());
        }
        Ok(slots)
    }

    /// The clones of these slots may be made: what is not warm is being made from now on.
    pub(in crate::vms) fn fill_clone_slots(
        self: &Arc<Self>,
        parent: &Record,
        slots: Vec<CloneSlot>,
        who: For,
    ) -> Vec<FilledSlot> {
        let fill = |CloneSlot { vmid, held_name, pool_slot }| {
            let name = || held_name.name().to_owned();
            let pool_slot = pool_slot.unwrap_or_else(|| self.make_warm(parent, vmid, name(), who).0);
            FilledSlot { vmid, held_name, pool_slot }
        };
        slots.into_iter().map(fill).collect()
    }

    /// The clones of these slots may not be made. Vmids that are not unused, as far as the
    /// scheduler knows, are not given again.
    pub(in crate::vms) async fn refuse_clone_slots(
        &self,
        parent: &Record,
        slots: Vec<CloneSlot>,
        is_unused: bool,
    ) {
        for CloneSlot { vmid, held_name, pool_slot } in slots {
            match pool_slot {
                Some(pool_slot) => self.return_pool_slot(parent, vmid, pool_slot, is_unused).await,
                None if is_unused => self.table.unbind(parent.net.index, parent.family, vmid),
                None => {}
            }
            drop(held_name);
            self.leave_family(parent.net, parent.family, vmid).await;
        }
    }

    async fn return_pool_slot(&self, parent: &Record, vmid: u32, pool_slot: PoolSlot, is_unused: bool) {
        let kept = if is_unused {
            self.table.keep_pool_slot(parent.net.index, parent.family, vmid, pool_slot)
        } else {
            Err(pool_slot)
        };
        if let Err(pool_slot) = kept {
            pool_slot.discard().await;
        }
    }

    /// The clones of these slots are not made after all: what is warm is for the next ones, if its
    /// vmid is.
    pub(in crate::vms) async fn return_clone_slots(
        &self,
        parent: &Record,
        slots: Vec<FilledSlot>,
        is_unused: bool,
    ) {
        for FilledSlot { vmid, held_name, pool_slot } in slots {
            self.return_pool_slot(parent, vmid, pool_slot, is_unused).await;
            drop(held_name);
            self.leave_family(parent.net, parent.family, vmid).await;
        }
    }
}
