//! What the scheduler is told of this host's VMs, and what it orders.

use super::ticket_of;
use crate::{
    plan::lifecycle::{Ended, Phase},
    store::record::Record,
    vms::{host::Host, vm::Vm},
};
use patina_control::end::EndKind;
use patina_proto::v1::{RunningClone, VmEnd};
use scheduler::host::admission::Vms;
use std::sync::{Arc, Weak};

/// The VMs of a host for its scheduler. The host may be gone before the scheduler has noticed.
#[derive(Debug)]
pub(in crate::vms) struct VmsOf(Weak<Host>);

impl VmsOf {
    /// Makes a view of this host's VMs that does not keep the host.
    #[must_use]
    pub(in crate::vms) fn new(host: &Arc<Host>) -> Self {
        Self(Arc::downgrade(host))
    }

    fn alive<T>(&self, look: impl Fn(&Record) -> Option<T>) -> Vec<T> {
        let Some(host) = self.0.upgrade() else { return Vec::new() };
        let runs = |vm: &&Arc<Vm>| !matches!(vm.status().phase, Phase::Ended(_));
        let mut alive: Vec<T> =
            host.table.all().iter().filter(runs).filter_map(|vm| look(&vm.record)).collect();
        // Of what cannot be looked at nobody knows that it has ended.
        let broken = host.table.broken();
        let may_run = broken.iter().filter_map(|(_, broken)| broken.record.as_ref());
        alive.extend(may_run.filter(|record| record.ended.is_none()).filter_map(look));
        alive
    }
}

impl Vms for VmsOf {
    fn running(&self) -> Vec<RunningClone> {
        self.alive(running)
    }

    fn masters(&self) -> Vec<String> {
        self.alive(|record| (record.vmid == 0).then(|| record.family.to_string()))
    }

    fn end(&self, family: &str, ticket: &str, vmids: &[u32], reason: &str) {
        match (self.0.upgrade(), family.parse(), ticket.parse()) {
            (Some(host), Ok(family), Ok(ticket)) => host.kill_clones(family, ticket, vmids, reason),
            (None, ..) => {}
            _ => tracing::warn!(family, ticket, "the scheduler names a family or a ticket that is no UUID"),
        }
    }
}

/// How a VM ended, in the scheduler's words.
pub(in crate::vms) fn end(ended: &Ended) -> VmEnd {
    match ended.end.kind {
        EndKind::Killed => VmEnd::Killed,
        EndKind::Joined => VmEnd::Joined,
        _ => VmEnd::Ended,
    }
}

/// A VM that is a clone, as the scheduler knows it.
pub(super) fn running(record: &Record) -> Option<RunningClone> {
    Some(RunningClone {
        ticket: ticket_of(record)?.to_string(),
        family: record.family.to_string(),
        vmid: record.vmid,
        vcpus: record.vcpus.into(),
        memory_mib: record.memory_mib,
        parent_vmid: record.origin.as_ref().map(|origin| origin.parent_vmid),
    })
}
