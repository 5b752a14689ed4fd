//! The life of a granted ticket: released, used, unused, expired, kept for a while, forgotten.

use super::{
    Core,
    api::{CoreError, Effect, Named},
    record::Scheduling,
    request::check_vmids,
    room::Load,
    ticket::{HostId, State, Ticket},
    timers::Timer,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most tickets of a family that are remembered after their end.
pub const FAMILY_OVER_MAX: usize = 1024;

/// A host's call to make clones with a ticket.
#[derive(Debug)]
pub struct Usage {
    /// The ticket that is used.
    pub ticket: Named,
    /// The ticket's epoch as the caller knows it; None: any epoch.
    pub epoch: Option<u64>,
    /// The host that makes the clones.
    pub host: HostId,
    /// The epoch of the host's registration; None: any epoch.
    pub host_epoch: Option<u64>,
    /// The vmid of the VM that is cloned.
    pub parent_vmid: u32,
    /// The clones' vmids.
    pub vmids: Vec<u32>,
}

impl Core {
    /// Gives a ticket back.
    pub(super) fn release(&mut self, named: Named, out: &mut Vec<Effect>) -> Result<Uuid, CoreError> {
        let ticket = self.ticket(named)?;
        match ticket.state {
            State::Granted => self.finish(named.id, State::Released, out),
            State::Used => return Err(CoreError::Used(named.id)),
            State::Released | State::Expired | State::Fenced => {}
        }
        Ok(named.id)
    }

    /// A host makes clones with a ticket.
    pub(super) fn use_ticket(&mut self, usage: &Usage, out: &mut Vec<Effect>) -> Result<Uuid, CoreError> {
        let Usage { host, parent_vmid, ref vmids, .. } = *usage;
        let ticket = self.ticket(usage.ticket)?;
        let (id, family, load) = (ticket.id, ticket.family, Load::of(ticket));
        if is_same_use(ticket, usage) {
            return Ok(id);
        }
        self.check_use(ticket, usage)?;
        let wanted = u32::try_from(vmids.len()).unwrap_or(u32::MAX);
        let places = ticket.places.clone();
        self.timers.unset(ticket.expires_unix_ms, Timer::Expire(id));
        // Clones start where their parent is: what is held elsewhere, or beyond them, is for
        // others.
        for (place, vms) in places {
            let spare = if place == host { vms.saturating_sub(wanted) } else { vms };
            self.free_on(place, &load, spare, place == host);
        }
        let clones = vmids.iter().map(|vmid| (*vmid, host)).collect();
        // One that was given up with its host, and is to end, may still clone.
        let parent_ended = self.ledger.has_ended(family, parent_vmid);
        self.ledger.change(id, |ticket| {
            ticket.state = State::Used;
            (ticket.parent_vmid, ticket.parent_ended) = (Some(parent_vmid), parent_ended);
            ticket.clones = clones;
            ticket.places = BTreeMap::from([(host, wanted)]);
        });
        self.put_state(id, out);
        Ok(id)
    }

    fn check_use(&self, ticket: &Ticket, usage: &Usage) -> Result<(), CoreError> {
        let Usage { host, parent_vmid, ref vmids, .. } = *usage;
        check_granted(ticket)?;
        check_epoch(ticket, usage.epoch)?;
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
        self.check_new(ticket.family, vmids)
    }

    /// Nothing was made with a ticket that was used.
    pub(super) fn unuse(
        &mut self,
        named: Named,
        epoch: Option<u64>,
        host: HostId,
        out: &mut Vec<Effect>,
    ) -> Result<Uuid, CoreError> {
        let ticket = self.ticket(named)?;
        let id = ticket.id;
        match ticket.state {
            // Said again, or it never came to be used.
            State::Granted => return Ok(id),
            State::Released if ticket.immediate && ticket.clones.is_empty() => return Ok(id),
            State::Used => {}
            State::Released | State::Expired | State::Fenced => return check_granted(ticket).map(|()| id),
        }
        check_epoch(ticket, epoch)?;
        if !ticket.places.contains_key(&host) {
            return Err(CoreError::OtherHost { ticket: id, host });
        }
        if !ticket.results.is_empty() {
            return Err(CoreError::Used(id));
        }
        let (immediate, clones) = (ticket.immediate, ticket.clones.clone());
        self.ledger.change(id, |ticket| {
            // What it holds is not of those clones any more.
            ticket.state = State::Granted;
            (ticket.parent_vmid, ticket.parent_ended) = (None, false);
            ticket.clones.clear();
            ticket.kills_requested.clear();
        });
        let is_drained = self.hosts.get(host).is_some_and(|host| host.scheduling == Scheduling::Draining);
        if immediate || is_drained {
            // Nobody knows of it who could use it, or nobody is to use it there.
            self.finish(id, State::Released, out);
        } else {
            self.grant_again(id, out);
        }
        self.nothing_was_made(id, &clones, out);
        Ok(id)
    }

    /// A ticket is granted anew, for as long as before.
    fn grant_again(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        let (epoch, now) = (self.next_epoch(), self.now);
        let mut expires = now;
        self.ledger.change(id, |ticket| {
            let ttl_ms = ticket.expires_unix_ms.saturating_sub(ticket.granted_unix_ms);
            expires = now.saturating_add(ttl_ms);
            ticket.epoch = epoch;
            (ticket.granted_unix_ms, ticket.expires_unix_ms) = (now, expires);
        });
        self.timers.set(expires, Timer::Expire(id));
        self.put_state(id, out);
    }

    /// Who waits for clones of a ticket, or at its barrier, does not any more.
    fn nothing_was_made(&mut self, id: Uuid, clones: &BTreeMap<u32, HostId>, out: &mut Vec<Effect>) {
        let barrier = self.meetings.remove(&id).into_iter().flat_map(|meeting| meeting.into_waiters());
        let joins = self.joins.remove(&id).into_iter().flatten();
        for waiter in barrier.chain(joins).collect::<Vec<_>>() {
            self.answer(waiter, Err(CoreError::NotUsed(id)), out);
        }
        for (vmid, host) in clones {
            self.kills.spare((*host, id, *vmid));
            self.killed(id, *vmid, out);
        }
    }

    /// A granted ticket was not used in time.
    pub(super) fn expire(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        if self.ledger.get(id).is_some_and(|ticket| ticket.state == State::Granted) {
            self.finish(id, State::Expired, out);
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
        if ticket.state == State::Used && ticket.live().next().is_none() {
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
        if ticket.state == State::Granted {
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

fn check_epoch(ticket: &Ticket, given: Option<u64>) -> Result<(), CoreError> {
    match given.filter(|given| *given != ticket.epoch) {
        Some(given) => Err(CoreError::StaleEpoch { ticket: ticket.id, given, current: ticket.epoch }),
        None => Ok(()),
    }
}

/// Whether a use was said before: vmids are given once, so that the same ones are the same clones.
fn is_same_use(ticket: &Ticket, usage: &Usage) -> bool {
    let here = |vmid: &u32| ticket.clones.get(vmid) == Some(&usage.host);
    ticket.state == State::Used
        && ticket.parent_vmid == Some(usage.parent_vmid)
        && ticket.clones.len() == usage.vmids.len()
        && usage.vmids.iter().all(here)
}
