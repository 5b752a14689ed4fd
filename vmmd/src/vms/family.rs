//! Families: their numbers on this host, their vmids, their bridges.
//!
//! A vmid is given once: the next one is written down before any VM gets it, so that a `vmmd` that is killed in the
//! middle of a clone leaves a gap and never a second VM of the same address.

use super::{
    blocking::blocking,
    error::Error,
    host::Host,
    table::families::{CloneSlot, CloneSlots, Left},
    vm::Vm,
    warm::PoolSlot,
    warm_up::For,
};
use crate::{
    plan::{address::FamilyNet, address::VMID_MAX, lifecycle::Phase},
    store::record::Record,
};
use futures::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// How long a warm VM that nobody will use may take to be gone.
const DISCARD_PATIENCE: Duration = Duration::from_secs(5);

/// A clone slot whose warm VM is made, or is being made.
#[derive(Debug)]
pub(super) struct FilledSlot {
    pub vmid: u32,
    pub held_name: super::table::HeldName,
    pub pool_slot: PoolSlot,
}

impl Host {
    /// Takes clone slots for `count` clones of a VM: vmids and names, and what is warm. Each of them lives, until [`Self::leave_family`].
    ///
    /// # Errors
    /// The family has ended or has not so many vmids left; the host keeps too many VMs.
    pub(super) fn take_clone_slots(&self, parent: &Record, count: u32) -> Result<Vec<CloneSlot>, Error> {
        let CloneSlots { slots, passed } = self.table.take_clone_slots(parent, count)?;
        for pool_slot in passed {
            tokio::spawn(pool_slot.discard());
        }
        Ok(slots)
    }

    /// The clones of these slots may be made: what is not warm is being made from now on.
    pub(super) fn fill_clone_slots(
        self: &Arc<Self>,
        parent: &Record,
        slots: Vec<CloneSlot>,
    ) -> Vec<FilledSlot> {
        let fill = |CloneSlot { vmid, held_name, pool_slot }| {
            let name = || held_name.name().to_owned();
            let pool_slot = pool_slot.unwrap_or_else(|| self.make_warm(parent, vmid, name(), For::Clone).0);
            FilledSlot { vmid, held_name, pool_slot }
        };
        slots.into_iter().map(fill).collect()
    }

    /// The clones of these slots may not be made. Vmids that are not unused, as far as the scheduler knows, are not given again.
    pub(super) async fn refuse_clone_slots(&self, parent: &Record, slots: Vec<CloneSlot>, is_unused: bool) {
        for CloneSlot { vmid, held_name, pool_slot } in slots {
            match pool_slot {
                Some(pool_slot) => self.return_pool_slot(parent, vmid, pool_slot, is_unused).await,
                None if is_unused => self.table.unbind(parent.net.index, parent.family, vmid),
                None => {}
            }
            drop(held_name);
            self.leave_family(parent.net, parent.family).await;
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

    /// The clones of these slots are not made after all: what is warm is for the next ones, if its vmid is.
    pub(super) async fn return_clone_slots(&self, parent: &Record, slots: Vec<FilledSlot>, is_unused: bool) {
        for FilledSlot { vmid, held_name, pool_slot } in slots {
            self.return_pool_slot(parent, vmid, pool_slot, is_unused).await;
            drop(held_name);
            self.leave_family(parent.net, parent.family).await;
        }
    }

    /// Writes down the vmids that were taken in a family. Before that none of them may be used.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) async fn write_vmids(self: &Arc<Self>, parent: &Record) -> Result<(), Error> {
        let (index, family) = (parent.net.index, parent.family);
        // One at a time: what is written last must be the greatest.
        let _turn = self.numbering.lock().await;
        let Some(next) = self.table.unwritten(index, family) else { return Ok(()) };
        let host = Arc::clone(self);
        blocking(move || Ok(host.state.save_next_vmid(family, next)?)).await?;
        self.table.written(index, family, next);
        Ok(())
    }

    /// A VM that runs has been found: its family lives, and its vmids are taken.
    pub(super) fn find_family(&self, record: &Record) {
        let written = self.state.next_vmid(record.family).unwrap_or_else(|error| {
            tracing::error!(family = %record.family, %error, "the family gets no more clones");
            Some(VMID_MAX + 1)
        });
        let next = written.unwrap_or(0).max(record.vmid + 1);
        self.table.join_family(record.net.index, record.family, next);
    }

    /// A VM of the family has ended, or was never made: the last one takes warm VMs, tickets and the bridge along.
    pub(super) async fn leave_family(&self, net: FamilyNet, family: Uuid) {
        let Left::Nobody(pool_slots) = self.table.leave_family(net.index) else { return };
        // What comes later than that ends as soon as it is there: it finds that nobody wants it.
        join_all(pool_slots.into_iter().map(|pool_slot| timeout(DISCARD_PATIENCE, pool_slot.discard())))
            .await;
        self.forget_tickets(family);
        if let Err(error) = self.net.release(net).await {
            tracing::error!(bridge = net.bridge(), %error, "the bridge stays until the next start of vmmd");
        }
        if let Err(error) = self.state.forget_family(family) {
            tracing::error!(%family, %error, "the family's file stays until the next start of vmmd");
        }
        self.table.forget_family(net.index);
    }

    /// The families that have a VM that runs.
    pub(super) fn living_families(&self) -> Vec<Uuid> {
        let runs = |vm: &&Arc<Vm>| !matches!(vm.status().phase, Phase::Ended(_));
        self.table.all().iter().filter(runs).map(|vm| vm.record.family).collect()
    }
}
