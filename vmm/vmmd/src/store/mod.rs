//! What survives `vmmd`: the state folder.
//!
//! ```text
//!  STATE/lock                 held (flock) by the vmmd that owns the folder; its pid inside
//!  STATE/vms/NAME/vm.json     the record: see [`record`]
//!                 vmm.sock    the vmm's control socket
//!                 console.log the guest's serial console
//!                 vmm.log     what the vmm process printed
//!                 end.json    how the VM ended, written by the vmm
//!  STATE/families/UUID.json   the next vmid of a family that has clones: see [`family`]
//! ```

pub mod family;
pub mod record;

use record::Record;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};
use vmm::api::end::End;

/// Longest record or end file that is read, bytes.
const JSON_MAX_BYTES: u64 = 1024 * 1024;
/// How much of the end of `vmm.log` goes into an end's reason, bytes.
const TAIL_BYTES: u64 = 1024;

/// Why the state folder cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A folder cannot be made.
    #[error("create folder {path}: {source}{}", rights(.source))]
    CreateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock file cannot be opened or written.
    #[error("open lock {path}: {source}{}", rights(.source))]
    OpenLock {
        /// Which.
        path: PathBuf,
        /// Why.
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
        /// Of the other vmmd, if it wrote it.
        pid: Option<String>,
    },
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder cannot be deleted.
    #[error("delete folder {path}: {source}")]
    Delete {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record does not read.
    #[error("parse {path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record has another format.
    #[error("parse {path}: format {format} is not known to this vmmd")]
    Format {
        /// Which.
        path: PathBuf,
        /// As written there.
        format: u32,
    },
}

fn rights(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run vmmd as root, or give it a --state-dir of its own",
        _ => "",
    }
}

/// The state folder, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    // Held for as long as this value lives; the kernel lets go of it with the process.
    _lock: File,
}

impl StateDir {
    /// Makes the folder if need be and locks it.
    ///
    /// # Errors
    /// It cannot be made, or another vmmd has it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_dir(path, true)?;
        let path =
            path.canonicalize().map_err(|source| StoreError::Read { path: path.to_owned(), source })?;
        let lock = lock(&path)?;
        create_dir(&path.join("vms"), true)?;
        create_dir(&path.join("families"), true)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of one VM, made now.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn create_vm(&self, name: &str) -> Result<VmDir, StoreError> {
        let dir = self.vm(name);
        create_dir(&dir.path, false)?;
        Ok(dir)
    }

    /// The folder of one VM, whether it exists or not.
    #[must_use]
    pub fn vm(&self, name: &str) -> VmDir {
        VmDir { path: self.path.join("vms").join(name) }
    }

    /// Every folder under `vms/`, by name.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn list(&self) -> Result<Vec<(String, VmDir)>, StoreError> {
        let path = self.path.join("vms");
        let read = |source| StoreError::Read { path: path.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let entry = entry.map_err(read)?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push((name, VmDir { path: entry.path() }));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }
}

fn create_dir(path: &Path, parents: bool) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(parents)
        .mode(0o700)
        .create(path)
        .map_err(|source| StoreError::CreateDir { path: path.to_owned(), source })
}

fn lock(state: &Path) -> Result<File, StoreError> {
    let path = state.join("lock");
    let failed = |source| StoreError::OpenLock { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let pid = file.take(20).read_to_string(&mut pid).is_ok().then(|| pid.trim().to_owned());
            let pid = pid.filter(|pid| !pid.is_empty());
            return Err(StoreError::Locked { path: state.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// The folder of one VM.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
}

impl VmDir {
    #[cfg(test)]
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The vmm's control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("vmm.sock")
    }

    /// The serial console's log.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What the vmm process printed.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// How the VM ended, in the vmm's words.
    #[must_use]
    pub fn end_file(&self) -> PathBuf {
        self.path.join("end.json")
    }

    /// Makes one of the files, empty, for reading and writing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_file(&self, path: PathBuf) -> Result<File, StoreError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Opens the folder itself, to name files in it by a short path however long its own is.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Result<OwnedFd, StoreError> {
        rustix::fs::open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| StoreError::Read { path: self.path.clone(), source: errno.into() })
    }

    /// Writes the record so that a crash leaves the old one or the new one, never half of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path.join("vm.json");
        write_whole(&path, record).map_err(|source| StoreError::Write { path, source })
    }

    /// Reads the record; None when there is none.
    ///
    /// # Errors
    /// It cannot be read or is not one.
    pub fn load(&self) -> Result<Option<Record>, StoreError> {
        let path = self.path.join("vm.json");
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Parse { path: path.clone(), source })?;
        if record.format != record::FORMAT {
            return Err(StoreError::Format { path, format: record.format });
        }
        Ok(Some(record))
    }

    /// What the vmm left about the end of its VM; None when there is nothing whole.
    #[must_use]
    pub fn load_end(&self) -> Option<End> {
        // Half a file is what a vmm that was killed leaves: the same as none.
        read_bounded(&self.end_file()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }

    /// The end of `vmm.log`, for an account of what went wrong.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.vmm_log())?;
            let length = file.metadata()?.len();
            file.seek(io::SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Deletes the folder. The record goes first, so that a crash leaves what the next start takes for half-made.
    ///
    /// # Errors
    /// It cannot be deleted. That it is gone already is none.
    pub fn delete(&self) -> Result<(), StoreError> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        gone(fs::remove_file(self.path.join("vm.json")))
            .and_then(|()| gone(fs::remove_dir_all(&self.path)))
            .map_err(|source| StoreError::Delete { path: self.path.clone(), source })
    }
}

/// Writes a file so that a crash leaves the old one or the new one.
fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is safe only when the folder is.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(JSON_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
