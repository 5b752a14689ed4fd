//! The life of a granted ticket: released, used, expired, kept for a while, forgotten.

use super::{
    Core,
    api::{CoreError, Effect, Named, Usage},
    request::check_vmids,
    room::Load,
    ticket::{HostId, Part, State, Ticket},
    timers::Timer,
};
use uuid::Uuid;

/// Most tickets of a family that are remembered after their end.
pub const FAMILY_OVER_MAX: usize = 1024;

impl Core {
    /// Gives a ticket back, or what is not used of it.
    pub(super) fn release(&mut self, named: Named, out: &mut Vec<Effect>) -> Result<Uuid, CoreError> {
        let ticket = self.ticket(named)?;
        match ticket.state {
            State::Granted => self.finish(named.id, State::Released, out),
            // Said again, there is nothing to release.
            State::Used if !ticket.parts.is_empty() => {
                self.drop_parts(named.id, None, out);
            }
            State::Used => return Err(CoreError::Used(named.id)),
            State::Released | State::Expired | State::Fenced => {}
        }
        Ok(named.id)
    }

    /// A host makes clones with a ticket, or with its part of it.
    pub(super) fn use_ticket(&mut self, usage: &Usage, out: &mut Vec<Effect>) -> Result<Uuid, CoreError> {
        let Usage { host, parent_vmid, parent_host, ref vmids, keep_others, .. } = *usage;
        let ticket = self.ticket(usage.ticket)?;
        let (id, family, load) = (ticket.id, ticket.family, Load::of(ticket));
        if is_same_use(ticket, usage) {
            return Ok(id);
        }
        self.check_use(ticket, usage)?;
        let wanted = u32::try_from(vmids.len()).unwrap_or(u32::MAX);
        let (mut places, mut parts) = (ticket.places.clone(), ticket.parts.clone());
        let (is_first, expires) = (ticket.state == State::Granted, ticket.expires_unix_ms);
        if parts.is_empty() && keep_others {
            let epoch = ticket.epoch;
            parts = places.keys().map(|host| (*host, Part { used: false, epoch })).collect();
        }
        if let Some(part) = parts.get_mut(&host) {
            part.used = true;
        }
        let has = places.insert(host, wanted).unwrap_or(0);
        self.free_on(host, &load, has.saturating_sub(wanted), true);
        if !keep_others {
            // A host without a part has clones that came back after it was given up.
            let has_used = |other: &HostId| !is_first && parts.get(other).is_none_or(|part| part.used);
            let is_used = |other: &HostId| *other == host || has_used(other);
            for (other, vms) in places.extract_if(.., |other, _| !is_used(other)) {
                self.free_on(other, &load, vms, false);
            }
            parts.retain(|other, _| places.contains_key(other));
        }
        if parts.values().all(|part| part.used) {
            self.timers.unset(expires, Timer::Expire(id));
        }
        // One that was given up with its host, and is to end, may still clone. A master that was
        // given up with its host is waited for when that is back.
        let parent_ended =
            self.ledger.has_ended(family, parent_vmid) || (parent_vmid == 0 && self.is_lost(parent_host));
        self.ledger.change(id, |ticket| {
            if is_first {
                (ticket.state, ticket.parent_ended) = (State::Used, parent_ended);
                (ticket.parent_vmid, ticket.parent_host) = (Some(parent_vmid), Some(parent_host));
            }
            ticket.clones.extend(vmids.iter().map(|vmid| (*vmid, host)));
            (ticket.places, ticket.parts) = (places, parts);
        });
        self.raise_vmids(family, vmids, out);
        self.put_state(id, out);
        Ok(id)
    }

    fn check_use(&self, ticket: &Ticket, usage: &Usage) -> Result<(), CoreError> {
        let Usage { host, parent_vmid, parent_host, ref vmids, .. } = *usage;
        if !ticket.is_to_come(host) {
            check_granted(ticket)?;
        }
        check_epoch(ticket, host, usage.epoch)?;
        let up = self.hosts.up(host).ok_or(CoreError::UnknownHost(host))?;
        if let Some(given) = usage.host_epoch.filter(|given| *given != up.epoch) {
            return Err(CoreError::StaleHost { host, given });
        }
        let other = CoreError::OtherHost { ticket: ticket.id, host };
        let has = ticket.places.get(&host).copied().ok_or(other)?;
        check_vmids(parent_vmid, vmids)?;
        let wanted = u32::try_from(vmids.len()).unwrap_or(u32::MAX);
        if wanted > has {
            return Err(CoreError::SmallTicket { ticket: ticket.id, wanted, has });
        }
        self.hosts.get(parent_host).ok_or(CoreError::UnknownHost(parent_host))?;
        if let Some(known) = ticket.parent_vmid
            && (known, ticket.parent_host) != (parent_vmid, Some(parent_host))
        {
            return Err(CoreError::OtherParent { ticket: ticket.id, parent_vmid: known });
        }
        // Those that have ended are remembered under their vmids, too.
        if let Some(vmid) = vmids.iter().find(|vmid| ticket.clones.contains_key(vmid)) {
            return Err(CoreError::BadVmid(*vmid));
        }
        self.check_new(ticket.family, vmids)
    }

    /// A granted ticket, or a part, was not used in time.
    pub(super) fn expire(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        match self.ledger.get(id).map(|ticket| ticket.state) {
            Some(State::Granted) => self.finish(id, State::Expired, out),
            Some(State::Used) => {
                self.drop_parts(id, None, out);
            }
            Some(State::Released | State::Expired | State::Fenced) | None => {}
        }
    }

    /// A ticket comes to its end: what it held is free.
    pub(super) fn finish(&mut self, id: Uuid, state: State, out: &mut Vec<Effect>) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let load = Load::of(ticket);
        let held: Vec<_> = ticket.places.keys().map(|host| (*host, ticket.held(*host))).collect();
        self.timers.unset(ticket.expires_unix_ms, Timer::Expire(id));
        for (host, vms) in held {
            self.free_on(host, &load, vms, false);
        }
        let (now, epoch) = (self.now, if state == State::Fenced { Some(self.next_epoch()) } else { None });
        self.ledger.change(id, |ticket| {
            ticket.state = state;
            ticket.parts.clear();
            ticket.epoch = epoch.unwrap_or(ticket.epoch);
            ticket.over_unix_ms = Some(now);
        });
        self.timers.set(now.saturating_add(self.options.remember_ms), Timer::Forget(id));
        self.put_state(id, out);
        if let Some(oldest) = self.ledger.surplus(load.family, FAMILY_OVER_MAX) {
            self.forget(oldest, out);
        }
    }

    /// VMs of a ticket on a host are free.
    pub(super) fn free_on(&mut self, host: HostId, load: &Load, vms: u32, left: bool) {
        self.hosts.release(host, load, vms, left);
        if vms > 0 {
            self.fresh.hosts.insert(host);
        }
    }

    /// A ticket need not be remembered any more.
    pub(super) fn forget(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        if self.ledger.get(id).is_none_or(|ticket| !ticket.is_over()) {
            return;
        }
        if let Some(ticket) = self.ledger.remove(id) {
            let at = ticket.over_unix_ms.unwrap_or_default().saturating_add(self.options.remember_ms);
            self.timers.unset(at, Timer::Forget(id));
        }
        let barrier = self.meetings.remove(&id).into_iter().flat_map(|meeting| meeting.into_waiters());
        let joins = self.joins.remove(&id).into_iter().flatten();
        for waiter in barrier.chain(joins).collect::<Vec<_>>() {
            self.answer(waiter, Err(CoreError::Unknown(id)), out);
        }
        out.push(Effect::Forget(id));
    }

    /// A ticket of before the scheduler's start.
    pub(super) fn recall(&mut self, mut ticket: Ticket) {
        let id = ticket.id;
        if ticket.is_spent() {
            // Never stored so: but who edits the store shall not have a ticket that never ends.
            (ticket.state, ticket.over_unix_ms) = (State::Released, Some(self.now));
        }
        if ticket.is_over() {
            let over = ticket.over_unix_ms.unwrap_or(self.now);
            self.timers.set(over.saturating_add(self.options.remember_ms), Timer::Forget(id));
        } else {
            for host in ticket.places.keys() {
                self.hosts.hold(*host, &Load::of(&ticket), ticket.held(*host));
                // It has all its time again: it was this scheduler that did not listen.
                self.give_up_after(*host, self.options.lost_after_ms);
            }
        }
        if ticket.state == State::Granted || ticket.vms_to_come() > 0 {
            self.timers.set(ticket.expires_unix_ms, Timer::Expire(id));
        }
        if ticket.state == State::Used {
            self.kills.recall(&ticket);
        }
        self.recall_data(&ticket);
        self.ledger.insert(ticket);
    }
}

/// Whether a ticket can still be used.
pub(super) fn check_granted(ticket: &Ticket) -> Result<(), CoreError> {
    match ticket.state {
        State::Granted => Ok(()),
        State::Used => Err(CoreError::Used(ticket.id)),
        State::Released => Err(CoreError::Released(ticket.id)),
        State::Expired => Err(CoreError::Expired(ticket.id)),
        State::Fenced => Err(CoreError::Fenced(ticket.id)),
    }
}

/// Whether a host knows the ticket's epoch, or one that it had since the host's part was granted.
pub(super) fn check_epoch(ticket: &Ticket, host: HostId, given: Option<u64>) -> Result<(), CoreError> {
    let least = ticket.parts.get(&host).map_or(ticket.epoch, |part| part.epoch);
    match given.filter(|given| !(least..=ticket.epoch).contains(given)) {
        Some(given) => Err(CoreError::StaleEpoch { ticket: ticket.id, given, current: ticket.epoch }),
        None => Ok(()),
    }
}

/// Whether a use was said before: vmids are given once, so that the same ones are the same clones.
fn is_same_use(ticket: &Ticket, usage: &Usage) -> bool {
    let here = |vmid: &u32| ticket.clones.get(vmid) == Some(&usage.host);
    ticket.state == State::Used
        && ticket.parent_vmid == Some(usage.parent_vmid)
        && ticket.clones.values().filter(|host| **host == usage.host).count() == usage.vmids.len()
        && usage.vmids.iter().all(here)
}
