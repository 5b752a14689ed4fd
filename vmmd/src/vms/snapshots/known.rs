//! Which layers in memory are in a snapshot already, so that a later snapshot need not write them.

use patina_snapshot::directory::KnownLayer;
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, PoisonError},
};

/// How many layers are known; of more, the one that was noted first is forgotten.
const LAYERS_MAX: usize = 4096;

/// A memfd. The kernel gives no number twice before it starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memfd {
    device: u64,
    inode: u64,
}

impl Memfd {
    fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self { device: stat.dev(), inode: stat.ino() })
    }
}

/// The layers that are known. They are forgotten with the process.
#[derive(Debug, Default)]
pub struct KnownLayers(Mutex<VecDeque<(Memfd, KnownLayer)>>);

impl KnownLayers {
    /// A snapshot has the content of this memfd, which is sealed.
    pub fn note(&self, memfd: &File, layer: KnownLayer) {
        // Without it, the next snapshot writes the layer again.
        let Ok(memfd) = Memfd::of(memfd) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(other, _)| *other != memfd);
        if known.len() >= LAYERS_MAX {
            known.pop_front();
        }
        known.push_back((memfd, layer));
    }

    /// Where the content of this memfd is.
    #[must_use]
    pub fn find(&self, memfd: &File) -> Option<KnownLayer> {
        let memfd = Memfd::of(memfd).ok()?;
        // No code panics under this lock; if some did, the list itself is still whole.
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(other, _)| *other == memfd).map(|(_, layer)| layer.clone())
    }
}
