//! Merges the layers of a VM's RAM while it runs.

use crate::memory::layers::{Layers, LayersError};
use patina_control::best_effort;
use std::thread::{Builder, JoinHandle};

/// A merge under way. All that it works on is sealed, and it may be dropped at any time: its thread ends with its work, or with the process.
pub(super) struct Merging {
    source: Layers,
    thread: JoinHandle<Result<Layers, LayersError>>,
}

impl Merging {
    /// Begins to merge `source`.
    pub(super) fn start(source: Layers) -> std::io::Result<Self> {
        let layers = source.clone();
        let thread = Builder::new().name("merge".into()).spawn(move || layers.merge_youngest())?;
        Ok(Self { source, thread })
    }

    /// There is nothing to wait for.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// The same RAM as `current`, which is what was merged, or that with further layers on top.
    pub(super) fn finish(self, current: &Layers) -> Result<Layers, LayersError> {
        let merged = self.thread.join().map_err(|_| LayersError::Merge)??;
        Ok(current.rebased(&self.source, &merged))
    }
}

/// Lets go of what was merged. To free the pages takes time for each of them, and who wants the VM frozen is not to wait for that.
pub(super) fn let_go(layers: Layers) {
    let thread = Builder::new().name("free".into()).spawn(move || drop(layers));
    best_effort(thread, "without a thread they have been freed here");
}
