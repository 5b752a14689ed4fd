//! Callers that wait for an answer: where, and until when.

use super::{
    Core,
    api::{
        CoreError, Effect, FAMILY_KILLS_MAX, FAMILY_MEETING_MAX, FAMILY_WAITING_MAX, Named, Reply, UnixMs,
        Waiter,
    },
    ticket::Ticket,
    timers::{Timer, Timers},
};
use std::collections::HashMap;
use uuid::Uuid;

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A request, by its place in the queue.
    Request(u64),
    /// A ticket's barrier.
    Barrier(Uuid),
    /// The end of a ticket's clones.
    Join(Uuid),
    /// The end of clones that were killed.
    Kill,
}

/// Places that have their limit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// In the queue.
    Request,
    /// At barriers and for joins.
    Meeting,
    /// For kills.
    Kill,
}

impl Place {
    fn kind(self) -> Kind {
        match self {
            Self::Request(_) => Kind::Request,
            Self::Barrier(_) | Self::Join(_) => Kind::Meeting,
            Self::Kill => Kind::Kill,
        }
    }
}

#[derive(Debug)]
struct Entry {
    place: Place,
    family: Uuid,
    until: Option<UnixMs>,
}

/// All who wait.
#[derive(Debug, Default)]
pub struct Waiting {
    entries: HashMap<Waiter, Entry>,
    /// How many of a family.
    counts: HashMap<(Uuid, Kind), usize>,
}

impl Waiting {
    /// Somebody waits, until a time or for ever.
    fn add(&mut self, waiter: Waiter, entry: Entry, timers: &mut Timers) {
        if let Some(at) = entry.until {
            timers.set(at, Timer::Wait(waiter));
        }
        let count = self.counts.entry((entry.family, entry.place.kind())).or_default();
        *count = count.saturating_add(1);
        self.entries.insert(waiter, entry);
    }

    /// Somebody does not wait any more. Returns for what they did.
    pub fn remove(&mut self, waiter: Waiter, timers: &mut Timers) -> Option<Place> {
        let Entry { place, family, until } = self.entries.remove(&waiter)?;
        if let Some(at) = until {
            timers.unset(at, Timer::Wait(waiter));
        }
        let key = (family, place.kind());
        if let Some(count) = self.counts.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
        Some(place)
    }

    /// What somebody waits for.
    pub fn place(&self, waiter: Waiter) -> Option<Place> {
        self.entries.get(&waiter).map(|entry| entry.place)
    }

    /// Whether one more of a family may wait.
    fn check(&self, family: Uuid, kind: Kind) -> Result<(), CoreError> {
        let (call, most) = match kind {
            Kind::Request => ("request a ticket", FAMILY_WAITING_MAX),
            Kind::Meeting => ("sync or join", FAMILY_MEETING_MAX),
            Kind::Kill => ("kill", FAMILY_KILLS_MAX),
        };
        match self.counts.get(&(family, kind)) {
            Some(count) if *count >= most => Err(CoreError::TooManyWaiting { call, most }),
            _ => Ok(()),
        }
    }
}

impl Core {
    /// Somebody who asks for a family waits.
    pub(super) fn wait(&mut self, waiter: Waiter, place: Place, family: Uuid, timeout_ms: Option<u64>) {
        let until = timeout_ms.map(|timeout_ms| self.now.saturating_add(timeout_ms));
        self.waiting.add(waiter, Entry { place, family, until }, &mut self.timers);
    }

    /// Whether one more who asks for a family may wait.
    pub(super) fn check_waiting(&self, family: Uuid, kind: Kind) -> Result<(), CoreError> {
        self.waiting.check(family, kind)
    }

    /// The family of a ticket at which one more may wait for its VMs, if `is_fine` says so.
    pub(super) fn check_meeting(
        &self,
        named: Named,
        is_fine: impl FnOnce(&Ticket) -> Result<(), CoreError>,
    ) -> Result<Uuid, CoreError> {
        let ticket = self.ticket(named)?;
        is_fine(ticket)?;
        self.check_waiting(ticket.family, Kind::Meeting)?;
        Ok(ticket.family)
    }

    /// Answers somebody, whether they had to wait for it or not.
    pub(super) fn answer(&mut self, waiter: Waiter, answer: Result<Reply, CoreError>, out: &mut Vec<Effect>) {
        self.waiting.remove(waiter, &mut self.timers);
        out.push(Effect::Answer(waiter, answer));
    }
}
