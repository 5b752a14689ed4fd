//! Barriers: the VM that cloned with a ticket and all clones of it that live meet, any number of times.
//!
//! ```text
//!   arrive ──▶ waits ──all are there──▶ Met, all at once, in the next round
//!                │ time is over, caller gone: that arrival is withdrawn
//!                │ its VM has ended: UnknownVm; if it was the last one that was waited for, the others have met
//! ```

use super::{
    Core,
    api::{CoreError, Effect, Named, Reply, Waiter},
    spend::check_granted,
    ticket::{State, Ticket},
    waiting::Place,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A ticket's barrier.
#[derive(Debug, Default)]
pub struct Meeting {
    /// How many meetings there were.
    round: u64,
    /// Who is there, and who waits for them: processes of one VM count once.
    arrived: BTreeMap<u32, BTreeSet<Waiter>>,
}

impl Meeting {
    /// All who wait.
    pub fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        self.arrived.into_values().flatten()
    }
}

impl Core {
    /// A VM arrives.
    pub(super) fn arrive(
        &mut self,
        waiter: Waiter,
        named: Named,
        vmid: u32,
        timeout_ms: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        let family = match self.check_meeting(named, |ticket| check_member(ticket, vmid)) {
            Ok(family) => family,
            Err(error) => return self.answer(waiter, Err(error), out),
        };
        let meeting = self.meetings.entry(named.id).or_default();
        meeting.arrived.entry(vmid).or_default().insert(waiter);
        self.wait(waiter, Place::Barrier(named.id), family, timeout_ms);
        self.settle_barrier(named.id, out);
        if timeout_ms == Some(0) && self.waiting.place(waiter).is_some() {
            let error = self.arrival_timed_out(named.id, waiter);
            self.answer(waiter, Err(error), out);
        }
    }

    /// Lets those go whose VMs have ended, and all, if all are there.
    pub(super) fn settle_barrier(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let Some(meeting) = self.meetings.get_mut(&id) else { return };
        let gone = meeting.arrived.extract_if(.., |vmid, _| check_member(ticket, *vmid).is_err());
        let gone: Vec<_> = gone.collect();
        let wanted = wanted(ticket);
        let mut met = None;
        if !meeting.arrived.is_empty() && meeting.arrived.len() >= wanted {
            meeting.round = meeting.round.saturating_add(1);
            met = Some((meeting.round, std::mem::take(&mut meeting.arrived)));
        }
        for (vmid, waiters) in gone {
            for waiter in waiters {
                self.answer(waiter, Err(CoreError::UnknownVm { ticket: id, vmid }), out);
            }
        }
        let Some((round, arrived)) = met else { return };
        let count = u32::try_from(arrived.len()).unwrap_or(u32::MAX);
        for waiter in arrived.into_values().flatten() {
            self.answer(waiter, Ok(Reply::Met { round, arrived: count }), out);
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
            meeting.arrived.retain(|_, waiters| {
                waiters.remove(&waiter);
                !waiters.is_empty()
            });
        }
    }
}

/// How many VMs there are to meet.
fn wanted(ticket: &Ticket) -> usize {
    let live = if ticket.state == State::Used { ticket.live().count() } else { 0 };
    live.saturating_add(usize::from(ticket.parent_vmid.is_some() && !ticket.parent_ended))
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
