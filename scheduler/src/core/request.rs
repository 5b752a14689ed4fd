//! Requests: refused at once, already granted, or queued.

use super::{
    Core,
    api::{Closed, CoreError, Demand, Effect, FAMILY_TICKETS_MAX, TICKET_VMS_MAX, Waiter},
    error::Free,
    facts::Misfits,
    place::{Want, closed_for, could, free_for, misfits_for, usable},
    state::Standing,
    ticket::HostId,
    waiting::{Kind, Place},
};
use std::collections::BTreeSet;
use uuid::Uuid;

impl Core {
    /// A ticket is wanted.
    pub(super) fn request(&mut self, waiter: Waiter, demand: Demand, out: &mut Vec<Effect>) {
        if let Some(id) = &demand.request_id {
            // Said again: the same ticket, or the same place in the queue.
            if let Some(ticket) = self.ledger.of_request(demand.family, id) {
                let id = ticket.id;
                return self.answer_ticket(waiter, Ok(id), out);
            }
            if let Some(request) = self.queue.of_id(demand.family, id) {
                return match self.check_waiting(demand.family, Kind::Request) {
                    Ok(()) => self.wait_for(request, waiter, &demand, out),
                    Err(error) => self.answer(waiter, Err(error), out),
                };
            }
        }
        let want = self.check(&demand);
        let want = match want.and_then(|want| self.check_waiting(demand.family, Kind::Request).map(|()| want))
        {
            Ok(want) => want,
            Err(error) => return self.answer(waiter, Err(error), out),
        };
        let request = self.queue.push(demand.clone(), want);
        self.wait_for(request, waiter, &demand, out);
    }

    /// Waits for a request, if only until the queue has been served.
    fn wait_for(&mut self, request: u64, waiter: Waiter, demand: &Demand, out: &mut Vec<Effect>) {
        self.queue.join(request, waiter);
        self.wait(waiter, Place::Request(request), demand.family, Some(demand.timeout_ms));
        self.serve(out);
        if demand.timeout_ms == 0 && self.waiting.place(waiter) == Some(Place::Request(request)) {
            let error = self.request_timed_out(request, waiter);
            self.answer(waiter, Err(error), out);
        }
    }

    /// What is to be placed, if anything can ever be.
    fn check(&self, demand: &Demand) -> Result<Want, CoreError> {
        let Demand { family, max_cpus, min_cpus_per_vm, vcpus, memory_mib, .. } = *demand;
        if min_cpus_per_vm > vcpus {
            return Err(CoreError::SmallVms { vcpus, min_cpus_per_vm });
        }
        let min_vms = demand.min_vms.max(1);
        let most = (max_cpus / vcpus.max(1)).min(TICKET_VMS_MAX);
        if most < min_vms {
            return Err(CoreError::FewCpus { max_cpus, most, vcpus, min_vms });
        }
        if let Some(by) = &demand.use_by {
            check_vmids(by.parent_vmid, &by.vmids)?;
            let given = u32::try_from(by.vmids.len()).unwrap_or(u32::MAX);
            if given != min_vms {
                return Err(CoreError::BadVmids { given, wanted: min_vms });
            }
            self.check_new(family, &by.vmids)?;
        }
        let single = demand.use_by.is_some();
        let want = Want {
            family,
            min: min_vms,
            most: if single { min_vms } else { most },
            vcpus,
            memory_mib,
            policy: demand.policy.unwrap_or(self.options.policy),
            single,
            // Clones by count are for one host, which is named.
            prefer: demand.prefer.filter(|_| !single),
            parent: demand.parent.filter(|_| !single),
            needs: demand.needs.clone(),
            images: demand.images.clone(),
            only: demand.hosts.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        };
        if self.is_impossible(&want) {
            return Err(self.no_fit(&want).unwrap_or(CoreError::Impossible { min_vms, vcpus, memory_mib }));
        }
        if self.ledger.open(family) >= FAMILY_TICKETS_MAX {
            return Err(CoreError::TooManyTickets);
        }
        Ok(want)
    }

    /// Whether not even empty hosts would do. As long as one is missing of which nothing is known,
    /// nobody knows.
    fn is_impossible(&self, want: &Want) -> bool {
        let is_unknown = |id: &HostId| self.hosts.get(*id).is_some_and(|host| host.info.is_none());
        let mut meant = self.hosts.away().iter().filter(|id| want.names(**id));
        if meant.any(is_unknown) || want.parent.as_ref().is_some_and(is_unknown) {
            return false;
        }
        let away = self.hosts.away().iter().filter(|id| want.may(&self.hosts, **id));
        let away: Vec<_> = away.filter_map(|id| self.hosts.get(*id)).collect();
        if away.is_empty() && !self.has_usable(want) {
            return false;
        }
        let sizes: Vec<_> = away.iter().map(|host| host.capacity).collect();
        !could(&self.hosts, want, &sizes, None)
    }

    /// Whether some host that may be chosen may be granted something.
    fn has_usable(&self, want: &Want) -> bool {
        if want.is_any() { !self.hosts.none_usable() } else { usable(&self.hosts, want).next().is_some() }
    }

    /// Why the hosts that the VM does not fit are what is missing; None: not even with them there
    /// would be enough.
    fn no_fit(&self, want: &Want) -> Option<CoreError> {
        let misfits = misfits_for(&self.hosts, want);
        let any = Want { parent: None, ..want.clone() };
        let is_it = misfits.hosts > 0 && could(&self.hosts, &any, &[], None);
        is_it.then(|| CoreError::NoFit { min_vms: want.min, misfits, closed: closed_for(&self.hosts, want) })
    }

    /// None of the vmids is that of a clone that lives.
    pub(super) fn check_new(&self, family: Uuid, vmids: &[u32]) -> Result<(), CoreError> {
        match vmids.iter().find(|vmid| self.ledger.is_live(family, **vmid)) {
            Some(vmid) => Err(CoreError::BadVmid(*vmid)),
            None => Ok(()),
        }
    }

    /// The answer to somebody whose time for a ticket is over.
    pub(super) fn request_timed_out(&mut self, request: u64, waiter: Waiter) -> CoreError {
        let want = self.queue.get(request).map(|request| &request.want);
        let error = want.map(|want| match self.all_closed(want) {
            Some(error) => error,
            None => self.no_room(want),
        });
        self.leave_request(request, waiter);
        error.unwrap_or(CoreError::NoCapacity {
            min_vms: 0,
            free: Free::default(),
            closed: Closed::default(),
            misfits: Misfits::default(),
        })
    }

    /// Why there is no room now.
    fn no_room(&self, want: &Want) -> CoreError {
        let (misfits, closed) = (misfits_for(&self.hosts, want), closed_for(&self.hosts, want));
        // Hosts that it fits and that are away may come back.
        let is_away = closed.suspect.saturating_add(closed.cordoned) > 0;
        if misfits.hosts > 0 && !is_away && !self.has_usable(want) {
            return CoreError::NoFit { min_vms: want.min, misfits, closed };
        }
        CoreError::NoCapacity { min_vms: want.min, free: free_for(&self.hosts, want), closed, misfits }
    }

    /// Why none of the hosts that are named may be granted anything; None: one may, or none is
    /// named.
    fn all_closed(&self, want: &Want) -> Option<CoreError> {
        if want.only.iter().any(|id| self.hosts.usable(*id).is_some()) {
            return None;
        }
        let id = *want.only.first()?;
        let host = self.hosts.get(id)?;
        let name = host.info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
        Some(match host.standing() {
            Standing::Up => CoreError::HostCordoned { host: id, name },
            Standing::Suspect => CoreError::HostSilent { host: id, name, is: "suspect" },
            Standing::Lost => CoreError::HostSilent { host: id, name, is: "lost" },
        })
    }

    /// Somebody does not wait for a ticket any more.
    pub(super) fn leave_request(&mut self, request: u64, waiter: Waiter) {
        if self.queue.leave(request, waiter) {
            self.take_request(request);
        }
    }
}

/// Numbers that clones can have: none twice, none the master's or the parent's.
pub(super) fn check_vmids(parent_vmid: u32, vmids: &[u32]) -> Result<(), CoreError> {
    if vmids.is_empty() {
        return Err(CoreError::BadVmids { given: 0, wanted: 1 });
    }
    let mut seen = BTreeSet::from([0, parent_vmid]);
    match vmids.iter().find(|vmid| !seen.insert(**vmid)) {
        Some(vmid) => Err(CoreError::BadVmid(*vmid)),
        None => Ok(()),
    }
}
