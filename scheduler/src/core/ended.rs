//! Clones end: the outcome is recorded, and waiting callers are answered.

use super::{
    Core,
    api::{CoreError, Effect},
    room::Load,
    ticket::{HostId, Kept, Outcome, State, Ticket, VmEnd},
};
use std::collections::BTreeSet;
use uuid::Uuid;

impl Core {
    /// A host says which clones are gone, and the masters of which families.
    pub(super) fn ended(
        &mut self,
        host: HostId,
        epoch: u64,
        clones: Vec<(Uuid, u32, VmEnd)>,
        masters: &[Uuid],
        out: &mut Vec<Effect>,
    ) -> Result<(), CoreError> {
        if self.hosts.up(host).is_none_or(|host| host.epoch != epoch) {
            return Err(match self.hosts.get(host) {
                Some(_) => CoreError::StaleHost { host, given: epoch },
                None => CoreError::UnknownHost(host),
            });
        }
        let mut changed = BTreeSet::new();
        for (id, vmid, end) in clones {
            if self.hosts.unhaunt(host, (id, vmid)) {
                self.fresh.hosts.insert(host);
            }
            if self.note_end(id, vmid, host, end) {
                changed.insert((id, vmid));
            }
        }
        self.settle(&changed, BTreeSet::new(), State::Released, out);
        if !masters.is_empty() {
            let masters: BTreeSet<_> = masters.iter().copied().collect();
            if let Some(there) = self.hosts.masters_mut(host) {
                there.retain(|family| !masters.contains(family));
            }
            self.lose_masters(host, |family| masters.contains(&family), out);
        }
        Ok(())
    }

    /// Notes how a clone ended. Returns whether it is news.
    pub(super) fn note_end(&mut self, id: Uuid, vmid: u32, host: HostId, end: VmEnd) -> bool {
        let is_news = |ticket: &&Ticket| {
            ticket.state == State::Used && ticket.clones.get(&vmid) == Some(&host) && ticket.is_live(vmid)
        };
        let Some(ticket) = self.ledger.get(id).filter(is_news) else { return false };
        // What it held is for others, whatever becomes of its siblings.
        let load = Load::of(ticket);
        self.free_on(host, &load, 1, true);
        let Some(results) = self.ledger.results(id) else { return false };
        // A clone that has left its result has joined, however its VM ended.
        results.entry(vmid).and_modify(|left| left.end = Some(VmEnd::Joined)).or_insert(Outcome {
            end: Some(end),
            status: 0,
            data_bytes: 0,
            reported: false,
            kept: Kept::Yes,
        });
        // Nobody knows whether a lost clone has ended: it is to end if it has not.
        if end != VmEnd::Lost {
            self.ledger.forget_kill(id, vmid);
        }
        self.kills.spare((host, id, vmid));
        true
    }

    /// Clones have ended, all of them at the same moment, and these `tickets` have changed
    /// otherwise. A ticket without clones that live or may still be made comes to its end, in
    /// `state`.
    pub(super) fn settle(
        &mut self,
        clones: &BTreeSet<(Uuid, u32)>,
        mut tickets: BTreeSet<Uuid>,
        state: State,
        out: &mut Vec<Effect>,
    ) {
        for (id, vmid) in clones {
            let Some(ticket) = self.ledger.get(*id) else { continue };
            let family = ticket.family;
            tickets.insert(*id);
            for child in self.ledger.cloned_by(family, *vmid) {
                self.ledger.set_parent_ended(child, true);
                tickets.insert(child);
            }
        }
        // What is stored comes before any answer that tells of it.
        for id in &tickets {
            match self.ledger.get(*id) {
                Some(ticket) if ticket.is_spent() => self.finish(*id, state, out),
                Some(_) => Self::put(*id, out),
                None => {}
            }
        }
        // A ticket that has come to its end may be forgotten by now: its clones are not.
        for (id, vmid) in clones {
            self.killed(*id, *vmid, out);
        }
        for id in &tickets {
            self.settle_barrier(*id, out);
            self.settle_join(*id, out);
        }
    }
}
