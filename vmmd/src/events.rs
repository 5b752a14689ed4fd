//! Events of the host's VMs for watchers. The latest events are kept; new ones are forwarded.
//! Events of tickets come from the scheduler.

use patina_daemon::lock;
use patina_proto::v1::{Event, EventKind};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::broadcast;
use uuid::Uuid;

/// How many events are remembered.
pub const REMEMBERED: usize = 1000;
/// How far a watcher may fall behind before it misses some.
const BEHIND: usize = 1024;

/// All watchers of a host, and its past.
#[derive(Debug)]
pub struct Events {
    past: Mutex<Past>,
    sender: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Past {
    last_serial: u64,
    events: VecDeque<Event>,
}

/// Of whom an event is.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The family.
    pub family: Uuid,
    /// The VM's name and vmid; None: of no VM.
    pub vm: Option<(&'a str, u32)>,
    /// The ticket that it was made under.
    pub ticket: Option<Uuid>,
}

impl Default for Events {
    fn default() -> Self {
        Self { past: Mutex::default(), sender: broadcast::channel(BEHIND).0 }
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Past> {
        // No code panics under this lock; if some did, the list itself is still whole.
        lock(&self.past)
    }

    /// Something has happened.
    pub fn tell(&self, of: Of<'_>, kind: EventKind, text: impl Into<String>, unix_ms: u64) {
        let (vm, vmid) = of.vm.unwrap_or_default();
        let mut past = self.lock();
        past.last_serial += 1;
        let event = Event {
            serial: past.last_serial,
            unix_ms,
            family: of.family.to_string(),
            vm: vm.to_owned(),
            vmid,
            ticket: of.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
            kind: kind.into(),
            text: text.into(),
            missed: 0,
        };
        if past.events.len() == REMEMBERED {
            past.events.pop_front();
        }
        past.events.push_back(event.clone());
        // Under the lock, so that who begins to watch misses nothing and has nothing twice.
        if self.sender.send(event).is_err() {
            // Nobody watches.
        }
    }

    /// What is remembered, and all that comes after it.
    #[must_use]
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = self.lock();
        (past.events.iter().cloned().collect(), self.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_has_the_past_and_the_future_once_each() {
        let events = Events::default();
        let of = Of { family: Uuid::from_u128(1), vm: Some(("a", 3)), ticket: None };
        for _ in 0..REMEMBERED + 5 {
            events.tell(of, EventKind::Ready, "", 1);
        }
        let (past, mut future) = events.watch();
        assert_eq!((past.len(), past[0].serial, past[REMEMBERED - 1].serial), (REMEMBERED, 6, 1005));
        events.tell(of, EventKind::Ended, "killed", 2);
        let next = future.try_recv().unwrap();
        assert_eq!((next.serial, next.kind(), next.vmid), (1006, EventKind::Ended, 3));
        assert!(future.try_recv().is_err());
    }
}
