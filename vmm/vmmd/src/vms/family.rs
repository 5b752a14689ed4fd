//! Families: their numbers on this host, their vmids, their bridges.
//!
//! A vmid is given once: the next one is written down before any VM gets it, so that a `vmmd` that is killed in the
//! middle of a clone leaves a gap and never a second VM of the same address.

use super::{Host, Vm, blocking, error::Error};
use crate::{
    plan::{address::FamilyNet, address::VMID_MAX, lifecycle::Phase},
    store::record::Record,
};
use std::{ops::Range, sync::Arc};
use uuid::Uuid;

impl Host {
    /// Takes the vmids of `count` clones of a VM. Each of them lives from now on, until [`Self::leave_family`].
    ///
    /// # Errors
    /// The family has ended or has not so many left; they cannot be written down.
    pub(super) async fn number_clones(
        self: &Arc<Self>,
        parent: &Record,
        count: u32,
    ) -> Result<Range<u32>, Error> {
        // One at a time: what is written last must be the greatest.
        let _turn = self.numbering.lock().await;
        let vmids = self.table.take_vmids(parent, count)?;
        let (host, family, next) = (Arc::clone(self), parent.family, vmids.end);
        let written = blocking(move || Ok(host.state.save_next_vmid(family, next)?)).await;
        if let Err(error) = written {
            for _ in vmids {
                self.leave_family(parent.net, family).await;
            }
            return Err(error);
        }
        Ok(vmids)
    }

    /// A VM that runs has been found: its family lives, and its vmids are taken.
    pub(super) fn find_family(&self, record: &Record) {
        let written = self.state.next_vmid(record.family).unwrap_or_else(|error| {
            tracing::error!(family = %record.family, %error, "the family gets no more clones");
            Some(VMID_MAX + 1)
        });
        let next = written.unwrap_or(0).max(record.vmid + 1);
        self.table.join_family(record.net.index, next);
    }

    /// A VM of the family has ended, or was never made: the last one takes the bridge along.
    pub(super) async fn leave_family(&self, net: FamilyNet, family: Uuid) {
        if !self.table.leave_family(net.index) {
            return;
        }
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
