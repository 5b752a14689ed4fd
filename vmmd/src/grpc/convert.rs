//! Converts VMs to messages.

use crate::{
    pager::Pager,
    plan::{address::FAMILY_PREFIX, lifecycle::Phase, spec::Port},
    vms::{
        Vm,
        clone::{Clones, Made, Outcome},
        table::Entry,
    },
};
use patina_control::end::EndKind;
use patina_daemon::chain;
use patina_proto::v1::{self, PublishedPort, clone_outcome};
use scheduler::host::facts::message;
use std::{sync::Arc, time::Duration};

/// A page of RAM.
const PAGE_KIB: u64 = 4;

/// The entry of a name. Of a VM that is not taken over, it has as much as is known.
#[must_use]
pub fn entry(entry: &Entry) -> v1::Vm {
    let (name, state, problem) = match entry {
        Entry::Vm(known) => return vm(known),
        Entry::Adopting(name) => (name, v1::VmState::Adopting, String::new()),
        Entry::Broken(name, broken) => (name, v1::VmState::Broken, broken.problem.clone()),
    };
    let mut message = v1::Vm { name: name.clone(), problem, ..v1::Vm::default() };
    message.set_state(state);
    message
}

/// A VM as it stands now.
#[must_use]
pub fn vm(vm: &Vm) -> v1::Vm {
    let record = &vm.record;
    let status = vm.status();
    let mut message = v1::Vm {
        name: record.name.clone(),
        uuid: record.uuid.to_string(),
        family: record.family.to_string(),
        vmid: record.vmid,
        parent_vmid: record.origin.as_ref().map(|origin| origin.parent_vmid),
        vcpus: record.vcpus.into(),
        memory_mib: record.memory_mib,
        ip: record.net.ip(record.vmid).map(|ip| ip.to_string()).unwrap_or_default(),
        prefix: FAMILY_PREFIX.into(),
        gateway: record.net.gateway().to_string(),
        mac: record.net.mac(record.vmid),
        bridge: record.net.bridge(),
        tap: record.net.tap(record.vmid),
        ports: status.ports.iter().map(port).collect(),
        kernel: record.kernel.display().to_string(),
        rootfs: record.rootfs.display().to_string(),
        created_unix_ms: record.created_unix_ms,
        ticket: record.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
        ready_after_us: status.ready_after_us.unwrap_or(0),
        snapshot: record.snapshot.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        image: record.image.clone().unwrap_or_default(),
        cpu_baseline: record.cpu_baseline.clone(),
        needs: record.needs.as_ref().map(|needs| message(needs, Pager::is_supported())),
        ..v1::Vm::default()
    };
    let problem = status.problem();
    match status.phase {
        Phase::Booting => message.set_state(v1::VmState::Booting),
        Phase::Ready => message.set_state(v1::VmState::Ready),
        Phase::Ended(ended) => {
            message.set_state(v1::VmState::Ended);
            message.set_end_kind(end_kind(ended.end.kind));
            message.end_reason = ended.end.reason;
            message.ended_unix_ms = ended.unix_ms;
            return message;
        }
    }
    message.problem = problem.unwrap_or_default();
    message.pid = record.process.as_ref().map_or(0, |process| process.pid);
    message
}

/// What came of cloning.
#[must_use]
pub fn clones(clones: Clones) -> v1::CloneVmResponse {
    let Clones { freeze, frozen, outcomes } = clones;
    v1::CloneVmResponse {
        clones: outcomes.into_iter().map(outcome).collect(),
        freeze_us: us(freeze),
        pause_us: frozen.pause_us,
        copied_kib: frozen.copied_pages.saturating_mul(PAGE_KIB),
        copied_beside_kib: frozen.copied_beside_pages.saturating_mul(PAGE_KIB),
    }
}

/// Clones that an earlier vmmd has made with a call; how long that took is not known any more.
pub fn clones_made(made: &[Arc<Vm>]) -> v1::CloneVmResponse {
    let outcome = |made: &Arc<Vm>| v1::CloneOutcome {
        vmid: made.record.vmid,
        outcome: Some(clone_outcome::Outcome::Vm(vm(made))),
        executing_after_us: 0,
    };
    v1::CloneVmResponse { clones: made.iter().map(outcome).collect(), ..v1::CloneVmResponse::default() }
}

pub(super) fn outcome(Outcome { vmid, made }: Outcome) -> v1::CloneOutcome {
    let (outcome, executing_after_us) = match made {
        Ok((Made::Here(made), times)) => (clone_outcome::Outcome::Vm(vm(&made)), us(times.executing)),
        Ok((Made::There(made), times)) => (clone_outcome::Outcome::Vm(*made), us(times.executing)),
        Err(error) => (clone_outcome::Outcome::Error(chain(&error)), 0),
    };
    v1::CloneOutcome { vmid, outcome: Some(outcome), executing_after_us }
}

pub(super) fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn port(port: &Port) -> PublishedPort {
    PublishedPort {
        host_port: port.host.port().into(),
        guest_port: port.guest_port.into(),
        host_address: port.host.ip().to_string(),
    }
}

fn end_kind(kind: EndKind) -> v1::EndKind {
    match kind {
        EndKind::PoweredOff => v1::EndKind::PoweredOff,
        EndKind::Rebooted => v1::EndKind::Rebooted,
        EndKind::Panicked => v1::EndKind::Panicked,
        EndKind::TripleFaulted => v1::EndKind::TripleFaulted,
        EndKind::Killed => v1::EndKind::Killed,
        EndKind::Joined => v1::EndKind::Joined,
        EndKind::VmmError => v1::EndKind::VmmError,
        EndKind::VmmDied => v1::EndKind::VmmDied,
        EndKind::DataLoss => v1::EndKind::DataLoss,
        // Of a newer vmm; the reason says more.
        EndKind::Other => v1::EndKind::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::vm::tests::ended_vm;

    #[test]
    fn an_ended_vm_says_how_and_has_no_process() {
        let message = vm(&ended_vm("a"));
        assert_eq!((message.name.as_str(), message.pid), ("a", 0));
        assert_eq!((message.state(), message.end_kind()), (v1::VmState::Ended, v1::EndKind::PoweredOff));
        assert_eq!((message.ip.as_str(), message.gateway.as_str()), ("100.64.32.1", "100.64.47.254"));
        assert_eq!(message.ports[0].host_address, "127.0.0.1");
    }
}
