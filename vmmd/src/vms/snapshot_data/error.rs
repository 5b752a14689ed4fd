//! Why a call about snapshots fails.

use super::room::NoRoom;
use crate::{process::generation::GenerationError, vms::images::ImageError};
use blake3::Hash;
use patina_abi::ABI_SNAPSHOT;
use patina_snapshot::{
    container::ContainerError,
    directory::{CreateError, FileError, LoadError, OpenError, RemoveError, RunError, VerifyError},
    facts::FactsError,
    manifest::ManifestError,
};
use std::{io, path::PathBuf};

/// Why a call about snapshots fails.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The snapshot was not written.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It is not there, or is not a snapshot that can be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was not deleted, or a directory not listed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// It is damaged.
    #[error("verify snapshot {place}")]
    Verify {
        /// The snapshot's path.
        place: PathBuf,
        /// What is wrong with it.
        #[source]
        source: VerifyError,
    },
    /// Its memory cannot be had.
    #[error("restore snapshot {place}")]
    Load {
        /// The snapshot's path.
        place: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LoadError,
    },
    /// There is no memory for it.
    #[error("restore snapshot {place}: make a file in memory; check that the host has free memory")]
    Memory {
        /// The snapshot's path.
        place: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is less than it takes.
    #[error("restore snapshot {place}")]
    NoRoom {
        /// The snapshot's path.
        place: PathBuf,
        /// How much there is.
        #[source]
        source: NoRoom,
    },
    /// What was loaded is no generation.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The caller has gone.
    #[error("restore snapshot {0}: nobody waits for the VMs any more; none was made")]
    Abandoned(PathBuf),
    /// The VM's agent would not notice that its VM was restored.
    #[error(
        "keep VM {name:?} in a snapshot: its agent speaks ABI {abi}, and only agents of ABI {ABI_SNAPSHOT} or later notice that \
         their VM was restored; build its image anew, and boot it"
    )]
    OldAgent {
        /// The VM's name.
        name: String,
        /// The ABI of the VM's agent.
        abi: u32,
    },
    /// The VM's vmm does not say which agent the VM has.
    #[error(
        "keep VM {0:?} in a snapshot: its vmm is of an older release, which does not know about snapshots; boot the VM anew"
    )]
    OldVmm(String),
    /// The snapshot is of a VM whose agent would not notice that it was restored.
    #[error(
        "restore snapshot {place}: the agent in it speaks ABI {abi}, and only agents of ABI {ABI_SNAPSHOT} or later notice that \
         their VM was restored"
    )]
    SnapshotOfOldAgent {
        /// The snapshot's path.
        place: PathBuf,
        /// The ABI of the agent in it.
        abi: u32,
    },
    /// Its state is of another release, or damaged.
    #[error("restore snapshot {place}")]
    OtherState {
        /// The snapshot's path.
        place: PathBuf,
        /// What this release does not read.
        #[source]
        source: ContainerError,
    },
    /// This host lacks what its VM needs.
    #[error("restore snapshot {place}")]
    OtherHost {
        /// The snapshot's path.
        place: PathBuf,
        /// What differs, and what to do.
        #[source]
        source: FactsError,
    },
    /// The kernel is not the one that the VM booted.
    #[error(
        "keep VM {name:?} in a snapshot: kernel {path} was replaced or written to since the VM was started; put the old file back"
    )]
    KernelChanged {
        /// The VM's name.
        name: String,
        /// The kernel's path.
        path: PathBuf,
    },
    /// A kernel or a root file system cannot be read.
    #[error("name {field} {path} by its content")]
    Digest {
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No file has the content that the VM had.
    #[error(
        "restore snapshot {place}: no {field} with the content that the VM had (blake3 {wanted}): {tried}; name one with --{field}"
    )]
    NoImage {
        /// The snapshot's path.
        place: PathBuf,
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The digest of the file that is needed.
        wanted: Hash,
        /// The files that were looked at, and what is wrong with each.
        tried: String,
    },
    /// No snapshot can be made at this path.
    #[error("create snapshot {place}; its parent must be a directory that vmmd may write to")]
    Place {
        /// The path.
        place: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory with snapshots cannot be read.
    #[error("list the snapshots in {directory}")]
    List {
        /// The directory.
        directory: PathBuf,
        /// The system's reason.
        #[source]
        source: FileError,
    },
}

/// What kind of fault it is, for the code of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no such snapshot.
    Missing,
    /// Something is at the place already.
    Exists,
    /// The path cannot be a snapshot's, or names something else.
    Place,
    /// It is in use.
    InUse,
    /// A disk is full.
    NoSpace,
    /// There is too little memory.
    NoMemory,
    /// It is damaged.
    Damaged,
    /// It is of another release, or of another VM than it must be.
    Unfit,
    /// A kernel or root file system has other content.
    OtherImage,
    /// The caller has gone.
    Cancelled,
    /// The host could not do it.
    Host,
}

impl SnapshotError {
    /// What kind of fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Create(error) => of_create(error),
            Self::Open(error) => of_open(error),
            Self::Remove(error) => match error {
                RemoveError::Missing(_) => Fault::Missing,
                RemoveError::NotASnapshot { .. } => Fault::Place,
                RemoveError::InUse(_) => Fault::InUse,
                RemoveError::File(error) => of_io(&error.source),
            },
            Self::Verify { source, .. } => match source {
                VerifyError::State(error) => of_open(error),
                VerifyError::Run(error) => of_run(error),
                VerifyError::Stray { .. } => Fault::Damaged,
                VerifyError::Cancelled => Fault::Cancelled,
            },
            Self::Load { source, .. } => match source {
                LoadError::Run(error) => of_run(error),
                LoadError::Cancelled => Fault::Cancelled,
                LoadError::Size { .. } | LoadError::NotEmpty { .. } | LoadError::Write { .. } => Fault::Host,
            },
            Self::Abandoned(_) => Fault::Cancelled,
            Self::NoRoom { .. } => Fault::NoMemory,
            Self::OtherState { source, .. } => of_state(source),
            Self::OldAgent { .. }
            | Self::OldVmm(_)
            | Self::SnapshotOfOldAgent { .. }
            | Self::OtherHost { .. } => Fault::Unfit,
            // The request names no image: what is wrong is a file of the VM's.
            Self::Image(_) | Self::KernelChanged { .. } | Self::NoImage { .. } => Fault::OtherImage,
            Self::Place { source, .. } => of_io(source),
            Self::List { source, .. } => of_io(&source.source),
            Self::Memory { .. } | Self::Generation(_) | Self::Digest { .. } => Fault::Host,
        }
    }

    /// The layer and the run that are damaged, if it is one.
    #[must_use]
    pub fn run(&self) -> Option<(String, u64)> {
        match self {
            Self::Verify { source: VerifyError::Stray { layer, run }, .. } => Some((layer.to_string(), *run)),
            Self::Verify { source: VerifyError::Run(error), .. }
            | Self::Load { source: LoadError::Run(error), .. } => match error {
                RunError::Digest { layer, run } | RunError::Read { layer, run, .. } => {
                    Some((layer.to_string(), *run))
                }
                RunError::Range { .. } => None,
            },
            _ => None,
        }
    }
}

fn of_create(error: &CreateError) -> Fault {
    match error {
        CreateError::Exists(_) => Fault::Exists,
        CreateError::Place(_) | CreateError::Reserved(_) => Fault::Place,
        CreateError::Cancelled => Fault::Cancelled,
        CreateError::File(error) => of_io(&error.source),
        _ => Fault::Host,
    }
}

fn of_open(error: &OpenError) -> Fault {
    match error {
        OpenError::Missing(_) => Fault::Missing,
        OpenError::NotADirectory(_) | OpenError::NotASnapshot(_) | OpenError::Link(_) => Fault::Place,
        OpenError::Unfinished(_) | OpenError::Busy(_) => Fault::InUse,
        OpenError::MissingFile(_)
        | OpenError::NotAFile(_)
        | OpenError::Size { .. }
        | OpenError::State(_)
        | OpenError::Manifest { source: ManifestError::Digest | ManifestError::Length { .. }, .. } => {
            Fault::Damaged
        }
        OpenError::Manifest {
            source: ManifestError::Version { .. } | ManifestError::Unknown { .. }, ..
        } => Fault::Unfit,
        OpenError::Manifest { .. } => Fault::Damaged,
        OpenError::File(error) => of_io(&error.source),
    }
}

/// Its digest is right: it was written as it is.
fn of_state(error: &ContainerError) -> Fault {
    match error {
        ContainerError::Magic
        | ContainerError::Format { .. }
        | ContainerError::Flags { .. }
        | ContainerError::Unknown { .. }
        | ContainerError::Version { .. } => Fault::Unfit,
        _ => Fault::Damaged,
    }
}

fn of_run(error: &RunError) -> Fault {
    match error {
        RunError::Digest { .. } => Fault::Damaged,
        // It was cut since it was opened.
        RunError::Read { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => Fault::Damaged,
        RunError::Read { .. } | RunError::Range { .. } => Fault::Host,
    }
}

fn of_io(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Fault::NoSpace
        }
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::InvalidFilename => Fault::Place,
        _ => Fault::Host,
    }
}
