//! What VMs have demanded of a layer: learnt from the pager, kept with the snapshot, and given to
//! the next pager, which fetches it first.

use patina_control::{
    memfd,
    pager::{DemandBitmap, read_sealed},
};
use patina_daemon::lock;
use patina_snapshot::directory::{load_demand, save_demand};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

/// It has settled when so small a part of what is kept is new: one in so many runs. VMs of one
/// snapshot differ by a few runs, however many have started.
const SETTLED: usize = 32;

/// See the module.
#[derive(Debug)]
pub struct Demand {
    /// The layer's file. None: nobody knows where it is.
    layer: Option<PathBuf>,
    layer_bytes: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    all: DemandBitmap,
    /// Runs that are new since it was kept, or demanded earlier.
    news: usize,
    /// It cannot be kept.
    is_refused: bool,
}

impl Demand {
    /// What is kept beside the layer's file. May block.
    #[must_use]
    pub fn load(layer: Option<&Path>, layer_bytes: u64) -> Self {
        let load = |layer: &Path| match load_demand(layer, layer_bytes) {
            Ok(kept) => kept,
            Err(error) => {
                let error = patina_daemon::chain(&error);
                tracing::warn!(
                    layer = %layer.display(), error,
                    "what VMs demanded of a layer earlier is ignored; it is fetched in another order"
                );
                None
            }
        };
        let all = layer.and_then(load).unwrap_or_else(|| DemandBitmap::new(layer_bytes));
        let known = Mutex::new(Known { all, news: 0, is_refused: false });
        Self { layer: layer.map(Path::to_owned), layer_bytes, known }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code panics under this lock; if some did, the bits themselves are still true.
        lock(&self.known)
    }

    /// For a pager: the bitmap in a sealed memfd. None: nothing is known, or there is no memory for
    /// it.
    #[must_use]
    pub fn memfd(&self) -> Option<File> {
        let known = self.known();
        if known.all.count() == 0 {
            return None;
        }
        memfd::sealed("patina-demand", known.all.encode()).ok()
    }

    /// How many runs are known to be demanded.
    #[must_use]
    pub fn count(&self) -> usize {
        self.known().all.count()
    }

    /// Adds what a pager tells, in a sealed memfd.
    ///
    /// # Errors
    /// It is no bitmap of this layer.
    pub fn learn(&self, told: &File) -> io::Result<()> {
        let bytes = read_sealed(told, DemandBitmap::encoded_bytes(self.layer_bytes))?;
        let told = DemandBitmap::decode(&bytes, self.layer_bytes).map_err(io::Error::other)?;
        let mut known = self.known();
        known.news += known.all.merge(&told);
        Ok(())
    }

    /// Keeps it with the snapshot, unless it has settled. May block. The snapshot may be gone, or
    /// on a disk that is read-only: then nothing is kept.
    pub fn save(&self) {
        let Some(layer) = &self.layer else { return };
        let all = {
            let mut known = self.known();
            let has_settled = known.news * SETTLED <= known.all.count();
            if known.is_refused || has_settled {
                return;
            }
            known.news = 0;
            known.all.clone()
        };
        if let Err(error) = save_demand(layer, self.layer_bytes, &all) {
            self.known().is_refused = true;
            let error = patina_daemon::chain(&error);
            tracing::info!(layer = %layer.display(), error, "what VMs demand of a layer is not kept");
        }
    }
}
