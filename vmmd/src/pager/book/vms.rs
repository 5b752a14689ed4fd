//! The VMs of the book.

use super::{super::order::Order, Book, Held, LONG_AGO, LazyMemory, VmEntry};
use crate::{pager::error::PagerError, store::VmDir};
use patina_control::{
    end::End,
    pager::{Id, PAGER_VMS_MAX},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

impl Book {
    /// Adds a VM that uses these layers.
    ///
    /// # Errors
    /// There are too many.
    pub fn enter_vm(
        self: &Arc<Self>,
        vm: &Id,
        held: Held,
        dir: &VmDir,
        started: Option<Instant>,
    ) -> Result<LazyMemory, PagerError> {
        let lost = watch::Sender::new(None);
        let memory = LazyMemory { vm: vm.clone(), book: Arc::clone(self), lost: lost.subscribe() };
        let mut tables = self.tables();
        let count = tables.vms.len();
        if count >= PAGER_VMS_MAX {
            drop(tables);
            return Err(PagerError::Full(count));
        }
        let entry = VmEntry { held, dir: dir.clone(), started, lost };
        let replaced = tables.vms.insert(vm.clone(), entry);
        // What it holds takes the lock as it goes.
        drop((tables, replaced));
        Ok(memory)
    }

    pub(in crate::pager) fn moved(&self, vm: &Id, dir: &VmDir) {
        if let Some(entry) = self.tables().vms.get_mut(vm) {
            entry.dir = dir.clone();
        }
    }

    /// A [`LazyMemory`] is gone.
    pub(in crate::pager) fn forget_vm(&self, vm: &Id) {
        let Some(entry) = self.tables().vms.remove(vm) else { return };
        // Before its layers: the pager forgets none that a VM uses.
        self.order(Order::ForgetVm(vm.clone()));
        drop(entry);
    }

    /// A VM must end. False: it is not in the book.
    pub(in crate::pager) fn lose(&self, vm: &Id, end: End) -> bool {
        let tables = self.tables();
        let Some(entry) = tables.vms.get(vm) else { return false };
        entry.lost.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(end);
            is_first
        })
    }

    /// The layers of a VM, by number, its folder, and how long it has run.
    pub(in crate::pager) fn vm(&self, vm: &Id) -> Option<(Vec<Id>, VmDir, Duration)> {
        let tables = self.tables();
        let entry = tables.vms.get(vm)?;
        let layers = entry.held.filling.iter().map(|layer| layer.parts.id.clone()).collect();
        let age = entry.started.map_or(LONG_AGO, |started| started.elapsed());
        Some((layers, entry.dir.clone(), age))
    }

    /// The VMs that the pager serves.
    pub(in crate::pager) fn vms(&self) -> Vec<Id> {
        let tables = self.tables();
        let served = tables.vms.iter().filter(|(_, entry)| !entry.held.filling.is_empty());
        served.map(|(vm, _)| vm.clone()).collect()
    }

    /// The VMs that use a layer.
    pub(in crate::pager) fn users(&self, layer: &Id) -> Vec<Id> {
        let tables = self.tables();
        let uses = |entry: &VmEntry| entry.held.filling.iter().any(|used| used.parts.id == *layer);
        tables.vms.iter().filter(|(_, entry)| uses(entry)).map(|(vm, _)| vm.clone()).collect()
    }
}
