//! Layers whose digests are known.

use crate::process::filling::FileNumber;
use patina_daemon::lock;
use patina_snapshot::manifest::Layer;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

/// How many layers are known by their digests; of more, the one that was first is forgotten.
const DESCRIBED_MAX: usize = 1024;

/// The digests of layers that other hosts were told of: a generation has most of its layers in
/// common with the one before.
#[derive(Debug, Default)]
pub struct Described(Mutex<VecDeque<(FileNumber, Arc<Layer>)>>);

impl Described {
    /// What a memfd holds. It is sealed, and the kernel gives no number twice before it starts
    /// anew.
    #[must_use]
    pub fn find(&self, number: FileNumber) -> Option<Arc<Layer>> {
        let known = lock(&self.0);
        known.iter().find(|(other, _)| *other == number).map(|(_, layer)| Arc::clone(layer))
    }

    /// A memfd holds this layer.
    pub fn note(&self, number: FileNumber, layer: Arc<Layer>) {
        let mut known = lock(&self.0);
        if known.len() >= DESCRIBED_MAX {
            known.pop_front();
        }
        known.push_back((number, layer));
    }
}
