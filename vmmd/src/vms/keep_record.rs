//! Writes the records of ended VMs, and retries if that fails.

use super::{host::Host, vm::Vm};
use crate::store::{Lasting, VmDir, record::Record};
use patina_control::best_effort;
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use std::sync::Arc;
use tokio::task::spawn_blocking;

impl Host {
    /// Writes the record of a VM that has ended; one that cannot be written is written later. To be
    /// called where it may block.
    pub(super) fn keep_record(&self, dir: &VmDir, record: &Record, lasting: Lasting) {
        let written = dir.save(record, lasting);
        let mut unwritten = self.unwritten();
        match written {
            Ok(()) => {
                if unwritten.remove(&record.name).is_some() {
                    tracing::info!(vm = record.name, "its record is written after all");
                }
            }
            Err(error) => {
                if unwritten.insert(record.name.clone(), record.clone()).is_none() {
                    tracing::error!(vm = record.name, error = %chain(&error), "the record is not up to date; it is written again later");
                    self.tell(record, EventKind::Unwritten, chain(&error));
                }
            }
        }
    }

    /// Writes what could not be written. Whether something is left.
    pub(super) async fn write_again(self: &Arc<Self>) -> bool {
        let records: Vec<Record> = self.unwritten().values().cloned().collect();
        for record in records {
            let is_it = |vm: &Arc<Vm>| vm.record.uuid == record.uuid;
            match self.table.find(&record.name).ok().filter(is_it) {
                Some(vm) => {
                    let host = Arc::clone(self);
                    let kept =
                        spawn_blocking(move || host.keep_record(&vm.dir, &record, Lasting::Host)).await;
                    best_effort(kept, "what could not be written is tried again");
                }
                // Removed since.
                None => drop(self.unwritten().remove(&record.name)),
            }
        }
        !self.unwritten().is_empty()
    }
}
