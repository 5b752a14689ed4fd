//! Asks for runs at a source, and at another one when that one fails.
//!
//! ```text
//!  ask ─▶ source ─▶ right bytes ─▶ done
//!           │ gives up, and the layer has another source by now ─▶ ask
//!           │ lies, or cannot read the run ─▶ parked ─▶ another source: ask
//!           ▼                                    └───▶ none in time: failed
//!         failed
//! ```
//!
//! Who controls the pager is told that a source fails, and finds another one.

use crate::engine::{Engine, EngineError, Happened, Job};
use crate::layer::Layer;
use crate::parked::{Kept, Waiting};
use crate::source::{Class, Done, PageSource, RunError};
use patina_control::pager::Id;
use patina_daemon::{chain, lock};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a run is asked for again.
const AGAIN_MAX: u8 = 4;
/// How long a run waits for another source.
const PARKED_PATIENCE: Duration = Duration::from_secs(2);

/// What becomes of a run that was fetched, or cannot be.
pub(crate) type Finish = fn(&Engine, &Job, Result<u16, RunError>);

/// A run that is asked for.
pub(crate) struct Asking {
    job: Job,
    class: Class,
    finish: Finish,
    /// How often it was asked for before.
    again: u8,
}

impl Asking {
    /// One that was not asked for yet.
    pub(crate) fn new(job: Job, class: Class, finish: Finish) -> Self {
        Self { job, class, finish, again: 0 }
    }
}

impl Layer {
    /// Has another source from now on. The earlier one. None: all of the layer is there.
    fn replace_source(&self, source: Arc<dyn PageSource>) -> Option<Arc<dyn PageSource>> {
        lock(&self.source).as_mut().map(|current| std::mem::replace(current, source))
    }

    /// The source, if it is another one than this.
    fn source_after(&self, source: &Arc<dyn PageSource>) -> Option<Arc<dyn PageSource>> {
        self.source().filter(|current| !Arc::ptr_eq(current, source))
    }
}

impl Engine {
    /// Asks a source for a run. Some: this source cannot be asked.
    pub(crate) fn ask(self: &Arc<Self>, source: &Arc<dyn PageSource>, asking: Asking) -> Option<Done> {
        let (engine, of) = (Arc::clone(self), Arc::clone(source));
        let (run, class) = (asking.job.run, asking.class);
        let bytes = asking.job.layer.run_bytes(run);
        let done = move |answer: Result<&[u8], RunError>| match answer
            .and_then(|bytes| asking.job.layer.take(run, bytes))
        {
            Ok(data) => engine.end(&asking, Ok(data)),
            Err(error) => engine.ask_another(&of, asking, error),
        };
        source.request(run, bytes, class, Box::new(done))
    }

    fn end(&self, asking: &Asking, fetched: Result<u16, RunError>) {
        (asking.finish)(self, &asking.job, fetched);
        if asking.class == Class::Ahead {
            // There is room for more.
            self.pool.wake_background();
        }
    }

    /// A source has failed to give a run.
    fn ask_another(self: &Arc<Self>, source: &Arc<dyn PageSource>, asking: Asking, error: RunError) {
        let layer = Arc::clone(&asking.job.layer);
        if asking.again >= AGAIN_MAX {
            return self.end(&asking, Err(error));
        }
        if let Some(next) = layer.source_after(source) {
            return self.ask_again(&next, asking);
        }
        let is_its_fault = matches!(error, RunError::Digest | RunError::Refused);
        let Some(peer) = source.peer().filter(|_| is_its_fault).cloned() else {
            return self.end(&asking, Err(error));
        };
        let (engine, reason) = (Arc::clone(self), chain(&error));
        let go_on = move |given_up: Option<RunError>| match (given_up, asking.job.layer.source()) {
            (None, Some(next)) => engine.ask_again(&next, asking),
            (given_up, _) => engine.end(&asking, Err(given_up.unwrap_or(RunError::Away))),
        };
        let (source, since, go_on) = (Arc::clone(source), Instant::now(), Box::new(go_on));
        match self.parked.keep(Waiting { layer, source, since, error, go_on }) {
            Kept::Waits(true) => self.tell(Happened::PeerFailing { peer, reason }),
            Kept::Waits(false) => {}
            Kept::Replaced(waiting) => (waiting.go_on)(None),
            Kept::Full(waiting) => (waiting.go_on)(Some(waiting.error)),
        }
    }

    fn ask_again(self: &Arc<Self>, source: &Arc<dyn PageSource>, asking: Asking) {
        let asking = Asking { again: asking.again + 1, ..asking };
        if let Some(done) = self.ask(source, asking) {
            done(Err(RunError::Away));
        }
    }

    /// Has a layer read at another source. What has no answer is asked there. A layer that is
    /// complete needs none.
    ///
    /// # Errors
    /// There is no such layer.
    pub(crate) fn replace_source(
        self: &Arc<Self>,
        layer: &Id,
        source: Arc<dyn PageSource>,
    ) -> Result<(), EngineError> {
        let layer = self.layer(layer).ok_or(EngineError::Unknown)?;
        let Some(before) = layer.replace_source(source) else { return Ok(()) };
        // What was not fetched ahead any longer is fetched again.
        layer.background.failures.store(0, Ordering::Relaxed);
        before.let_go();
        let waiting = self.parked.take(|waiting| Arc::ptr_eq(&waiting.layer, &layer));
        waiting.into_iter().for_each(|waiting| (waiting.go_on)(None));
        self.pool.wake_background();
        Ok(())
    }

    /// Nobody else has what a peer failed to give.
    pub(crate) fn give_up_on(&self, peer: &Id) {
        self.give_up_parked(|waiting| waiting.source.peer() == Some(peer));
    }

    /// Gives up what has waited for another source for too long. To be called from time to time.
    pub(crate) fn give_up_late(&self, now: Instant) {
        self.give_up_parked(|waiting| now.saturating_duration_since(waiting.since) >= PARKED_PATIENCE);
    }

    fn give_up_parked(&self, is_given_up: impl Fn(&Waiting) -> bool) {
        for waiting in self.parked.take(is_given_up) {
            (waiting.go_on)(Some(waiting.error));
        }
    }
}
