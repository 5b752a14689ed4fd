//! The file of a layer, whose content is checked run by run as it is read.

use super::{
    error::{FileError, OpenError, RunError},
    names,
};
use crate::manifest::{Layer, LayerId, RUN_BYTES};
use blake3::Hash;
use patina_control::sparse::is_zero;
use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
};

/// What a run holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Zeros only. The buffer was not written to.
    Zero,
    /// What is in the buffer now.
    Data,
}

/// A layer's content, opened for reading.
#[derive(Debug)]
pub struct LayerFile {
    file: File,
    layer: Arc<Layer>,
}

/// Tells whether a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    pub(super) inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl LayerFile {
    /// A file that has, or should have, the content of this layer. A process that may open no
    /// files gets it as a descriptor.
    ///
    /// # Errors
    /// It is not a regular file of the layer's length.
    pub fn new(file: File, layer: Arc<Layer>) -> Result<Self, OpenError> {
        let name = names::layer(layer.id());
        let path = Path::new(&name);
        let found = file.metadata().map_err(FileError::at("look at", path))?;
        if !found.is_file() {
            return Err(OpenError::NotAFile(path.to_owned()));
        }
        if found.len() != layer.bytes() {
            let (found, expected) = (found.len(), layer.bytes());
            return Err(OpenError::Size { path: path.to_owned(), found, expected });
        }
        Ok(Self { file, layer })
    }

    /// Reads a run, and checks it before it returns.
    ///
    /// # Errors
    /// The file cannot be read, or the content is not what it was. The buffer is zeros then.
    ///
    /// # Panics
    /// The buffer is not of [`RUN_BYTES`].
    pub fn read_run(&self, run: u64, buffer: &mut [u8]) -> Result<Run, RunError> {
        assert_eq!(buffer.len() as u64, RUN_BYTES, "the length of a buffer for a run");
        let (layer, runs) = (self.id(), self.layer.runs().count());
        if run >= runs {
            return Err(RunError::Range { layer, run, runs });
        }
        let Some(digest) = self.digest(run) else { return Ok(Run::Zero) };
        let read = self.file.read_exact_at(buffer, run * RUN_BYTES);
        let read = read.map_err(|source| RunError::Read { layer, run, source });
        let checked = read.and_then(|()| {
            if blake3::hash(buffer) == *digest { Ok(Run::Data) } else { Err(RunError::Digest { layer, run }) }
        });
        if checked.is_err() {
            // No caller uses what was not checked, not even by mistake.
            buffer.fill(0);
        }
        checked
    }

    /// Whether a run that is not present is zeros in the file, too.
    pub(super) fn is_zero(&self, run: u64, buffer: &mut [u8]) -> Result<bool, RunError> {
        let read = self.file.read_exact_at(buffer, run * RUN_BYTES);
        read.map_err(|source| RunError::Read { layer: self.id(), run, source })?;
        Ok(is_zero(buffer))
    }

    /// The layer's name.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.layer.id()
    }

    /// The layer's length, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layer.bytes()
    }

    /// What the manifest says of the layer.
    #[must_use]
    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Whether the run is present. If it is not, it is zeros.
    #[must_use]
    pub fn is_present(&self, run: u64) -> bool {
        self.layer.runs().is_present(run)
    }

    /// The digest of a run. None: it is not present.
    #[must_use]
    pub fn digest(&self, run: u64) -> Option<&Hash> {
        self.layer.runs().digest(run)
    }

    /// The file. What is read from it, or mapped, is not checked.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn stamp(&self) -> Result<Stamp, FileError> {
        Stamp::of(&self.file, Path::new(&names::layer(self.id())))
    }
}

impl Stamp {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, FileError> {
        let stat = file.metadata().map_err(FileError::at("look at", path))?;
        let modified = (stat.mtime(), stat.mtime_nsec());
        Ok(Self { device: stat.dev(), inode: stat.ino(), bytes: stat.len(), modified })
    }
}
