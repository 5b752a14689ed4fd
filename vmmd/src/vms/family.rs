//! Families: their numbers on this host, their vmids, their bridges.
//!
//! A vmid is never reused. The next vmid is written down before a VM gets one, so a `vmmd` that is
//! killed during a clone leaves a gap, and never two VMs with the same address.

use super::{blocking::blocking, error::Error, host::Host, table::families::Left, vm::Vm};
use crate::{
    plan::{address::FamilyNet, address::VMID_MAX, lifecycle::Phase},
    store::record::Record,
};
use futures::future::join_all;
use patina_daemon::chain;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// How long a warm VM that nobody will use may take to be gone.
const DISCARD_PATIENCE: Duration = Duration::from_secs(5);
/// How many vmids are reserved at least, and at most, with one call.
const RESERVED_MIN: u32 = 16;
const RESERVED_MAX: u32 = scheduler::core::api::VMIDS_MAX;

impl Host {
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

    /// Reserves vmids at the scheduler, if the family has VMs on other hosts and this host has not
    /// enough for `count` clones. The caller takes them while it holds [`Self::reserving`].
    ///
    /// # Errors
    /// The family has not so many left, or the scheduler does not answer.
    pub(super) async fn reserve_vmids(&self, of: &Record, count: u32) -> Result<(), Error> {
        let (index, family) = (of.net.index, of.family);
        while let Some((missing, at_least)) = self.table.missing_vmids(index, family, count) {
            // Some more, for the next calls and for the pool.
            let wanted = missing.clamp(RESERVED_MIN, RESERVED_MAX);
            let vmids = self.tickets.reserve_vmids(family, wanted, at_least).await?;
            if vmids.is_empty() || vmids.start < at_least || vmids.end > VMID_MAX + 1 {
                let text = format!("reserve vmids: the scheduler gives {vmids:?}");
                return Err(Error::Scheduler(Box::new(tonic::Status::internal(text))));
            }
            self.table.add_vmids(index, family, vmids);
            // Another host may have said that it has VMs with these: it has none.
            self.route(family).await?;
        }
        Ok(())
    }

    /// A VM that runs has been found: its family lives, and its vmids are taken.
    pub(super) fn find_family(&self, record: &Record) {
        let written = self.state.next_vmid(record.family).unwrap_or_else(|error| {
            tracing::error!(family = %record.family, error = %chain(&error), "the family gets no more clones");
            Some(VMID_MAX + 1)
        });
        let next = written.unwrap_or(0).max(record.vmid + 1);
        self.table.join_family(record.net.index, record.family, record.vmid, next);
        self.members_changed();
    }

    /// A VM of the family has ended, or was never made: the last one takes warm VMs, tickets and
    /// the bridge along.
    pub(super) async fn leave_family(&self, net: FamilyNet, family: Uuid, vmid: u32) {
        let left = self.table.leave_family(net.index, vmid);
        self.members_changed();
        let Left::Nobody(pool_slots) = left else { return };
        // What comes later than that ends as soon as it is there: it finds that nobody wants it.
        join_all(pool_slots.into_iter().map(|pool_slot| timeout(DISCARD_PATIENCE, pool_slot.discard())))
            .await;
        self.forget_tickets(family);
        if let Err(error) = self.net.release(net).await {
            tracing::error!(bridge = net.bridge(), error = %chain(&error), "the bridge stays until the next start of vmmd");
        }
        if let Err(error) = self.state.forget_family(family) {
            tracing::error!(%family, error = %chain(&error), "the family's file stays until the next start of vmmd");
        }
        self.table.forget_family(net.index);
    }

    /// The families that have a VM that runs.
    pub(super) fn living_families(&self) -> Vec<Uuid> {
        let runs = |vm: &&Arc<Vm>| !matches!(vm.status().phase, Phase::Ended(_));
        self.table.all().iter().filter(runs).map(|vm| vm.record.family).collect()
    }
}
