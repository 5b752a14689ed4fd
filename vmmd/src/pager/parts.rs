//! What the pager needs of a layer.

use super::{demand::Demand, error::PagerError};
use crate::process::filling::FileNumber;
use patina_control::{
    memfd,
    pager::{Id, RUN_BYTES, layer_memfd},
};
use patina_daemon::lock;
use patina_snapshot::directory::LayerFile;
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

/// The length of a digest, bytes.
const DIGEST_BYTES: usize = 32;

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
    /// The layer's file.
    pub source: SourceFile,
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
        let id = id_of(layer)?;
        let source = layer.file().try_clone().map_err(PagerError::Memory)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&source)));
        let path = path.ok();
        let demand = Demand::load(path.as_deref(), layer.bytes());
        let memfd = layer_memfd("patina-layer", layer.bytes()).map_err(PagerError::Memory)?;
        let digests = memfd::sealed("patina-digests", &digests(layer)).map_err(PagerError::Memory)?;
        let number = number_of(&memfd).map_err(PagerError::Memory)?;
        Ok(Self {
            id,
            bytes: layer.bytes(),
            memfd,
            number,
            digests,
            source: SourceFile::new(Some(source)),
            path,
            demand,
        })
    }
}

/// The file of a layer, until all of the layer has arrived.
#[derive(Debug)]
pub struct SourceFile(Mutex<Option<Arc<File>>>);

impl SourceFile {
    /// None: it is gone. What has not arrived is lost.
    #[must_use]
    pub fn new(file: Option<File>) -> Self {
        Self(Mutex::new(file.map(Arc::new)))
    }

    fn file(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        // No code panics under this lock.
        lock(&self.0)
    }

    /// For a pager. If there is none, an empty file.
    ///
    /// # Errors
    /// There is no memory or no descriptor.
    pub fn open(&self) -> io::Result<Arc<File>> {
        let file = self.file().clone();
        file.map_or_else(|| memfd::sealed("patina-gone", &[]).map(Arc::new), Ok)
    }

    /// Nobody needs it any longer: its snapshot may be deleted, and its disk unmounted.
    pub fn close(&self) {
        drop(self.file().take());
    }
}

/// The name of a layer of a snapshot: the same for all with this content.
///
/// # Errors
/// None: the digits of a digest are such a name.
pub fn id_of(layer: &LayerFile) -> Result<Id, PagerError> {
    let digits: String = layer.id().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Id::try_from(digits.clone()).map_err(|_| PagerError::NoLayer(digits))
}

fn digests(layer: &LayerFile) -> Vec<u8> {
    let runs = layer.bytes().div_ceil(RUN_BYTES);
    let digest = |run| layer.digest(run).map_or([0; DIGEST_BYTES], |digest| *digest.as_bytes());
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
