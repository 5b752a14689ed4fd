//! Converts answers to messages.

use crate::{
    core::{
        api::HostChange,
        family::FamilyVm,
        record::Scheduling,
        state::{HostState, Standing},
        ticket::{Outcome, State, Ticket, VmEnd},
    },
    engine::Seen,
    host::facts::message,
};
use patina_proto::v1;

pub(super) fn ticket(seen: Seen) -> v1::Ticket {
    let Seen { ticket, live, host_names, expires_in_ms } = seen;
    let placements = ticket.places.iter().zip(host_names).map(|((host, vms), name)| v1::Placement {
        host_id: host.to_string(),
        host: name,
        vms: *vms,
    });
    v1::Ticket {
        id: ticket.id.to_string(),
        family: ticket.family.to_string(),
        state: state(ticket.state).into(),
        epoch: ticket.epoch,
        vms: ticket.vms(),
        vcpus: ticket.vcpus,
        memory_mib: ticket.memory_mib,
        min_cpus_per_vm: ticket.min_cpus_per_vm,
        placements: placements.collect(),
        parent_vmid: ticket.parent_vmid,
        live,
        results: results(&ticket),
        granted_unix_ms: ticket.granted_unix_ms,
        expires_unix_ms: if expires_in_ms > 0 { ticket.expires_unix_ms } else { 0 },
        loose: ticket.immediate,
        expires_in_ms,
        unused_host_ids: ticket.to_come().map(|(host, _)| host.to_string()).collect(),
    }
}

fn state(state: State) -> v1::TicketState {
    match state {
        State::Granted => v1::TicketState::Granted,
        State::Used => v1::TicketState::Used,
        State::Released => v1::TicketState::Released,
        State::Expired => v1::TicketState::Expired,
        State::Fenced => v1::TicketState::Fenced,
    }
}

/// Of clones that have ended.
pub(super) fn results(ticket: &Ticket) -> Vec<v1::VmResult> {
    let result = |(vmid, outcome): (&u32, &Outcome)| {
        let end = match outcome.end? {
            VmEnd::Joined => v1::VmEnd::Joined,
            VmEnd::Ended => v1::VmEnd::Ended,
            VmEnd::Killed => v1::VmEnd::Killed,
            VmEnd::Lost => v1::VmEnd::Lost,
        };
        let Outcome { status, data_bytes, reported, .. } = *outcome;
        let data_dropped = outcome.is_dropped();
        Some(v1::VmResult { vmid: *vmid, end: end.into(), status, data_bytes, reported, data_dropped })
    };
    ticket.results.iter().filter_map(result).collect()
}

fn scheduling(scheduling: Scheduling) -> v1::HostScheduling {
    match scheduling {
        Scheduling::Open => v1::HostScheduling::Open,
        Scheduling::Cordoned => v1::HostScheduling::Cordoned,
        Scheduling::Draining => v1::HostScheduling::Draining,
    }
}

pub(super) fn host_change(change: HostChange) -> v1::HostChange {
    let HostChange { state, clones, released, masters } = change;
    let clones = clones.into_iter().map(|(ticket, family, vmid)| v1::HostClone {
        ticket: ticket.to_string(),
        family: family.to_string(),
        vmid,
    });
    v1::HostChange {
        clones: clones.collect(),
        host: Some(host(state)),
        released_tickets: released,
        masters: masters.iter().map(ToString::to_string).collect(),
    }
}

fn standing(standing: Standing) -> v1::HostState {
    match standing {
        Standing::Up => v1::HostState::Up,
        Standing::Suspect => v1::HostState::Suspect,
        Standing::Lost => v1::HostState::Lost,
    }
}

pub(super) fn family_vm((vmid, vm): (u32, FamilyVm)) -> v1::FamilyVm {
    let FamilyVm { host, hostname, address, standing: of_host, ticket, parent_vmid } = vm;
    v1::FamilyVm {
        vmid,
        host_id: host.to_string(),
        host: hostname,
        host_state: standing(of_host).into(),
        ticket: ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
        parent_vmid,
        host_address: address,
    }
}

pub(super) fn host(host: HostState) -> v1::HostStatus {
    let (alive, state) = (host.is_up(), standing(host.standing).into());
    let HostState { info, .. } = host;
    v1::HostStatus {
        info: Some(v1::HostInfo {
            id: info.id.to_string(),
            name: info.name,
            address: info.address,
            cpus: info.cpus,
            memory_mib: info.memory_mib,
            max_vms: info.max_vms.unwrap_or(0),
            cpu_percent: info.cpu_percent.unwrap_or(0),
            memory_percent: info.memory_percent.unwrap_or(0),
            identity: info.identity.map(|of| v1::HostIdentity {
                instance: of.instance,
                boot: of.boot,
                machine: of.machine,
                folder: of.folder,
            }),
            overlay: info.overlay,
            facts: info.facts.map(|of| message(&of.host, of.lazy_memory)),
            network: info.network,
        }),
        alive,
        epoch: host.epoch,
        cpus: host.cpus,
        memory_mib: host.memory_mib,
        held_cpus: host.held_cpus,
        held_memory_mib: host.held_memory_mib,
        held_vms: host.held_vms,
        seen_unix_ms: host.seen_unix_ms,
        state,
        state_unix_ms: host.since_unix_ms,
        scheduling: scheduling(host.scheduling).into(),
        scheduling_unix_ms: host.scheduling_unix_ms,
        lost_unix_ms: host.lost_unix_ms.unwrap_or(0),
        free_memory_mib: host.free_memory_mib,
        images: Some(v1::Images { digests: host.images.iter().map(|image| image.to_vec()).collect() }),
    }
}
