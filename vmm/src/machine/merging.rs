//! Merges the layers of a VM's RAM while it runs.

use crate::memory::layers::{Layers, LayersError};
use patina_control::best_effort;
use std::thread::{Builder, JoinHandle};

/// A merge in progress. It works on sealed files only, so it may be dropped at any time. Its thread
/// ends with its work, or with the process.
pub(super) struct Merging {
    source: Layers,
    thread: JoinHandle<Result<Layers, LayersError>>,
}

impl Merging {
    /// Starts to merge `source`.
    pub(super) fn start(source: Layers) -> std::io::Result<Self> {
        let layers = source.clone();
        let thread = Builder::new().name("merge".into()).spawn(move || layers.merge_youngest())?;
        Ok(Self { source, thread })
    }

    /// Whether [`Merging::finish`] returns without a wait.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// The same RAM as `current` in fewer layers. `current` is the source of the merge, or the
    /// source with more layers on top.
    pub(super) fn finish(self, current: &Layers) -> Result<Layers, LayersError> {
        let merged = self.thread.join().map_err(|_| LayersError::Merge)??;
        Ok(current.rebased(&self.source, &merged))
    }
}

/// Drops layers that were merged, on a thread of its own: it takes time to free each page, and a
/// freeze must not wait for that.
pub(super) fn let_go(layers: Layers) {
    let thread = Builder::new().name("free".into()).spawn(move || drop(layers));
    best_effort(thread, "if no thread could be started, the layers were dropped here");
}
