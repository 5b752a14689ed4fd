//! The data that clones leave when they join: how much of it is kept, and for how long.
//!
//! There are limits per clone, per ticket, per family, and in total. A family may use no more of
//! the total than is still free, so there is always space for another family. Data that its family
//! has read is kept for a while, in case the answer was lost, and is deleted earlier if the space
//! is needed. The data of a family whose master has ended is deleted at once.

use super::{
    Core,
    api::{
        CoreError, DATA_MAX_BYTES, Effect, FAMILY_DATA_MAX_BYTES, JOIN_DATA_MAX_BYTES, Named, READ_KEPT_MS,
        TICKET_DATA_MAX_BYTES,
    },
    ticket::{HostId, Kept, Ticket},
    timers::Timer,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// How much is kept of which family, and of which of its tickets.
#[derive(Debug, Default)]
pub struct Left {
    bytes: u64,
    families: BTreeMap<Uuid, OfFamily>,
}

#[derive(Debug, Default)]
struct OfFamily {
    bytes: u64,
    tickets: BTreeMap<Uuid, u64>,
}

impl Left {
    /// So much is kept of a ticket from now on.
    pub fn set(&mut self, family: Uuid, ticket: Uuid, bytes: u64) {
        let of = self.families.entry(family).or_default();
        let before = if bytes > 0 { of.tickets.insert(ticket, bytes) } else { of.tickets.remove(&ticket) };
        let before = before.unwrap_or(0);
        of.bytes = of.bytes.saturating_sub(before).saturating_add(bytes);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(bytes);
        if of.tickets.is_empty() {
            self.families.remove(&family);
        }
    }

    /// The length of all that clones of all families left and that is kept, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn of_family(&self, family: Uuid) -> u64 {
        self.families.get(&family).map_or(0, |of| of.bytes)
    }

    /// The tickets of which something is kept.
    fn tickets(&self, family: Uuid) -> Vec<Uuid> {
        self.families.get(&family).map(|of| of.tickets.keys().copied().collect()).unwrap_or_default()
    }

    fn families(&self) -> Vec<Uuid> {
        self.families.keys().copied().collect()
    }
}

/// The bytes that are kept of a ticket.
pub fn kept_bytes(ticket: &Ticket) -> u64 {
    ticket.results.values().fold(0, |sum, outcome| sum.saturating_add(outcome.kept_bytes()))
}

impl Core {
    /// Whether a clone may leave so much. What was read, of its family first, makes room.
    pub(super) fn make_room_for_data(
        &mut self,
        id: Uuid,
        vmid: u32,
        bytes: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), CoreError> {
        let Some(family) = self.ledger.get(id).map(|ticket| ticket.family) else { return Ok(()) };
        if bytes > JOIN_DATA_MAX_BYTES {
            return Err(CoreError::TooMuchData { bytes, most: JOIN_DATA_MAX_BYTES });
        }
        let mut most = self.room_for_data(id, vmid);
        if bytes > most {
            self.drop_read(family, out);
            most = self.room_for_data(id, vmid);
        }
        if bytes > most {
            for other in self.ledger.left().families() {
                self.drop_read(other, out);
            }
            most = self.room_for_data(id, vmid);
        }
        if bytes > most { Err(CoreError::TooMuchData { bytes, most }) } else { Ok(()) }
    }

    /// How much a clone may leave now, in place of what it left before.
    fn room_for_data(&self, id: Uuid, vmid: u32) -> u64 {
        let Some(ticket) = self.ledger.get(id) else { return 0 };
        let own = ticket.results.get(&vmid).map_or(0, super::ticket::Outcome::kept_bytes);
        let left = self.ledger.left();
        let family = left.of_family(ticket.family).saturating_sub(own);
        let free = DATA_MAX_BYTES.saturating_sub(left.bytes().saturating_sub(own));
        let of_ticket = TICKET_DATA_MAX_BYTES.saturating_sub(kept_bytes(ticket).saturating_sub(own));
        // After it the family has no more than is free.
        let fair = free.saturating_sub(family) / 2;
        JOIN_DATA_MAX_BYTES.min(of_ticket).min(FAMILY_DATA_MAX_BYTES.saturating_sub(family)).min(fair)
    }

    /// A family has read what a clone left.
    pub(super) fn data_read(
        &mut self,
        named: Named,
        vmid: u32,
        out: &mut Vec<Effect>,
    ) -> Result<(), CoreError> {
        let ticket = self.ticket(named)?;
        let (id, now) = (ticket.id, self.now);
        let left = ticket.results.get(&vmid).ok_or(CoreError::UnknownVm { ticket: id, vmid })?;
        if left.data_bytes > 0 && left.kept == Kept::Yes && left.end.is_some() {
            self.ledger.keep(id, vmid, Kept::ReadAt(now));
            self.timers.set(now.saturating_add(READ_KEPT_MS), Timer::DropData(id, vmid));
            Self::put(id, out);
        }
        Ok(())
    }

    /// What was read of a ticket that is known from before goes in time.
    pub(super) fn recall_data(&mut self, ticket: &Ticket) {
        for (vmid, outcome) in &ticket.results {
            if let Kept::ReadAt(at) = outcome.kept {
                self.timers.set(at.saturating_add(READ_KEPT_MS), Timer::DropData(ticket.id, *vmid));
            }
        }
    }

    /// What a clone left is not kept any more.
    pub(super) fn drop_data(&mut self, id: Uuid, vmid: u32, out: &mut Vec<Effect>) {
        let Some(outcome) = self.ledger.get(id).and_then(|ticket| ticket.results.get(&vmid)) else { return };
        if outcome.kept_bytes() == 0 {
            return;
        }
        if let Kept::ReadAt(at) = outcome.kept {
            self.timers.unset(at.saturating_add(READ_KEPT_MS), Timer::DropData(id, vmid));
        }
        self.ledger.keep(id, vmid, Kept::Dropped);
        Self::put(id, out);
        out.push(Effect::DropData { ticket: id, vmid });
    }

    fn drop_read(&mut self, family: Uuid, out: &mut Vec<Effect>) {
        self.drop_where(family, |kept| matches!(kept, Kept::ReadAt(_)), out);
    }

    fn drop_where(&mut self, family: Uuid, is_meant: impl Fn(Kept) -> bool, out: &mut Vec<Effect>) {
        for id in self.ledger.left().tickets(family) {
            let Some(ticket) = self.ledger.get(id) else { continue };
            let meant = ticket.results.iter().filter(|(_, outcome)| is_meant(outcome.kept));
            for vmid in meant.map(|(vmid, _)| *vmid).collect::<Vec<_>>() {
                self.drop_data(id, vmid, out);
            }
        }
    }

    /// Families whose master was on this host, and has ended, read nothing any more.
    pub(super) fn drop_data_of(
        &mut self,
        host: HostId,
        is_gone: impl Fn(Uuid) -> bool,
        out: &mut Vec<Effect>,
    ) {
        for family in self.ledger.left().families().into_iter().filter(|family| is_gone(*family)) {
            if self.is_home(host, family) {
                self.drop_where(family, |_| true, out);
            }
        }
    }

    /// Whether a family's master is, or was, on a host, as far as its tickets tell. Clones on other
    /// hosts do not make these its home.
    fn is_home(&self, host: HostId, family: Uuid) -> bool {
        let is_home = |id: &Uuid| {
            self.ledger.get(*id).is_some_and(|ticket| match ticket.parent_host {
                Some(place) => ticket.parent_vmid == Some(0) && place == host,
                None => ticket.places.contains_key(&host),
            })
        };
        let of_master = self.ledger.cloned_by(family, 0);
        self.ledger.left().tickets(family).iter().chain(&of_master).any(is_home)
    }
}
