//! Limits for calls that wait: a total, shared so that no family can use all of it.
//!
//! A family has no more waiting calls than there is room left. So one family alone gets half of the
//! total, and there is always room for another one.

use super::Refusal;
use patina_daemon::lock;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};
use uuid::Uuid;

/// How many calls wait, in all and of each family.
#[derive(Debug)]
pub(super) struct Waits {
    most: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    families: HashMap<Uuid, usize>,
}

/// Somebody who waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    waits: &'a Waits,
    family: Uuid,
}

impl Waits {
    pub(super) fn new(most: usize) -> Self {
        Self { most, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // No code panics under this lock; if some did, a count would be one too high.
        lock(&self.counts)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.counts().all == 0
    }

    /// One more waits, of a family; operators who name none are one of their own.
    pub(super) fn enter(&self, family: Option<Uuid>) -> Result<Waiting<'_>, Refusal> {
        let family = family.unwrap_or_default();
        let mut counts = self.counts();
        let free = self.most.saturating_sub(counts.all);
        let own = counts.families.get(&family).copied().unwrap_or(0);
        if own >= free {
            return Err(Refusal::Crowded { own, free });
        }
        counts.all = counts.all.saturating_add(1);
        counts.families.insert(family, own.saturating_add(1));
        Ok(Waiting { waits: self, family })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut counts = self.waits.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.families.get_mut(&self.family) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.families.remove(&self.family);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_families_leave_room_for_another_one() {
        let waits = Waits::new(100);
        let id = |number: u128| Some(Uuid::from_u128(number));
        let fill = |family: Option<Uuid>| {
            let mut all = Vec::new();
            while let Ok(waiting) = waits.enter(family) {
                all.push(waiting);
            }
            all
        };
        let greedy: Vec<_> = (1..5).map(|number| fill(id(number))).collect();
        assert_eq!(greedy.iter().map(Vec::len).collect::<Vec<_>>(), [50, 25, 13, 6]);
        let refused = waits.enter(id(1)).unwrap_err();
        assert!(matches!(refused, Refusal::Crowded { own: 50, free: 6 }), "{refused}");
        assert!(waits.enter(id(9)).is_ok() && waits.enter(None).is_ok());
        drop(greedy);
        assert!(waits.counts().families.is_empty() && waits.counts().all == 0);
        assert_eq!(fill(None).len(), 50);
    }
}
