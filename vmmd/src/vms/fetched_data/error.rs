//! Why a kernel or a root file system does not come from another host.

use blake3::Hash;
use scheduler::client::TargetError;
use std::{io, path::PathBuf, time::Duration};
use uuid::Uuid;

/// How long a host may send nothing of a file.
pub const STALL: Duration = Duration::from_secs(20);
/// How long a file may take as a whole.
pub const FETCH_MAX: Duration = Duration::from_secs(600);
/// Most files that are fetched at a time.
pub const FETCHES_MAX: usize = 8;

/// Why a file is not fetched.
#[derive(Debug, thiserror::Error)]
#[error("fetch the {field} with content blake3 {digest} from host {host} at {address}")]
pub struct FetchError {
    /// `kernel` or `rootfs`.
    pub field: &'static str,
    /// What its content is.
    pub digest: Hash,
    /// The host that has it.
    pub host: Uuid,
    /// Where that host is.
    pub address: String,
    /// What went wrong.
    #[source]
    pub why: FetchFault,
}

/// What goes wrong when a file is fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchFault {
    /// The host's address cannot be used.
    #[error("its address cannot be used; start its vmmd with --advertise")]
    Address(#[from] TargetError),
    /// The host says no, or is not there any more.
    #[error("it does not send it: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// The host sends nothing.
    #[error("nothing came for {STALL:?}; look after that host, and try again")]
    Silent,
    /// The host sends little.
    #[error("it did not arrive within {FETCH_MAX:?}; copy the file, and start vmmd here with it")]
    Late,
    /// This host fetches many files.
    #[error("this host fetches {FETCHES_MAX} files, the most; try again")]
    Busy,
    /// vmmd stops.
    #[error("vmmd stops")]
    Stopping,
    /// It cannot be written, or is not the file that is wanted.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

/// Why a file does not come to the shelf.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It alone is too large.
    #[error("its {} MiB are more than the {} MiB that files from other hosts may take; start vmmd here with a larger --fetched-size", .bytes >> 20, .max >> 20)]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// Most bytes of all files.
        max: u64,
    },
    /// VMs use those that are there.
    #[error("VMs use the files from other hosts, which may be {files} and take {} MiB; end VMs, or start vmmd here with a larger --fetched-size", .max >> 20)]
    Full {
        /// Most files.
        files: usize,
        /// Most bytes of all files.
        max: u64,
    },
    /// The disk.
    #[error("{operation} {path}", path = .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The host does not say how long it is, or sends a part that cannot be.
    #[error("what it sends is not as a file is sent; update the older of the two hosts")]
    Form,
    /// More came than was said.
    #[error("it sends more than the {0} bytes that it said")]
    Long(u64),
    /// Less came than was said.
    #[error("it sends {done} of {total} bytes only")]
    Short {
        /// What came.
        done: u64,
        /// What was said.
        total: u64,
    },
    /// It is another file.
    #[error("it sends other content (blake3 {0})")]
    OtherContent(Hash),
}

impl ShelfError {
    /// Whether a disk is full, or too much is there already.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Full { .. } => true,
            Self::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Form | Self::Long(_) | Self::Short { .. } | Self::OtherContent(_) => false,
        }
    }

    /// Whether the other host sends what it must not.
    #[must_use]
    pub fn is_false(&self) -> bool {
        matches!(self, Self::Form | Self::Long(_) | Self::Short { .. } | Self::OtherContent(_))
    }
}
