//! Joins: clones leave their results, and the VM that cloned waits until all of them have ended.

use super::{
    Core,
    api::{CoreError, Effect, Named, Reply, UnixMs, Waiter},
    spend::check_granted,
    ticket::{Kept, Outcome, State, Ticket},
    waiting::Place,
};
use uuid::Uuid;

/// What a clone leaves.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    /// The clone's vmid.
    pub vmid: u32,
    /// The clone's result.
    pub status: i32,
    /// The length of the clone's data, bytes.
    pub data_bytes: u64,
    /// Whether the VM that cloned is to see it.
    pub reported: bool,
}

impl Core {
    /// A clone leaves its result. Said again, the later one counts.
    pub(super) fn join_leave(
        &mut self,
        named: Named,
        left: &Left,
        out: &mut Vec<Effect>,
    ) -> Result<(), CoreError> {
        let Left { vmid, status, data_bytes, reported } = *left;
        let ticket = self.ticket(named)?;
        let id = ticket.id;
        if ticket.state == State::Granted {
            return Err(CoreError::NotUsed(id));
        }
        if ticket.state != State::Used || !ticket.is_live(vmid) {
            return Err(CoreError::NotClone { ticket: id, vmid });
        }
        self.make_room_for_data(id, vmid, data_bytes, out)?;
        self.ledger.leave(id, vmid, Outcome { end: None, status, data_bytes, reported, kept: Kept::Yes });
        Self::put(id, out);
        Ok(())
    }

    /// Somebody waits for the end of all clones.
    pub(super) fn join_wait(
        &mut self,
        waiter: Waiter,
        named: Named,
        vmid: Option<u32>,
        timeout_ms: Option<UnixMs>,
        out: &mut Vec<Effect>,
    ) {
        let family = match self.check_meeting(named, |ticket| check_parent(ticket, vmid)) {
            Ok(family) => family,
            Err(error) => return self.answer(waiter, Err(error), out),
        };
        self.joins.entry(named.id).or_default().insert(waiter);
        self.wait(waiter, Place::Join(named.id), family, timeout_ms);
        self.settle_join(named.id, out);
        if timeout_ms == Some(0) && self.waiting.place(waiter).is_some() {
            let error = self.join_timed_out(named.id, waiter);
            self.answer(waiter, Err(error), out);
        }
    }

    /// Answers those who wait, if no clone is left.
    pub(super) fn settle_join(&mut self, id: Uuid, out: &mut Vec<Effect>) {
        if self.ledger.get(id).is_none_or(|ticket| !ticket.is_over()) {
            return;
        }
        let Some(waiters) = self.joins.remove(&id) else { return };
        let Some(ticket) = self.ledger.get(id).cloned() else { return };
        for waiter in waiters {
            self.answer(waiter, Ok(Reply::Joined(Box::new(ticket.clone()))), out);
        }
    }

    /// The answer to somebody whose time for a join is over.
    pub(super) fn join_timed_out(&mut self, id: Uuid, waiter: Waiter) -> CoreError {
        let all = |ticket: &Ticket| self.live(ticket).saturating_add(ticket.vms_to_come());
        let live = self.ledger.get(id).map_or(0, all);
        self.leave_join(id, waiter);
        CoreError::JoinTimeout { live }
    }

    /// Somebody does not wait any more.
    pub(super) fn leave_join(&mut self, id: Uuid, waiter: Waiter) {
        if let Some(waiters) = self.joins.get_mut(&id) {
            waiters.remove(&waiter);
            if waiters.is_empty() {
                self.joins.remove(&id);
            }
        }
    }
}

/// Whether somebody may wait for a ticket's clones.
fn check_parent(ticket: &Ticket, vmid: Option<u32>) -> Result<(), CoreError> {
    if ticket.state == State::Granted {
        return Err(CoreError::NotUsed(ticket.id));
    }
    if ticket.clones.is_empty() {
        // It came to its end without clones.
        check_granted(ticket)?;
    }
    match vmid {
        Some(vmid) if ticket.parent_vmid != Some(vmid) => {
            Err(CoreError::NotParent { ticket: ticket.id, vmid })
        }
        _ => Ok(()),
    }
}
