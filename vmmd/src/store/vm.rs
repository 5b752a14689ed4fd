//! The folder of one VM.

use super::{
    Lasting, StoreError, read_bounded,
    record::{self, Record},
    write_json,
};
use patina_control::{end::End, pager::Id};
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How much of the end of `vmm.log` goes into an end's reason, bytes.
pub(super) const TAIL_BYTES: u64 = 1024;

/// The record's file.
const RECORD: &str = "vm.json";

/// The names of the layers that the pager fills for the VM.
const LAZY_LAYERS: &str = "lazy.json";

/// The folder of one VM.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
}

impl VmDir {
    /// The folder at that path.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder's path.
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

    /// Writes the record so that what must be survived leaves the old one or the new one, never
    /// half of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, record: &Record, lasting: Lasting) -> Result<(), StoreError> {
        let path = self.path.join(RECORD);
        write_json(&path, record, lasting).map_err(|source| StoreError::Write { path, source })
    }

    /// Reads the record; None when there is none.
    ///
    /// # Errors
    /// It cannot be read or is not one.
    pub fn load(&self) -> Result<Option<Record>, StoreError> {
        let path = self.path.join(RECORD);
        let bytes = match read_bounded(&path) {
            // Empty, or zeros: what a crash of the host leaves of one that was written to outlast
            // vmmd only.
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => return Ok(None),
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

    /// Writes down which layers the pager fills for the VM, by their names, in the order of their
    /// numbers.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn save_lazy_layers(&self, layers: &[Id]) -> Result<(), StoreError> {
        let path = self.path.join(LAZY_LAYERS);
        write_json(&path, &layers, Lasting::Process).map_err(|source| StoreError::Write { path, source })
    }

    /// Which layers the pager fills for the VM; empty: none.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn lazy_layers(&self) -> Result<Vec<Id>, StoreError> {
        let path = self.path.join(LAZY_LAYERS);
        match read_bounded(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StoreError::Parse { path, source }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(StoreError::Read { path, source }),
        }
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

    /// Why a vmm that is gone went, as far as it said: its account of the end, or else its log's
    /// last line. Empty: nothing.
    #[must_use]
    pub fn last_words(&self) -> String {
        let last_line = || self.log_tail().trim().lines().last().unwrap_or_default().to_owned();
        self.load_end().map_or_else(last_line, |end| end.reason)
    }

    /// Deletes the folder of a VM that has ended. The record goes last: where something cannot be
    /// deleted, or a crash comes between, the next start finds a VM that has ended, which can be
    /// removed again.
    ///
    /// # Errors
    /// Something in it cannot be deleted. A folder that is gone already is not an error.
    pub fn delete_ended(&self) -> Result<(), StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Delete { path, source }
        };
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed(&self.path))?,
        };
        for entry in entries {
            let entry = entry.map_err(failed(&self.path))?;
            if entry.file_name() == RECORD {
                continue;
            }
            let path = entry.path();
            let is_folder = entry.file_type().map_err(failed(&path))?.is_dir();
            let deleted = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone(deleted).map_err(failed(&path))?;
        }
        self.delete()
    }

    /// Deletes the folder of what is no VM. The record goes first, so that a crash leaves what the
    /// next start takes for half-made.
    ///
    /// # Errors
    /// It cannot be deleted. A folder that is gone already is not an error.
    pub fn delete(&self) -> Result<(), StoreError> {
        gone(fs::remove_file(self.path.join(RECORD)))
            .and_then(|()| gone(fs::remove_dir_all(&self.path)))
            .map_err(|source| StoreError::Delete { path: self.path.clone(), source })
    }
}

/// What is gone already need not be deleted.
fn gone(deleted: io::Result<()>) -> io::Result<()> {
    deleted.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
