//! The VMs of a family on all hosts.

use super::{
    Core,
    host::Host,
    present::Running,
    state::Standing,
    ticket::{HostId, State, Ticket},
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A VM of a family that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyVm {
    /// The host that it runs on.
    pub host: HostId,
    /// The host's name.
    pub hostname: String,
    /// Where that host's vmmd is.
    pub address: String,
    /// Whether that host lives, as far as is known.
    pub standing: Standing,
    /// The ticket that it was made under; None on the master.
    pub ticket: Option<Uuid>,
    /// The vmid of the VM that it was cloned from; None on the master, or not known.
    pub parent_vmid: Option<u32>,
}

impl Core {
    /// Whether a host may call for a family: VMs of it are or were there, or are to be there, as
    /// far as is known; or none is known to be on another host. The master of a new family is not
    /// known before its host's next heartbeat.
    #[must_use]
    pub fn may_speak(&self, host: HostId, family: Uuid) -> bool {
        let has_master = |host: &Host| host.has_master(family);
        let is_on = |ticket: &Ticket| {
            ticket.parent_host == Some(host)
                || ticket.places.contains_key(&host)
                || ticket.clones.values().any(|place| *place == host)
        };
        let is_known = |ticket: &Ticket| ticket.parent_host.is_some() || !ticket.clones.is_empty();
        self.hosts.get(host).is_some_and(|host| host.is_home_of(family))
            || self.ledger.of_family(family).any(is_on)
            || !(self.hosts.all().any(|(_, host)| has_master(host))
                || self.ledger.of_family(family).any(is_known))
    }

    /// The VMs of a family that live, by vmid: its master, and the clones of its tickets. A master
    /// is known as soon as its host has said that it has it.
    #[must_use]
    pub fn family(&self, family: Uuid) -> BTreeMap<u32, FamilyVm> {
        let mut vms = BTreeMap::new();
        // A host that has not registered since the scheduler's start has not said where it is.
        let on = |host: &Host, ticket, parent_vmid| {
            let info = host.info.as_ref()?;
            let (hostname, address, standing) = (info.name.clone(), info.address.clone(), host.standing());
            Some(FamilyVm { host: info.id, hostname, address, standing, ticket, parent_vmid })
        };
        for (_, host) in self.hosts.all() {
            let master = on(host, None, None).filter(|_| host.has_master(family));
            vms.extend(master.map(|master| (0, master)));
            // Clones that run, though their ticket is over or not remembered.
            let of_family = host.ghosts().map(|(ghost, _)| ghost).filter(|ghost| ghost.family == family);
            let there =
                |ghost: &Running| Some((ghost.vmid, on(host, Some(ghost.ticket), ghost.parent_vmid)?));
            vms.extend(of_family.filter_map(there));
        }
        for ticket in self.ledger.of_family(family).filter(|ticket| ticket.state == State::Used) {
            for (vmid, id) in ticket.live() {
                let vm = self.hosts.get(id).and_then(|host| on(host, Some(ticket.id), ticket.parent_vmid));
                vms.extend(vm.map(|vm| (vmid, vm)));
            }
        }
        vms
    }
}
