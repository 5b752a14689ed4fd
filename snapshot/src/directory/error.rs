//! What can go wrong with a snapshot in a directory.

use crate::manifest::{LayerId, ManifestError};
use patina_control::{config::LAYERS_MAX, messages::STATE_MAX_BYTES};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The system refuses an operation on a file.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct FileError {
    /// What was done: `write`, for example.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(super) fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self { operation, path: path.to_owned(), source: source.into() }
    }
}

/// Why a snapshot was not made. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The path names no place in a directory.
    #[error("create snapshot {0}: name a directory that does not exist yet")]
    Place(PathBuf),
    /// Something is there already.
    #[error("create snapshot {0}: it exists already; choose another name, or remove it first")]
    Exists(PathBuf),
    /// The name is one of an unfinished snapshot.
    #[error("create snapshot {0}: names of unfinished snapshots begin like this; choose another name")]
    Reserved(PathBuf),
    /// A manifest cannot hold what describes the VM.
    #[error("describe the VM in the snapshot's manifest")]
    Description(#[from] ManifestError),
    /// The RAM comes in no file, or in too many.
    #[error("save the RAM: it has {0} layers, 1 to {LAYERS_MAX} are allowed")]
    Layers(usize),
    /// A layer is of another length than the RAM.
    #[error("save layer {layer}: it has {found} bytes instead of the RAM's {expected}")]
    LayerSize {
        /// The layer's number.
        layer: usize,
        /// Its length, bytes.
        found: u64,
        /// The RAM's length, bytes.
        expected: u64,
    },
    /// The state has no length that a state can have.
    #[error("save the state: it has {found} bytes, 1 to {STATE_MAX_BYTES} are allowed")]
    StateSize {
        /// Its length, bytes.
        found: u64,
    },
    /// A layer or the state cannot be read.
    #[error("read {what}")]
    Read {
        /// `layer 0` or `the state`, for example.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("create the snapshot; nothing was left behind")]
    File(#[from] FileError),
    /// The caller has cancelled it.
    #[error("create the snapshot: cancelled; nothing was left behind")]
    Cancelled,
}

/// Why a directory is not opened as a snapshot, or a file in it not used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("open snapshot {0}: it does not exist")]
    Missing(PathBuf),
    /// The path names a file, or no place in a directory.
    #[error("open snapshot {0}: it is not a directory")]
    NotADirectory(PathBuf),
    /// There is no manifest in it.
    #[error("open snapshot {0}: it is not a snapshot: it has no file \"manifest\"")]
    NotASnapshot(PathBuf),
    /// A process that was killed left it, or is writing it.
    #[error(
        "open snapshot {0}: it is unfinished: it is still being made or removed, or the process that did so \
         was killed; the next snapshot that is made beside it removes it then"
    )]
    Unfinished(PathBuf),
    /// It is being made or removed.
    #[error("open snapshot {0}: it is being made or removed; try again later")]
    Busy(PathBuf),
    /// It is a symbolic link.
    #[error("open {0}: it is a symbolic link, which is not followed; name the snapshot's own directory")]
    Link(PathBuf),
    /// A file of the snapshot is not there.
    #[error("open {0}: the file is missing; get a whole copy of the snapshot")]
    MissingFile(PathBuf),
    /// What has the name of a file is no file.
    #[error("open {0}: it is not a regular file; get a whole copy of the snapshot")]
    NotAFile(PathBuf),
    /// A file has another length than the manifest says.
    #[error("open {path}: it has {found} bytes instead of {expected}; get a whole copy of the snapshot")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        found: u64,
        /// The length that it must have, bytes.
        expected: u64,
    },
    /// The manifest is not right.
    #[error("read {path}")]
    Manifest {
        /// The manifest's path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The content of the state has changed.
    #[error(
        "read {0}: its content does not match its digest: it was changed or damaged; get another copy of the snapshot"
    )]
    State(PathBuf),
    /// The system refuses something.
    #[error("open the snapshot")]
    File(#[from] FileError),
}

/// Why a run of a layer is not given out.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The layer has no such run.
    #[error("read run {run} of layer {layer}: the layer has {runs} runs")]
    Range {
        /// The layer.
        layer: LayerId,
        /// The run.
        run: u64,
        /// How many runs the layer has.
        runs: u64,
    },
    /// The file cannot be read.
    #[error("read run {run} of layer {layer}")]
    Read {
        /// The layer.
        layer: LayerId,
        /// The run.
        run: u64,
        /// The system's reason. `UnexpectedEof`: the file was cut.
        #[source]
        source: io::Error,
    },
    /// The content has changed.
    #[error(
        "read run {run} of layer {layer}: its content does not match its digest: it was changed or damaged"
    )]
    Digest {
        /// The layer.
        layer: LayerId,
        /// The run.
        run: u64,
    },
}

/// Why a layer is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A run is not what it should be.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The file in memory has another length.
    #[error("load layer {layer}: the file in memory has {found} bytes instead of {expected}")]
    Size {
        /// The layer.
        layer: LayerId,
        /// The length of the file in memory, bytes.
        found: u64,
        /// The length that it must have, bytes.
        expected: u64,
    },
    /// The file in memory has content already.
    #[error("load layer {layer}: the file in memory is not empty")]
    NotEmpty {
        /// The layer.
        layer: LayerId,
    },
    /// The file in memory cannot be written.
    #[error("load layer {layer}; check that the host has free memory")]
    Write {
        /// The layer.
        layer: LayerId,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The caller has cancelled it.
    #[error("load the layer: cancelled")]
    Cancelled,
}

/// What a full check of a snapshot has found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The state is not right.
    #[error(transparent)]
    State(#[from] OpenError),
    /// A run is not right.
    #[error(transparent)]
    Run(#[from] RunError),
    /// There is content where the manifest has none. Only who maps the file sees it.
    #[error(
        "check run {run} of layer {layer}: the file has content where the manifest has zeros: it was changed or damaged"
    )]
    Stray {
        /// The layer.
        layer: LayerId,
        /// The run.
        run: u64,
    },
    /// The caller has cancelled it.
    #[error("check the snapshot: cancelled")]
    Cancelled,
}

/// Why a snapshot is not removed, or a directory not listed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Nothing is there.
    #[error("remove snapshot {0}: it does not exist")]
    Missing(PathBuf),
    /// It is something else.
    #[error("remove snapshot {place}: it is not a snapshot: {why}; nothing was removed")]
    NotASnapshot {
        /// The path.
        place: PathBuf,
        /// What is different.
        why: String,
    },
    /// Someone has it open.
    #[error("remove snapshot {0}: it is in use; end what restores, checks or copies it, and try again")]
    InUse(PathBuf),
    /// The system refuses something.
    #[error("remove the snapshot")]
    File(#[from] FileError),
}
