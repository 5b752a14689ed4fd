//! Converts VMs into the scheduler's messages.

use super::ticket_of;
use crate::{plan::lifecycle::Ended, store::record::Record};
use patina_control::end::EndKind;
use patina_proto::v1::{RunningClone, VmEnd};

/// How a VM ended, in the scheduler's words.
pub(in crate::vms) fn end(ended: &Ended) -> VmEnd {
    match ended.end.kind {
        EndKind::Killed => VmEnd::Killed,
        EndKind::Joined => VmEnd::Joined,
        _ => VmEnd::Ended,
    }
}

/// A VM that is a clone, as the scheduler knows it.
pub(in crate::vms) fn running(record: &Record) -> Option<RunningClone> {
    Some(RunningClone {
        ticket: ticket_of(record)?.to_string(),
        family: record.family.to_string(),
        vmid: record.vmid,
        vcpus: record.vcpus.into(),
        memory_mib: record.memory_mib,
        parent_vmid: record.origin.as_ref().map(|origin| origin.parent_vmid),
        // Empty: here. A barrier waits for the VM that cloned, wherever that is.
        parent_host_id: record
            .origin
            .as_ref()
            .and_then(|origin| origin.parent_host)
            .map_or_else(String::new, |host| host.to_string()),
    })
}
