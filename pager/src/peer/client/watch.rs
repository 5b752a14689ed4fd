//! Whether a peer answers.

use super::{Peer, State};
use patina_daemon::lock;
use std::time::{Duration, Instant};

/// A peer that was asked something, and has not answered anything for so long, has stalled.
const STALL: Duration = Duration::from_millis(400);
/// And so has one that does not answer a demand for so long, whatever else it answers.
const DEMAND_STALL: Duration = Duration::from_millis(700);

impl Peer {
    /// Whether it is slower than a peer that works: another one had better take its place.
    #[must_use]
    pub fn is_stalled(&self, now: Instant) -> bool {
        let (demand, ahead) = (lock(&self.demand.0), lock(&self.ahead.0));
        demand.is_silent(now) || ahead.is_silent(now) || demand.waits(now) >= DEMAND_STALL
    }

    /// Gives up what it was asked for of one layer.
    pub(super) fn let_go(&self, layer: u32) {
        for lane in [&self.demand, &self.ahead] {
            lane.give_up(|pending| pending.layer == layer);
        }
    }
}

impl State {
    /// How long the oldest request has had no answer.
    fn waits(&self, now: Instant) -> Duration {
        let oldest = self.pending.values().next();
        oldest.map_or(Duration::ZERO, |pending| now.saturating_duration_since(pending.since))
    }

    fn is_silent(&self, now: Instant) -> bool {
        let is_quiet = |heard| now.saturating_duration_since(heard) >= STALL;
        self.waits(now) >= STALL && self.heard.is_none_or(is_quiet)
    }
}
