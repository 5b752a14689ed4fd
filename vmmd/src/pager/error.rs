//! Why the pager does not serve.

use crate::{
    process::{ProcessError, generation::GenerationError},
    store::StoreError,
};
use patina_abi::lines::TooLong;
use patina_control::pager::{PAGER_LAYERS_MAX, PAGER_VMS_MAX, VERSION};
use patina_snapshot::directory::OpenError;
use std::{io, path::PathBuf, time::Duration};

/// Why memory cannot be served lazily.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The program cannot be run.
    #[error("run the pager {program}; install it beside vmmd, or name it with --pager")]
    Run {
        /// The program's path.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Its folder or its socket cannot be made.
    #[error("prepare {path} for the pager")]
    Prepare {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of its folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its process cannot be watched.
    #[error(transparent)]
    Watch(#[from] ProcessError),
    /// The connection broke.
    #[error("talk to the pager")]
    Io(#[from] io::Error),
    /// It closed the connection.
    #[error("talk to the pager: it closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("wait for the pager's answer: timeout after {0:?}")]
    Timeout(Duration),
    /// A line is too long.
    #[error("read from the pager")]
    Long(#[from] TooLong),
    /// A line is not what it should be.
    #[error("parse the pager's line")]
    Parse(#[source] serde_json::Error),
    /// A line has no descriptor, although its kind has one.
    #[error("read from the pager: a descriptor is missing")]
    NoDescriptor,
    /// It is of another version.
    #[error(
        "talk to the pager: it speaks version {0} of its protocol, this vmmd version {VERSION}; vmmd, vmm and pager \
         must be of one release"
    )]
    Version(u32),
    /// It has not the layer that a VM needs.
    #[error("use layer {0}: the pager does not have it any longer")]
    NoLayer(String),
    /// It says no.
    #[error("the pager refuses layer {layer}: {reason}")]
    Refused {
        /// The layer's name.
        layer: String,
        /// The pager's reason.
        reason: String,
    },
    /// It does not serve another host, or is not connected to one.
    #[error("the pager refuses connection {name}: {reason}")]
    RefusedPeer {
        /// The connection's name, or the peer's.
        name: String,
        /// The pager's reason.
        reason: String,
    },
    /// There are too many layers or VMs.
    #[error(
        "serve memory lazily: this host has {0} already; at most {PAGER_LAYERS_MAX} layers and {PAGER_VMS_MAX} VMs are"
    )]
    Full(usize),
    /// There is no memory, or no descriptor.
    #[error("make a file in memory")]
    Memory(#[source] io::Error),
    /// A snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] OpenError),
    /// What a snapshot gives is no generation.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// vmmd is about to stop.
    #[error("vmmd is stopping")]
    Stopping,
}
