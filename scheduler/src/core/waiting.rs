//! Who waits for an answer, where, and until when.

use super::{
    api::{CoreError, Effect, Reply, UnixMs, Waiter},
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

/// All who wait.
#[derive(Debug, Default)]
pub struct Waiting(HashMap<Waiter, (Place, Option<UnixMs>)>);

impl Waiting {
    /// Somebody waits, until a time or for ever.
    pub fn add(&mut self, waiter: Waiter, place: Place, until: Option<UnixMs>, timers: &mut Timers) {
        if let Some(at) = until {
            timers.set(at, Timer::Wait(waiter));
        }
        self.0.insert(waiter, (place, until));
    }

    /// Somebody does not wait any more. Returns for what they did.
    pub fn remove(&mut self, waiter: Waiter, timers: &mut Timers) -> Option<Place> {
        let (place, until) = self.0.remove(&waiter)?;
        if let Some(at) = until {
            timers.unset(at, Timer::Wait(waiter));
        }
        Some(place)
    }

    /// What somebody waits for.
    pub fn place(&self, waiter: Waiter) -> Option<Place> {
        self.0.get(&waiter).map(|(place, _)| *place)
    }

    /// Answers somebody, whether they had to wait for it or not.
    pub fn answer(
        &mut self,
        waiter: Waiter,
        answer: Result<Reply, CoreError>,
        timers: &mut Timers,
        out: &mut Vec<Effect>,
    ) {
        self.remove(waiter, timers);
        out.push(Effect::Answer(waiter, answer));
    }
}
