//! The store of the ledger: tickets, and the data that clones left when they joined.
//!
//! - [`file`](mod@file): one file that survives crashes.
//! - [`memory`]: in memory, for tests.
//!
//! The engine knows only the trait: it writes whole batches, and reads everything once at its
//! start.

pub mod file;
pub mod memory;

use crate::core::{
    record::HostRecord,
    ticket::{HostId, Ticket},
    vmids::VmidRecord,
};
use std::{io, path::PathBuf};
use uuid::Uuid;

/// What a clone left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinData {
    /// The ticket under which the clone was made.
    pub ticket: Uuid,
    /// The clone's vmid.
    pub vmid: u32,
    /// What it left; nothing takes the place of what it left before, too.
    pub bytes: Vec<u8>,
}

/// Changes that are stored together or not at all, in this order.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// Tickets as they are now.
    pub puts: Vec<&'a Ticket>,
    /// Hosts as they are now.
    pub hosts: Vec<HostRecord>,
    /// What clones left when they joined.
    pub data: Vec<JoinData>,
    /// Tickets that go, with their data.
    pub forgets: Vec<Uuid>,
    /// Hosts that go.
    pub forget_hosts: Vec<HostId>,
    /// Families' counters of vmids as they are now.
    pub vmids: Vec<VmidRecord>,
    /// Families whose counters go.
    pub forget_vmids: Vec<Uuid>,
    /// Up to where epochs may be given; None: as before.
    pub epochs: Option<u64>,
}

/// What a ledger has.
#[derive(Debug, Default)]
pub struct Stored {
    /// All tickets.
    pub tickets: Vec<Ticket>,
    /// All hosts.
    pub hosts: Vec<HostRecord>,
    /// All families' counters of vmids.
    pub vmids: Vec<VmidRecord>,
    /// Epochs up to this one may have been given.
    pub epochs: u64,
}

impl Batch<'_> {
    /// Whether there is nothing to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty()
            && self.hosts.is_empty()
            && self.data.is_empty()
            && self.forgets.is_empty()
            && self.forget_hosts.is_empty()
            && self.vmids.is_empty()
            && self.forget_vmids.is_empty()
            && self.epochs.is_none()
    }
}

/// A ledger that outlives its scheduler.
///
/// One engine has it at a time. After an error nothing of the batch has happened, or the store says
/// so when it is loaded again: the engine goes on with what [`Store::load`] gives.
pub trait Store: Send {
    /// All tickets, and the epochs.
    ///
    /// # Errors
    /// They cannot be read.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// Stores a batch.
    ///
    /// # Errors
    /// It cannot be written.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError>;

    /// What a clone left; None: nothing.
    ///
    /// # Errors
    /// It cannot be read.
    fn join_data(&mut self, ticket: Uuid, vmid: u32) -> Result<Option<Vec<u8>>, StoreError>;

    /// Gives some of the room back that deleted things have left, for a few milliseconds. Returns
    /// whether that was all.
    ///
    /// # Errors
    /// It cannot be written.
    fn tidy(&mut self) -> Result<bool, StoreError>;
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state folder cannot be made.
    #[error("create state folder {path}; use --state-dir with a folder that can be written")]
    Folder {
        /// The state folder's path.
        path: PathBuf,
        /// The system's reason why it cannot be made.
        #[source]
        source: io::Error,
    },
    /// The lock cannot be taken, for other reasons than another scheduler.
    #[error("lock the ledger with {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's reason why it cannot be locked.
        #[source]
        source: io::Error,
    },
    /// Another scheduler has it.
    #[error(
        "lock the ledger with {path}: another scheduler{} has it; stop that one, or give this one another --state-dir",
        .pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The lock file.
        path: PathBuf,
        /// The pid of the other scheduler, if it wrote it into the lock file.
        pid: Option<String>,
    },
    /// The file at the ledger's path is not a ledger.
    #[error(
        "open ledger {path}: the file is not a ledger of Patina; move it away, or use another --state-dir"
    )]
    Foreign {
        /// The ledger's path.
        path: PathBuf,
    },
    /// A newer scheduler wrote it.
    #[error(
        "open ledger {path}: it has version {found}, this scheduler knows {supported}; use a newer scheduler, or another --state-dir"
    )]
    Version {
        /// The ledger's path.
        path: PathBuf,
        /// The version that the ledger has.
        found: i64,
        /// The newest version that this scheduler reads.
        supported: i64,
    },
    /// The file is damaged.
    #[error(
        "{operation} ledger {path}: the file is damaged; restore a copy, or move it away with its -wal and -shm files: a new ledger learns from the hosts which clones run"
    )]
    Damaged {
        /// What was done with the ledger: `read`, for example.
        operation: &'static str,
        /// The ledger's path.
        path: PathBuf,
        /// The error in which the damage showed.
        #[source]
        source: rusqlite::Error,
    },
    /// The row of a ticket or host cannot be decoded.
    #[error(
        "read ledger {path}: row {id} cannot be parsed; repair or delete that row, for example with sqlite3"
    )]
    Ticket {
        /// The ledger's path.
        path: PathBuf,
        /// The number of the ticket or host, as the row gives it.
        id: String,
        /// The JSON error of the row's content.
        #[source]
        source: serde_json::Error,
    },
    /// The disk has no room for the ledger.
    #[error("write ledger {path}: the disk is full; free some space, and the scheduler continues by itself")]
    Full {
        /// The ledger's path.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
    /// The ledger cannot be used for any other reason.
    #[error("{operation} ledger {path}")]
    File {
        /// What was done with the ledger: `read`, for example.
        operation: &'static str,
        /// The ledger's path.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
    /// A test wants it so.
    #[error("write ledger: a test lets it fail")]
    Test,
}
