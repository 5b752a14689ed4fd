//! The order in which clones become ready.
//!
//! On hosts that emulate guest kernels, a clone needs a tenth of a second of a CPU until it is
//! ready. Each of its time slices begins with a timer tick, which takes milliseconds of that. If
//! many clones share the CPUs in short slices, most of the time goes to ticks. So of many clones
//! that are not ready, as many as there are CPUs go before all others, in the order in which they
//! were started. The rest wait at the lowest priority, and run only if a CPU is idle. Both the
//! first and the last ones are ready sooner.

use super::urgency::Urgency;
use patina_daemon::lock;
use std::{
    collections::VecDeque,
    fmt,
    num::NonZero,
    sync::{Arc, Mutex},
    thread::available_parallelism,
    time::{Duration, Instant},
};

/// How long a clone that is not ready goes before others, at most.
pub const TURN_MAX: Duration = Duration::from_secs(2);

/// Gives a process, by the number of its leader, an urgency.
type Give = Box<dyn Fn(u32, Urgency) + Send + Sync>;

/// The clones that run and are not ready yet.
pub struct Turns {
    /// How many go first.
    first: usize,
    give: Give,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    next: u64,
    /// In the order in which they were started.
    clones: VecDeque<Starting>,
}

struct Starting {
    number: u64,
    leader: u32,
    urgency: Urgency,
    /// Since when it goes first.
    since: Option<Instant>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("first", &self.first).finish_non_exhaustive()
    }
}

/// A clone's place among those that are not ready; it ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    number: u64,
}

impl Turns {
    /// For this host's CPUs.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let give = |leader, urgency: Urgency| urgency.give_if_possible(leader);
        Self::of(available_parallelism().map_or(1, NonZero::get), Box::new(give))
    }

    fn of(first: usize, give: Give) -> Arc<Self> {
        Arc::new(Self { first, give, all: Mutex::default() })
    }

    /// A clone has started: the process group that `leader` leads.
    #[must_use]
    pub fn begin(self: &Arc<Self>, leader: u32) -> Turn {
        let mut all = lock(&self.all);
        let number = all.next;
        all.next += 1;
        // It was urgent while it started.
        all.clones.push_back(Starting { number, leader, urgency: Urgency::Urgent, since: None });
        self.settle(&mut all, Instant::now());
        Turn { turns: Arc::clone(self), number }
    }

    /// Ends the turns of clones that have gone first for too long.
    pub fn expire(&self, now: Instant) {
        let mut all = lock(&self.all);
        let is_over = |starting: &Starting| starting.since.is_some_and(|since| now - since >= TURN_MAX);
        all.clones.iter().filter(|starting| is_over(starting)).for_each(|starting| {
            (self.give)(starting.leader, Urgency::Normal);
        });
        all.clones.retain(|starting| !is_over(starting));
        self.settle(&mut all, now);
    }

    fn end(&self, number: u64, is_alive: bool) {
        let mut all = lock(&self.all);
        let Some(place) = all.clones.iter().position(|starting| starting.number == number) else { return };
        if let Some(ended) = all.clones.remove(place)
            && is_alive
            && ended.urgency != Urgency::Normal
        {
            (self.give)(ended.leader, Urgency::Normal);
        }
        self.settle(&mut all, Instant::now());
    }

    /// Gives each the urgency that its place has.
    fn settle(&self, all: &mut All, now: Instant) {
        let is_crowded = all.clones.len() > self.first;
        for (place, starting) in all.clones.iter_mut().enumerate() {
            let urgency = match place < self.first {
                // Where nobody waits, none has to go before the guests that are ready.
                true if !is_crowded => Urgency::Normal,
                true => Urgency::First,
                false => Urgency::Last,
            };
            if urgency != Urgency::Last {
                starting.since.get_or_insert(now);
            }
            if std::mem::replace(&mut starting.urgency, urgency) != urgency {
                (self.give)(starting.leader, urgency);
            }
        }
    }
}

impl Turn {
    /// Its VM is ready: it is as urgent as others are.
    pub fn is_ready(self) {
        self.turns.end(self.number, true);
    }

    /// All turns, to look at those that take too long.
    #[must_use]
    pub fn all(&self) -> &Turns {
        &self.turns
    }
}

impl Drop for Turn {
    /// Without [`Self::is_ready`] its process is not touched again: it may be gone, and its number
    /// another's.
    fn drop(&mut self) {
        self.turns.end(self.number, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Urgency::{First, Last, Normal};

    type Seen = Arc<Mutex<Vec<(u32, Urgency)>>>;

    fn two_first() -> (Arc<Turns>, Seen) {
        let seen = Seen::default();
        let told = Arc::clone(&seen);
        (Turns::of(2, Box::new(move |leader, urgency| told.lock().unwrap().push((leader, urgency)))), seen)
    }

    fn take(seen: &Seen) -> Vec<(u32, Urgency)> {
        std::mem::take(&mut seen.lock().unwrap())
    }

    #[test]
    fn the_first_ones_go_before_those_that_wait_and_each_has_its_turn() {
        let (turns, seen) = two_first();
        let (one, two) = (turns.begin(1), turns.begin(2));
        assert_eq!(take(&seen), [(1, Normal), (2, Normal)]);
        let (three, four) = (turns.begin(3), turns.begin(4));
        assert_eq!(take(&seen), [(1, First), (2, First), (3, Last), (4, Last)]);
        two.is_ready();
        assert_eq!(take(&seen), [(2, Normal), (3, First)]);
        // A process that has ended is left alone.
        drop(one);
        assert_eq!(take(&seen), [(3, Normal), (4, Normal)]);
        three.is_ready();
        four.is_ready();
        assert_eq!(take(&seen), []);
    }

    #[test]
    fn one_that_never_is_ready_does_not_hold_up_the_others() {
        let (turns, seen) = two_first();
        let _all: Vec<Turn> = (1..=4).map(|leader| turns.begin(leader)).collect();
        take(&seen);
        turns.expire(Instant::now());
        assert_eq!(take(&seen), []);
        turns.expire(Instant::now() + TURN_MAX);
        assert_eq!(take(&seen), [(1, Normal), (2, Normal), (3, Normal), (4, Normal)]);
    }
}
