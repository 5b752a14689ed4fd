//! A family with running VMs: its vmids, its pool of warm VMs, and its prefault list.

use super::living::Living;
use crate::{plan::address::VMID_MAX, process::generation::PrefaultList, vms::warm::Pool};
use std::sync::Arc;
use tokio::sync::Notify;
use uuid::Uuid;

/// A family of which a VM lives.
#[derive(Debug)]
pub(in crate::vms::table) struct Family {
    pub(super) uuid: Uuid,
    /// Its VMs that live, or are being made. When there is none, its bridge is being deleted.
    pub(super) living: Living,
    pub(super) pool: Pool,
    /// How many vmids were pulled and are not released yet.
    pub(super) clearing: usize,
    /// All vmids below this are written down as given.
    pub(super) written: u32,
    /// It has VMs on other hosts, so that its vmids are reserved at the scheduler. All below this
    /// may be some VM's.
    pub(super) shared_from: Option<u32>,
    /// There is something to be done for the pool, once it is kept.
    pub(super) changed: Option<Arc<Notify>>,
    /// How many warm VMs have died since that was asked last.
    pub(super) losses: u32,
    pub(super) prefault_list: List,
}

/// What a family's clones write before they are ready.
#[derive(Debug, Default)]
pub(super) enum List {
    #[default]
    Unknown,
    /// A first clone is being asked.
    Asked,
    Known(Arc<PrefaultList>),
}

impl Family {
    pub(super) fn new(uuid: Uuid, next_vmid: u32) -> Self {
        Self {
            uuid,
            living: Living::default(),
            pool: Pool::from(next_vmid),
            clearing: 0,
            written: next_vmid,
            // Written down so that a vmmd that follows knows it.
            shared_from: (next_vmid > VMID_MAX).then_some(0),
            changed: None,
            losses: 0,
            prefault_list: List::Unknown,
        }
    }

    pub(super) fn release(&mut self, vmid: u32) {
        self.clearing = self.clearing.saturating_sub(1);
        self.pool.release(vmid);
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Some(changed) = &self.changed {
            // One waits, and if it does not wait now, it will find that it need not.
            changed.notify_one();
        }
    }
}
