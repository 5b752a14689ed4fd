//! Families whose master is about to start. Clones of a snapshot are granted before their master
//! runs: a scheduler that is told meanwhile which masters there are would take it for ended.

use patina_daemon::lock;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
};
use uuid::Uuid;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct ComingMasters(Arc<Mutex<HashSet<Uuid>>>);

impl ComingMasters {
    fn families(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // No code panics under this lock; if some did, the set itself is still whole.
        lock(&self.0)
    }

    /// The family's master counts as one that runs, until what this returns is dropped.
    #[must_use]
    pub(super) fn expect(&self, family: Uuid) -> Coming {
        self.families().insert(family);
        Coming { all: self.clone(), family }
    }

    /// The families.
    pub(super) fn all(&self) -> Vec<Uuid> {
        self.families().iter().copied().collect()
    }
}

/// A family whose master is about to start.
#[derive(Debug)]
pub(super) struct Coming {
    all: ComingMasters,
    family: Uuid,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.all.families().remove(&self.family);
    }
}
