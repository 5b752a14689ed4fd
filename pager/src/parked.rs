//! Runs that a source has failed to give: they wait until the layer has another source, or until it
//! is known that there is none.

use crate::layer::Layer;
use crate::source::{PageSource, RunError};
use patina_daemon::lock;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Most runs that wait. One more fails.
const PARKED_MAX: usize = 4096;

/// A run that waits for another source.
pub(crate) struct Waiting {
    /// The layer.
    pub(crate) layer: Arc<Layer>,
    /// What failed.
    pub(crate) source: Arc<dyn PageSource>,
    /// Since when it waits.
    pub(crate) since: Instant,
    /// How it failed.
    pub(crate) error: RunError,
    /// Asks for it again; with an error, gives it up.
    pub(crate) go_on: Box<dyn FnOnce(Option<RunError>) + Send>,
}

/// What becomes of a run that is to wait.
pub(crate) enum Kept {
    /// It waits. Whether no other run of the same source did.
    Waits(bool),
    /// It need not: the layer has another source by now.
    Replaced(Waiting),
    /// Too many wait.
    Full(Waiting),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Parked(Mutex<Vec<Waiting>>);

impl Parked {
    /// Has a run wait.
    pub(crate) fn keep(&self, waiting: Waiting) -> Kept {
        let mut all = lock(&self.0);
        // Who replaces the source looks here after that.
        let current = waiting.layer.source();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, &waiting.source)) {
            return Kept::Replaced(waiting);
        }
        if all.len() >= PARKED_MAX {
            return Kept::Full(waiting);
        }
        let is_first = !all.iter().any(|other| other.source.peer() == waiting.source.peer());
        all.push(waiting);
        Kept::Waits(is_first)
    }

    /// Takes out some of those that wait.
    pub(crate) fn take(&self, is_wanted: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        lock(&self.0).extract_if(.., |waiting| is_wanted(waiting)).collect()
    }
}
