//! What the pager needs of a layer.

use super::{
    demand::Demand,
    error::PagerError,
    peers::{PeerSource, SavedPeer},
};
use crate::process::filling::FileNumber;
use blake3::Hash;
use patina_control::{
    memfd,
    pager::{Id, LAYER_MAX_BYTES, RUN_BYTES, layer_memfd, read_sealed},
};
use patina_daemon::lock;
use patina_snapshot::{
    directory::LayerFile,
    manifest::{Layer, Runs},
};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};
use uuid::Uuid;

/// The length of a digest, bytes.
const DIGEST_BYTES: usize = 32;
/// Longest list of digests, bytes.
pub(super) const DIGESTS_MAX_BYTES: u64 = LAYER_MAX_BYTES / RUN_BYTES * DIGEST_BYTES as u64;

/// What the pager needs of a layer, and another pager after it.
#[derive(Debug)]
pub struct Parts {
    /// The layer's name.
    pub id: Id,
    /// The layer's length, bytes.
    pub bytes: u64,
    /// The layer's memory, for reading and writing.
    pub memfd: File,
    /// Which file the memfd is.
    pub number: FileNumber,
    /// The digests of the layer's runs, as [`patina_control::pager::ToPager::AddLayer`] says.
    pub digests: File,
    /// Where the layer's runs are read.
    pub source: Source,
    /// Where `source` is, for a `vmmd` after this one. None: nobody knows.
    pub path: Option<PathBuf>,
    /// What VMs have demanded of it.
    pub demand: Demand,
}

impl Parts {
    /// Those of a layer of a snapshot, with a memfd that is empty. May block.
    ///
    /// # Errors
    /// There is no memory or no descriptor for it.
    pub fn of_snapshot(layer: &LayerFile) -> Result<Self, PagerError> {
        let source = layer.file().try_clone().map_err(PagerError::Memory)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&source)));
        let path = path.ok();
        let demand = Demand::load(path.as_deref(), layer.bytes());
        let memfd = layer_memfd("patina-layer", layer.bytes()).map_err(PagerError::Memory)?;
        let parts = Self::new(layer.layer(), memfd, Source::file(Some(source)))?;
        Ok(Self { path, demand, ..parts })
    }

    /// Those of a layer that another host's pager has, with a memfd that is empty. May block.
    ///
    /// # Errors
    /// There is no memory or no descriptor for it.
    pub fn of_peer(layer: &Layer, peer: &Arc<PeerSource>, number: u32) -> Result<Self, PagerError> {
        let memfd = layer_memfd("patina-layer", layer.bytes()).map_err(PagerError::Memory)?;
        Self::new(layer, memfd, Source::peer(Arc::clone(peer), number))
    }

    /// Those of a layer that is complete in a sealed memfd. May block.
    ///
    /// # Errors
    /// There is no memory or no descriptor for it.
    pub fn of_sealed(layer: &Layer, memfd: File) -> Result<Self, PagerError> {
        Self::new(layer, memfd, Source::file(None))
    }

    fn new(layer: &Layer, memfd: File, source: Source) -> Result<Self, PagerError> {
        let digests = memfd::sealed("patina-digests", &digests(layer)).map_err(PagerError::Memory)?;
        let number = number_of(&memfd).map_err(PagerError::Memory)?;
        let (id, bytes) = (id_of(layer)?, layer.bytes());
        Ok(Self { id, bytes, memfd, number, digests, source, path: None, demand: Demand::load(None, bytes) })
    }

    /// What it is, as a manifest describes it.
    ///
    /// # Errors
    /// The digests cannot be read.
    pub fn layer(&self) -> Result<Layer, PagerError> {
        let digests = read_sealed(&self.digests, DIGESTS_MAX_BYTES).map_err(PagerError::Memory)?;
        let runs = (0u64..).zip(digests.as_chunks::<DIGEST_BYTES>().0);
        let present: Vec<_> = runs
            .filter(|(_, digest)| **digest != [0; DIGEST_BYTES])
            .map(|(run, digest)| (run, Hash::from_bytes(*digest)))
            .collect();
        let runs = Runs::new(self.bytes.div_ceil(RUN_BYTES), &present);
        runs.map(Layer::new).map_err(|_| PagerError::NoLayer(self.id.to_string()))
    }
}

/// Where the runs of a layer are read, until all of the layer has arrived.
#[derive(Debug)]
pub struct Source(Mutex<Option<Opened>>);

/// A source, for a pager.
#[derive(Debug, Clone)]
pub enum Opened {
    /// The layer's file.
    File(Arc<File>),
    /// Another host's pager, and the layer's number there.
    Peer(Arc<PeerSource>, u32),
}

impl Source {
    /// A file. None: it is gone. What has not arrived is lost.
    #[must_use]
    pub fn file(file: Option<File>) -> Self {
        Self(Mutex::new(file.map(Arc::new).map(Opened::File)))
    }

    /// Another host's pager.
    #[must_use]
    pub fn peer(peer: Arc<PeerSource>, number: u32) -> Self {
        Self(Mutex::new(Some(Opened::Peer(peer, number))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        // No code panics under this lock.
        lock(&self.0)
    }

    /// For a pager. If there is none, an empty file.
    ///
    /// # Errors
    /// There is no memory or no descriptor.
    pub fn open(&self) -> io::Result<Opened> {
        let source = self.lock().clone();
        source.map_or_else(|| memfd::sealed("patina-gone", &[]).map(Arc::new).map(Opened::File), Ok)
    }

    /// Has what is read at another host's pager read at this one. False: it is not read at any.
    pub fn replace(&self, peer: Arc<PeerSource>, number: u32) -> bool {
        let mut source = self.lock();
        let Some(current @ Opened::Peer(..)) = &mut *source else { return false };
        let before = std::mem::replace(current, Opened::Peer(peer, number));
        drop(source);
        // Not under the lock: the last user of a peer lets go of it.
        drop(before);
        true
    }

    /// The other host's pager.
    #[must_use]
    pub fn peer_source(&self) -> Option<Arc<PeerSource>> {
        match &*self.lock() {
            Some(Opened::Peer(peer, _)) => Some(Arc::clone(peer)),
            Some(Opened::File(_)) | None => None,
        }
    }

    /// What is written of the other host, if it is one.
    #[must_use]
    pub fn saved(&self) -> Option<SavedPeer> {
        match &*self.lock() {
            Some(Opened::Peer(peer, number)) => {
                Some(SavedPeer { id: peer.id().clone(), lender: peer.lender().clone(), number: *number })
            }
            Some(Opened::File(_)) | None => None,
        }
    }

    /// Nobody needs it any longer: its snapshot may be deleted, and its disk unmounted.
    pub fn close(&self) {
        let source = self.lock().take();
        // Not under the lock: the last user of a peer lets go of it.
        drop(source);
    }
}

/// The name of a layer of a snapshot: the same for all with this content.
///
/// # Errors
/// None: the digits of a digest are such a name.
pub fn id_of(layer: &Layer) -> Result<Id, PagerError> {
    let digits: String = layer.id().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Id::try_from(digits.clone()).map_err(|_| PagerError::NoLayer(digits))
}

/// The name of what has this number.
///
/// # Errors
/// None: the digits of a number are such a name.
pub fn name_of(number: Uuid) -> Result<Id, PagerError> {
    Id::try_from(number.to_string()).map_err(|_| PagerError::NoLayer(number.to_string()))
}

fn digests(layer: &Layer) -> Vec<u8> {
    let runs = layer.bytes().div_ceil(RUN_BYTES);
    let digest = |run| layer.runs().digest(run).map_or([0; DIGEST_BYTES], |digest| *digest.as_bytes());
    (0..runs).flat_map(digest).collect()
}

/// Which file a descriptor is of.
///
/// # Errors
/// The kernel's.
pub fn number_of(file: &File) -> io::Result<FileNumber> {
    let stat = file.metadata()?;
    Ok(FileNumber { device: stat.dev(), inode: stat.ino() })
}
