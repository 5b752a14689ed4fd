//! Parts: each host of a ticket may use its own part of it.
//!
//! ```text
//!              UseTicket with keep_others               last clone ended, no part granted
//!  ticket:  granted ─────────────▶ used ─────────────────────────────────────────────▶ released
//!  part:    granted ──its host uses it──▶ used ──its host made nothing──▶ granted again, until
//!              │                                                   the ticket would have expired
//!              └ expired, released, killed, host lost or draining,
//!                calling host has another daemon ──▶ gone
//! ```
//! A part that is granted keeps its room, and whoever waits at the ticket's barrier or for its end
//! waits for the clones that may still be made with it. What becomes of one part changes nothing
//! for the others.

use super::{
    Core,
    api::{CoreError, Effect, Named},
    record::Scheduling,
    room::Load,
    spend::{check_epoch, check_granted},
    ticket::{HostId, Part, State, Ticket},
    timers::Timer,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

impl Core {
    /// A host has made nothing with a ticket that it has used.
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
        let is_here = |place: &HostId| *place == host;
        let was_used = ticket.clones.values().any(is_here);
        if !was_used && !ticket.parts.is_empty() {
            return Ok(id);
        }
        check_epoch(ticket, host, epoch)?;
        if !ticket.places.contains_key(&host) {
            return Err(CoreError::OtherHost { ticket: id, host });
        }
        if ticket.results.keys().any(|vmid| ticket.clones.get(vmid).is_some_and(is_here)) {
            return Err(CoreError::Used(id));
        }
        if ticket.clones.values().all(is_here) {
            self.unuse_all(id, host, out);
        } else {
            self.unuse_part(id, host, out);
        }
        Ok(id)
    }

    /// No clones were made with a ticket: it is as if it had not been used.
    fn unuse_all(&mut self, id: Uuid, host: HostId, out: &mut Vec<Effect>) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let (immediate, load, clones) = (ticket.immediate, Load::of(ticket), ticket.clones.clone());
        let vms = ticket.held(host);
        let is_alone = ticket.places.len() == 1;
        self.ledger.change(id, |ticket| {
            // What it holds is not of those clones any more.
            ticket.state = State::Granted;
            (ticket.parent_vmid, ticket.parent_host, ticket.parent_ended) = (None, None, false);
            ticket.clones.clear();
            ticket.kills_requested.clear();
        });
        let is_drained = self.is_draining(host);
        if immediate || (is_drained && is_alone) {
            // Nobody knows of it who could use it, or nobody is to use it there.
            self.finish(id, State::Released, out);
        } else {
            if is_drained {
                self.free_on(host, &load, vms, false);
                self.ledger.change(id, |ticket| forget_part(ticket, host));
            }
            self.grant_again(id, host, out);
        }
        self.nothing_was_made(id, &clones, out);
    }

    /// A host has made no clones with its part; others have, with theirs.
    fn unuse_part(&mut self, id: Uuid, host: HostId, out: &mut Vec<Effect>) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let (load, vms, expires) = (Load::of(ticket), ticket.held(host), ticket.expires_unix_ms);
        let clones: Vec<u32> =
            ticket.clones.iter().filter(|(_, place)| **place == host).map(|(vmid, _)| *vmid).collect();
        let is_granted = ticket.parts.contains_key(&host) && expires > self.now && !self.is_draining(host);
        let epoch = self.next_epoch();
        self.ledger.change(id, |ticket| {
            ticket.epoch = epoch;
            ticket.clones.retain(|_, place| *place != host);
            ticket.kills_requested.retain(|vmid, _| !clones.contains(vmid));
            if is_granted {
                ticket.parts.insert(host, Part { used: false, epoch });
            } else {
                forget_part(ticket, host);
            }
        });
        if is_granted {
            self.timers.set(expires, Timer::Expire(id));
        } else {
            self.free_on(host, &load, vms, false);
        }
        self.put_state(id, out);
        for vmid in clones {
            self.kills.spare((host, id, vmid));
            self.killed(id, vmid, out);
        }
        self.settle(&BTreeSet::new(), BTreeSet::from([id]), State::Released, out);
    }

    /// A ticket is granted anew, for as long as before.
    fn grant_again(&mut self, id: Uuid, host: HostId, out: &mut Vec<Effect>) {
        let (epoch, now) = (self.next_epoch(), self.now);
        let (mut before, mut expires) = (now, now);
        self.ledger.change(id, |ticket| {
            before = ticket.expires_unix_ms;
            let ttl_ms = before.saturating_sub(ticket.granted_unix_ms);
            expires = now.saturating_add(ttl_ms);
            ticket.epoch = epoch;
            (ticket.granted_unix_ms, ticket.expires_unix_ms) = (now, expires);
            if let Some(part) = ticket.parts.get_mut(&host) {
                *part = Part { used: false, epoch };
            }
        });
        // Of other parts that were granted all the time.
        self.timers.unset(before, Timer::Expire(id));
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

    /// Parts that are granted and not used, of a ticket that others have used, are for others: the
    /// part on one host, or all. Returns whether there were any.
    pub(super) fn drop_parts(&mut self, id: Uuid, only: Option<HostId>, out: &mut Vec<Effect>) -> bool {
        let Some(ticket) = self.ledger.get(id) else { return false };
        let (load, expires) = (Load::of(ticket), ticket.expires_unix_ms);
        let parts: Vec<(HostId, u32)> =
            ticket.to_come().filter(|(host, _)| only.is_none_or(|only| only == *host)).collect();
        if parts.is_empty() {
            return false;
        }
        for (host, vms) in &parts {
            self.free_on(*host, &load, *vms, false);
        }
        self.ledger.change(id, |ticket| parts.iter().for_each(|(host, _)| forget_part(ticket, *host)));
        if self.ledger.get(id).is_some_and(|ticket| ticket.vms_to_come() == 0) {
            self.timers.unset(expires, Timer::Expire(id));
        }
        self.settle(&BTreeSet::new(), BTreeSet::from([id]), State::Released, out);
        true
    }

    fn is_draining(&self, host: HostId) -> bool {
        self.hosts.get(host).is_some_and(|host| host.scheduling == Scheduling::Draining)
    }
}

/// A host has no part of a ticket any more.
pub(super) fn forget_part(ticket: &mut Ticket, host: HostId) {
    ticket.parts.remove(&host);
    // A ticket always says for which hosts it was.
    if ticket.places.len() > 1 {
        ticket.places.remove(&host);
    }
}
