//! The ledger in one SQLite file, `scheduler.db`: tickets, hosts and families' counters of vmids as
//! JSON by id, data as blobs.
//! People can read it while it is in use: `sqlite3 scheduler.db 'select * from tickets'`.
//!
//! A batch is one transaction in the write-ahead log, so after a kill at any point the file holds
//! whole batches. The lock belongs to the process (`fcntl`): it ends with the process, however that
//! ends, and a child that is being started does not inherit it.

use super::{Batch, JoinData, Store, StoreError, Stored};
use patina_daemon::chain;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde::de::DeserializeOwned;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// The file's name in the state folder.
pub const FILE: &str = "scheduler.db";
/// The lock's name there.
const LOCK: &str = "scheduler.lock";
/// Marks the file as Patina's ("PTNA").
const APPLICATION: i64 = 0x5054_4e41;
/// Of the schema below.
const VERSION: i64 = 4;
/// How many pages of the file are given back at once.
const TIDY_PAGES: i64 = 512;
/// The log is cut back to this when it has grown beyond it.
const LOG_MAX_BYTES: i64 = 64 << 20;
/// How many pages of the log are moved into the file at once. SQLite's usual 1000 would be a longer
/// pause of all callers.
const CHECKPOINT_PAGES: i64 = 512;

const SCHEMA: &str = "
    create table tickets (id text primary key not null, ticket text not null) without rowid;
    create table join_data (ticket text not null, vmid integer not null, data blob not null, primary key (ticket, vmid));
    create table counters (name text primary key not null, value integer not null) without rowid;
    create table hosts (id text primary key not null, host text not null) without rowid;
    create table vmids (family text primary key not null, counter text not null) without rowid;
";
/// From version 3, whose hosts numbered the clones of their own families.
const VMIDS: &str =
    "create table vmids (family text primary key not null, counter text not null) without rowid;";
/// From version 2, which knew hosts only from their tickets.
const HOSTS: &str = "create table hosts (id text primary key not null, host text not null) without rowid;";
/// From version 1, which had no counters: epochs of its life were less than this.
const COUNTERS: &str = "
    create table counters (name text primary key not null, value integer not null) without rowid;
    insert into counters values ('epochs', cast(unixepoch('subsec') * 1000 as integer) * 1024);
";

/// What a batch survives once it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The scheduler's end. For a ledger whose VMs do not outlive the host either.
    Process,
    /// The host's crash, too: each batch waits for the disk.
    Host,
}

/// The store.
#[derive(Debug)]
pub struct FileStore {
    database: Connection,
    path: PathBuf,
    _lock: File,
}

impl FileStore {
    /// Opens the ledger in `folder`, which is made if need be. It belongs to this process as long
    /// as the store lives.
    ///
    /// # Errors
    /// Another scheduler has it, it is not a ledger, it is damaged, or the kernel refuses.
    pub fn open(folder: &Path, lasting: Lasting) -> Result<Self, StoreError> {
        let refused = |source| StoreError::Folder { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refused)?;
        let lock = lock(&folder.join(LOCK))?;
        let path = folder.join(FILE);
        let failed = |source| failed("open", &path, source);
        let database = Connection::open(&path).map_err(failed)?;
        let found: i64 =
            database.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(|source| {
                match source.sqlite_error_code() {
                    Some(ErrorCode::NotADatabase) => StoreError::Foreign { path: path.clone() },
                    _ => failed(source),
                }
            })?;
        let version: i64 =
            database.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let things: i64 =
            database.query_row("select count(*) from sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
        let mut store = Self { database, path: path.clone(), _lock: lock };
        match (found, version) {
            (0, 0) if things == 0 => store.create().map_err(failed)?,
            (APPLICATION, VERSION) => {}
            (APPLICATION, found @ 1..VERSION) => store.convert(found).map_err(failed)?,
            (APPLICATION, found) => return Err(StoreError::Version { path, found, supported: VERSION }),
            _ => return Err(StoreError::Foreign { path }),
        }
        store.set_up(lasting).map_err(failed)?;
        Ok(store)
    }

    fn create(&mut self) -> rusqlite::Result<()> {
        // The room of what is deleted can be given back, page by page. To be said before there is
        // anything.
        self.database.pragma_update(None, "auto_vacuum", "incremental")?;
        // All in one transaction: a scheduler that is killed here leaves an empty file, which is
        // made a ledger next time.
        let transaction = self.database.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    }

    /// A ledger of an earlier version. A scheduler that is killed here leaves one of that version.
    fn convert(&mut self, found: i64) -> rusqlite::Result<()> {
        tracing::info!(path = %self.path.display(), "the ledger is converted to version {VERSION}");
        if found == 1 {
            self.database.pragma_update(None, "auto_vacuum", "incremental")?;
            // Makes that so, and the file as small as can be.
            self.database.execute_batch("vacuum")?;
        }
        let transaction = self.database.transaction()?;
        if found == 1 {
            transaction.execute_batch(COUNTERS)?;
        }
        if found <= 2 {
            transaction.execute_batch(HOSTS)?;
        }
        transaction.execute_batch(VMIDS)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    }

    fn set_up(&mut self, lasting: Lasting) -> rusqlite::Result<()> {
        let synchronous = match lasting {
            Lasting::Process => "normal",
            Lasting::Host => "full",
        };
        self.database.pragma_update(None, "journal_mode", "wal")?;
        self.database.pragma_update(None, "synchronous", synchronous)?;
        self.database.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        self.database.pragma_update(None, "journal_size_limit", LOG_MAX_BYTES)?;
        // A person's sqlite3 that is looking holds up nobody in WAL mode; one that writes is waited
        // for.
        self.database.busy_timeout(std::time::Duration::from_secs(2))
    }

    /// All rows of a table whose second column is JSON.
    fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, StoreError> {
        let failed = |source| failed("read", &self.path, source);
        let mut all = self.database.prepare_cached(query).map_err(failed)?;
        let rows = all
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(failed)?;
        let parsed = rows.map(|row| {
            let (id, text) = row.map_err(failed)?;
            let wrong = |source| StoreError::Ticket { path: self.path.clone(), id, source };
            serde_json::from_str(&text).map_err(wrong)
        });
        parsed.collect()
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), WriteError> {
        let transaction = self.database.transaction()?;
        {
            let mut put = transaction.prepare_cached("insert or replace into tickets values (?1, ?2)")?;
            for ticket in &batch.puts {
                put.execute(params![ticket.id.to_string(), serde_json::to_string(ticket)?])?;
            }
            write_hosts(&transaction, batch)?;
            write_vmids(&transaction, batch)?;
            let mut leave =
                transaction.prepare_cached("insert or replace into join_data values (?1, ?2, ?3)")?;
            let mut clear =
                transaction.prepare_cached("delete from join_data where ticket = ?1 and vmid = ?2")?;
            for JoinData { ticket, vmid, bytes } in &batch.data {
                if bytes.is_empty() {
                    clear.execute(params![ticket.to_string(), vmid])?;
                } else {
                    leave.execute(params![ticket.to_string(), vmid, bytes])?;
                }
            }
            if let Some(epochs) = batch.epochs {
                let epochs = i64::try_from(epochs).unwrap_or(i64::MAX);
                transaction.execute("insert or replace into counters values ('epochs', ?1)", [epochs])?;
            }
            let mut forget = transaction.prepare_cached("delete from tickets where id = ?1")?;
            let mut drop_data = transaction.prepare_cached("delete from join_data where ticket = ?1")?;
            for id in &batch.forgets {
                forget.execute([id.to_string()])?;
                drop_data.execute([id.to_string()])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn write_hosts(transaction: &Connection, batch: &Batch<'_>) -> Result<(), WriteError> {
    let mut put = transaction.prepare_cached("insert or replace into hosts values (?1, ?2)")?;
    for host in &batch.hosts {
        put.execute(params![host.id.to_string(), serde_json::to_string(host)?])?;
    }
    let mut forget = transaction.prepare_cached("delete from hosts where id = ?1")?;
    for host in &batch.forget_hosts {
        forget.execute([host.to_string()])?;
    }
    Ok(())
}

fn write_vmids(transaction: &Connection, batch: &Batch<'_>) -> Result<(), WriteError> {
    let mut put = transaction.prepare_cached("insert or replace into vmids values (?1, ?2)")?;
    for counter in &batch.vmids {
        put.execute(params![counter.family.to_string(), serde_json::to_string(counter)?])?;
    }
    let mut forget = transaction.prepare_cached("delete from vmids where family = ?1")?;
    for family in &batch.forget_vmids {
        forget.execute([family.to_string()])?;
    }
    Ok(())
}

/// Why a batch was not written, before it is known where.
enum WriteError {
    Database(rusqlite::Error),
    Json(serde_json::Error),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<serde_json::Error> for WriteError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let failed = |source| failed("read", &self.path, source);
        let tickets = self.rows("select id, ticket from tickets")?;
        let hosts = self.rows("select id, host from hosts")?;
        let vmids = self.rows("select family, counter from vmids")?;
        let epochs = "select value from counters where name = 'epochs'";
        let epochs: Option<i64> =
            self.database.query_row(epochs, [], |row| row.get(0)).optional().map_err(failed)?;
        let epochs = u64::try_from(epochs.unwrap_or(0)).unwrap_or(0);
        Ok(Stored { tickets, hosts, vmids, epochs })
    }

    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        self.write(batch).map_err(|error| match error {
            WriteError::Database(source) => failed("write", &self.path, source),
            WriteError::Json(source) => {
                StoreError::Ticket { path: self.path.clone(), id: "to be written".into(), source }
            }
        })
    }

    fn join_data(&mut self, ticket: Uuid, vmid: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = |source| failed("read", &self.path, source);
        let mut one = self
            .database
            .prepare_cached("select data from join_data where ticket = ?1 and vmid = ?2")
            .map_err(failed)?;
        one.query_row(params![ticket.to_string(), vmid], |row| row.get(0)).optional().map_err(failed)
    }

    fn tidy(&mut self) -> Result<bool, StoreError> {
        let failed = |source| failed("make smaller", &self.path, source);
        let free = || self.database.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
        if free().map_err(failed)? > 0 {
            self.database
                .execute_batch(&format!("pragma incremental_vacuum({TIDY_PAGES})"))
                .map_err(failed)?;
        }
        Ok(free().map_err(failed)? == 0)
    }
}

fn failed(operation: &'static str, path: &Path, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { path, source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { operation, path, source }
        }
        _ => StoreError::File { operation, path, source },
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Lock { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            let mut pid = String::new();
            let read = (&mut file).take(16).read_to_string(&mut pid);
            let pid = read.ok().map(|_| pid.trim().to_owned()).filter(|pid| !pid.is_empty());
            return Err(StoreError::InUse { path: path.to_owned(), pid });
        }
        Err(error) => return Err(failed(error.into())),
    }
    // For whoever finds it locked; a disk without room for it is no reason not to start.
    if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
        tracing::debug!(path = %path.display(), error = %chain(&error), "write the pid");
    }
    Ok(file)
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
