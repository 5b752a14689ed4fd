//! Barriers: the VM that cloned with a ticket and all its live clones meet, any number of times. As
//! long as a part of the ticket is granted and not used, its clones may come: nobody meets without
//! them.
//!
//! ```text
//!   arrive ──▶ waits ──all have arrived──▶ Met, all at once, in the next round
//!     │          │ timeout, or the caller has gone: the arrival is withdrawn
//!     │          │ its VM has ended: UnknownVm; if only that VM was missing, the others have met
//!     └─ the VM has no answer for the last round yet: Met, at once
//! ```
//!
//! A round is in the ledger before any VM gets its answer. So a VM that names its last round gets a
//! lost answer again, whatever was restarted meanwhile. If a VM names a later round than the ledger
//! has, the ledger is new or an old copy: it takes over the VM's number.

use super::{
    Core,
    api::{CoreError, Effect, Named, Reply, Waiter},
    spend::check_granted,
    ticket::{Met, State, Ticket},
    waiting::Place,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A ticket's barrier.
#[derive(Debug, Default)]
pub struct Meeting {
    /// Who is there, and who waits for them, with the last round that they know of: processes of
    /// one VM count once.
    arrived: BTreeMap<u32, BTreeMap<Waiter, Option<u64>>>,
}

/// A VM that arrives at a barrier.
#[derive(Debug)]
pub struct Arrival {
    /// The call that waits for the others.
    pub waiter: Waiter,
    /// The VM's vmid.
    pub vmid: u32,
    /// The last round that it knows of; None: it does not say.
    pub after_round: Option<u64>,
}

impl Meeting {
    /// All who wait.
    pub fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        self.arrived.into_values().flat_map(BTreeMap::into_keys)
    }

    /// Takes those out for whom `is_meant` holds.
    fn extract(&mut self, mut is_meant: impl FnMut(u32, Waiter, Option<u64>) -> bool) -> Vec<(u32, Waiter)> {
        let mut taken = Vec::new();
        self.arrived.retain(|vmid, waiters| {
            let meant = waiters.extract_if(.., |waiter, after| is_meant(*vmid, *waiter, *after));
            taken.extend(meant.map(|(waiter, _)| (*vmid, waiter)));
            !waiters.is_empty()
        });
        taken
    }
}

impl Core {
    /// A VM arrives.
    pub(super) fn arrive(
        &mut self,
        arrival: &Arrival,
        named: Named,
        timeout_ms: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        let Arrival { waiter, vmid, after_round } = *arrival;
        let family = match self.check_meeting(named, |ticket| check_member(ticket, vmid)) {
            Ok(family) => family,
            Err(error) => return self.answer(waiter, Err(error), out),
        };
        let id = named.id;
        if let Some(after) = after_round {
            self.follow_round(id, after, out);
            if let Some(met) = self.ledger.get(id).and_then(|ticket| ticket.met).filter(|m| m.round > after) {
                return self.answer(waiter, Ok(Reply::Met { round: met.round, arrived: met.vms }), out);
            }
        }
        let meeting = self.meetings.entry(id).or_default();
        meeting.arrived.entry(vmid).or_default().insert(waiter, after_round);
        self.wait(waiter, Place::Barrier(id), family, timeout_ms);
        self.settle_barrier(id, out);
        if timeout_ms == Some(0) && self.waiting.place(waiter).is_some() {
            let error = self.arrival_timed_out(id, waiter);
            self.answer(waiter, Err(error), out);
        }
    }

    /// A VM was in a round that the ledger does not know of: those who wait and were not there have
    /// missed its answer.
    fn follow_round(&mut self, id: Uuid, round: u64, out: &mut Vec<Effect>) {
        if self.ledger.get(id).is_none_or(|ticket| ticket.round() >= round) {
            return;
        }
        self.ledger.set_met(id, Met { round, vms: 0 });
        Self::put(id, out);
        let Some(meeting) = self.meetings.get_mut(&id) else { return };
        for (_, waiter) in meeting.extract(|_, _, after| after.is_some_and(|after| after < round)) {
            self.answer(waiter, Ok(Reply::Met { round, arrived: 0 }), out);
        }
    }

    /// Lets those go whose VMs have ended, and all, if all are there.
    pub(super) fn settle_barrier(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let Some(meeting) = self.meetings.get_mut(&id) else { return };
        let gone = meeting.extract(|vmid, _, _| check_member(ticket, vmid).is_err());
        let vms = meeting.arrived.len();
        let have_met = vms > 0 && vms >= wanted(ticket);
        let round = ticket.round().saturating_add(1);
        let met = if have_met { std::mem::take(meeting) } else { Meeting::default() };
        if meeting.arrived.is_empty() {
            self.meetings.remove(&id);
        }
        for (vmid, waiter) in gone {
            self.answer(waiter, Err(CoreError::UnknownVm { ticket: id, vmid }), out);
        }
        if have_met {
            let vms = u32::try_from(vms).unwrap_or(u32::MAX);
            self.ledger.set_met(id, Met { round, vms });
            Self::put(id, out);
            for waiter in met.into_waiters() {
                self.answer(waiter, Ok(Reply::Met { round, arrived: vms }), out);
            }
        }
    }

    /// The answer to an arrival whose time is over.
    pub(super) fn arrival_timed_out(&mut self, id: Uuid, waiter: Waiter) -> CoreError {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let arrived = self.meetings.get(&id).map_or(0, |meeting| number(meeting.arrived.len()));
        let wanted = self.ledger.get(id).map_or(0, |ticket| number(wanted(ticket)));
        self.withdraw(id, waiter);
        CoreError::BarrierTimeout { arrived, wanted }
    }

    /// An arrival does not count any more.
    pub(super) fn withdraw(&mut self, id: Uuid, waiter: Waiter) {
        if let Some(meeting) = self.meetings.get_mut(&id) {
            meeting.extract(|_, other, _| other == waiter);
            if meeting.arrived.is_empty() {
                self.meetings.remove(&id);
            }
        }
    }
}

/// How many VMs there are to meet: those that live, and those that may still be made.
fn wanted(ticket: &Ticket) -> usize {
    let live = if ticket.state == State::Used { ticket.live().count() } else { 0 };
    let to_come = usize::try_from(ticket.vms_to_come()).unwrap_or(usize::MAX);
    live.saturating_add(to_come)
        .saturating_add(usize::from(ticket.parent_vmid.is_some() && !ticket.parent_ended))
}

/// Whether a VM is one of those that meet.
fn check_member(ticket: &Ticket, vmid: u32) -> Result<(), CoreError> {
    if ticket.state == State::Granted {
        return Err(CoreError::NotUsed(ticket.id));
    }
    if ticket.clones.is_empty() {
        // It came to its end without clones.
        check_granted(ticket)?;
    }
    let is_parent = ticket.parent_vmid == Some(vmid) && !ticket.parent_ended;
    if is_parent || ticket.is_live(vmid) {
        Ok(())
    } else {
        Err(CoreError::UnknownVm { ticket: ticket.id, vmid })
    }
}
