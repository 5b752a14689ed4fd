//! A host that was given up comes back: its clones that nothing has replaced are kept.
//!
//! A clone is replaced if the ledger has a later clone of its family under its vmid. It is over if
//! it was killed, before its host was lost or since, if it had left its result, or if its ticket
//! knows how it ended. What is neither replaced nor over is a clone of its ticket again, whatever
//! the ticket has come to: the ticket is used, under a new epoch. The tickets that it has cloned
//! with itself wait for it again.

use super::{
    Core,
    api::{Effect, Running},
    room::Load,
    ticket::{HostId, State, Ticket},
    timers::Timer,
};
use std::collections::BTreeSet;
use uuid::Uuid;

impl Core {
    /// Whether a clone that runs on a host is one that was lost with it, and that nothing has
    /// replaced.
    pub(super) fn has_returned(&self, host: HostId, clone: &Running, ticket: &Ticket) -> bool {
        ticket.family == clone.family
            && ticket.clones.get(&clone.vmid) == Some(&host)
            && ticket.is_lost(clone.vmid)
            && !ticket.kills_requested.contains_key(&clone.vmid)
            && self.ledger.of_clone(clone.family, clone.vmid).is_none_or(|later| later.id == ticket.id)
    }

    /// A lost clone lives. It holds room, whether there is any or not.
    pub(super) fn revive(&mut self, host: HostId, id: Uuid, vmid: u32) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let (load, was_over) = (Load::of(ticket), ticket.is_over());
        if was_over {
            let over = ticket.over_unix_ms.unwrap_or_default();
            self.timers.unset(over.saturating_add(self.options.remember_ms), Timer::Forget(id));
        }
        let epoch = self.next_epoch();
        self.ledger.change(id, |ticket| {
            (ticket.state, ticket.over_unix_ms, ticket.epoch) = (State::Used, None, epoch);
            ticket.results.remove(&vmid);
            let here = ticket.clones.values().filter(|place| **place == host).count();
            ticket.places.insert(host, u32::try_from(here).unwrap_or(u32::MAX));
        });
        self.hosts.hold(host, &load, 1);
    }

    /// Those that wait for a VM that lives again do so from now on.
    pub(super) fn rejoin(&mut self, revived: &BTreeSet<(Uuid, u32)>, out: &mut Vec<Effect>) {
        let tickets: BTreeSet<Uuid> = revived.iter().map(|(id, _)| *id).collect();
        for (id, vmid) in revived {
            let Some(family) = self.ledger.get(*id).map(|ticket| ticket.family) else { continue };
            for child in self.ledger.cloned_by(family, *vmid) {
                self.ledger.set_parent_ended(child, false);
                if !tickets.contains(&child) {
                    Self::put(child, out);
                }
            }
        }
        for id in tickets {
            self.look_for_parent(id);
            self.put_state(id, out);
            self.settle_barrier(id, out);
        }
    }
}
