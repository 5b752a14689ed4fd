//! The workers and the readers, how many there are and which of them are stuck.
//!
//! A read at a source cannot be cancelled. A worker whose read does not return is stuck; another is
//! started in its place, up to a bound. When it returns, it ends, if there are enough without it.

use crate::source::Class;
use crate::sys::interrupt::Thread;
use patina_daemon::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Workers of each class that are not stuck, and most of them with those that are.
const DEMAND: (usize, usize) = (4, 64);
const AHEAD: (usize, usize) = (1, 8);
/// A worker that has been at it for so long is stuck.
const STUCK: Duration = Duration::from_millis(500);
/// How soon layers that cannot be sealed are tried again, and what is left to fetch is looked for.
const IDLE: Duration = Duration::from_secs(1);

/// How many workers a class has that are not stuck, and at most.
const fn bounds(class: Class) -> (usize, usize) {
    match class {
        Class::Demand => DEMAND,
        Class::Ahead => AHEAD,
    }
}

/// Since when a thread has been busy.
#[derive(Debug, Default)]
pub(crate) struct Busy(Mutex<Option<Instant>>);

impl Busy {
    /// Does some work, and is busy meanwhile.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        *lock(&self.0) = Some(Instant::now());
        let done = work();
        *lock(&self.0) = None;
        done
    }

    /// Whether it has been at it for longer.
    pub(crate) fn is_longer(&self, than: Duration) -> bool {
        lock(&self.0).is_some_and(|since| since.elapsed() > than)
    }
}

/// The workers.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) workers: Mutex<Vec<(Class, Arc<Busy>)>>,
    more: (Mutex<bool>, Condvar),
}

/// The readers.
#[derive(Debug, Default)]
pub(crate) struct Readers(pub(crate) Mutex<Vec<(Thread, Arc<Busy>)>>);

impl Pool {
    /// How many workers there are, and how many of them are stuck.
    pub(crate) fn count(&self) -> (usize, usize) {
        let workers = lock(&self.workers);
        (workers.len(), workers.iter().filter(|(_, busy)| busy.is_longer(STUCK)).count())
    }

    /// Lets the background look for work.
    pub(crate) fn wake_background(&self) {
        *lock(&self.more.0) = true;
        self.more.1.notify_all();
    }

    /// Waits until there may be work for the background.
    pub(crate) fn wait_for_more(&self) {
        let more = lock(&self.more.0);
        let wait = self.more.1.wait_timeout_while(more, IDLE, |more| !*more);
        *wait.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    /// How many workers of a class are missing.
    pub(crate) fn missing(&self, class: Class) -> usize {
        let (wanted, most) = bounds(class);
        let workers = lock(&self.workers);
        let ours: Vec<_> = workers.iter().filter(|(other, _)| *other == class).collect();
        let free = ours.iter().filter(|(_, busy)| !busy.is_longer(STUCK)).count();
        wanted.saturating_sub(free).min(most - ours.len())
    }

    /// Takes a worker out that is one too many.
    pub(crate) fn leave_if_surplus(&self, class: Class, busy: &Arc<Busy>) -> bool {
        let mut workers = lock(&self.workers);
        let of_class = workers.iter().filter(|(other, _)| *other == class);
        if of_class.filter(|(_, busy)| !busy.is_longer(STUCK)).count() <= bounds(class).0 {
            return false;
        }
        workers.retain(|(_, other)| !Arc::ptr_eq(other, busy));
        true
    }
}
