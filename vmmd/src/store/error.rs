//! Why the state folder cannot be used.

use std::{io, path::PathBuf};

/// Why the state folder cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A folder cannot be made.
    #[error("create folder {path}{}", rights(.source))]
    CreateDir {
        /// The folder's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The lock file cannot be opened or written.
    #[error("open lock {path}{}", rights(.source))]
    OpenLock {
        /// The lock file's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another vmmd owns the folder.
    #[error(
        "lock state folder {path}: another vmmd{} owns it; stop that one, or give this one another --state-dir",
        .pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The pid of the other vmmd, if it wrote it into the lock file.
        pid: Option<String>,
    },
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// The path of the file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {path}")]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A folder cannot be moved.
    #[error("move folder {from} to {to}")]
    Move {
        /// The folder's path.
        from: PathBuf,
        /// The path to which it was to be moved.
        to: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A folder, or what is in it, cannot be deleted.
    #[error("delete {path}")]
    Delete {
        /// The path of the file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The record does not read.
    #[error("parse {path}")]
    Parse {
        /// The record's path.
        path: PathBuf,
        /// The error of its JSON.
        #[source]
        source: serde_json::Error,
    },
    /// A record has another format.
    #[error("parse {path}: format {format} is not known to this vmmd")]
    Format {
        /// The record's path.
        path: PathBuf,
        /// The number of the format that the record gives.
        format: u32,
    },
}

impl StoreError {
    /// A file that ends too early, as the host's crash may leave one.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        matches!(self, Self::Parse { source, .. } if source.is_eof())
    }
}

fn rights(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run vmmd as root, or give it a --state-dir of its own",
        _ => "",
    }
}
