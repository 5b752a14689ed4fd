//! The state folder: everything that outlives `vmmd`.
//!
//! ```text
//!  STATE/lock                 held (flock) by the vmmd that owns the folder; its pid inside
//!  STATE/boot                 the host's boot in which the folder was used last
//!  STATE/host-id              the host's id, and the machine that it is of: see [`host_id`]
//!  STATE/vms/NAME/vm.json     the record: see [`record`]
//!                 vmm.sock    the vmm's control socket
//!                 console.log the guest's serial console
//!                 vmm.log     the output of the vmm process
//!                 end.json    how the VM ended, written by the vmm
//!                 lazy.json   the layers that the pager fills for the VM
//!  STATE/warm/UUID/           the folder of a warm VM without an identity; moved to vms/NAME when
//!                             it starts
//!  STATE/families/UUID.json   the next vmid of a family that has clones: see [`family`]
//!  STATE/members/UUID.json    the other hosts of a family that has VMs there: see [`members`]
//!  STATE/starts               how often a vmmd with --overlay was started here
//!  STATE/snapshots/NAME/      snapshots that are named without a path
//!  STATE/images/KEY/          images of booted VMs: see [`crate::vms::image_cache`]
//!  STATE/fetched/DIGEST       kernels and root file systems that came from other hosts: see
//!                             [`crate::vms::fetched_data`]
//!  STATE/pager/               the pager's socket and log, and its layers: see [`crate::pager`]
//!  STATE/prefault/KEY         the pages that clones of an image write before they are ready: see
//!                             [`prefault`]
//! ```

pub mod error;
pub mod family;
mod host_id;
pub mod members;
pub mod prefault;
pub mod record;
pub mod vm;

use crate::process_id::boot;
pub use error::StoreError;
use patina_daemon::chain;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};
use uuid::Uuid;
pub use vm::VmDir;

/// The folder of snapshots that are named without a path.
const SNAPSHOTS: &str = "snapshots";

/// Longest file that is read, bytes.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// How long a child of a `vmmd` that is gone may take to become a vmm.
const CHILD_PATIENCE: Duration = Duration::from_secs(2);

/// What a file's write must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The end of `vmmd`. On the clones' path: what the host's own crash could take back is then of
    /// VMs that it ended too.
    Process,
    /// The end of the host.
    Host,
}

/// The state folder, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    // The host has rebooted since a vmmd used this folder.
    is_of_another_boot: bool,
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
        for folder in ["vms", "warm", "families", "prefault", members::MEMBERS, SNAPSHOTS] {
            create_dir(&path.join(folder), true)?;
        }
        prefault::remove_old_lists(&path);
        let is_of_another_boot = mark_boot(&path);
        Ok(Self { path, is_of_another_boot, _lock: lock })
    }

    /// Whether the host has rebooted since another vmmd used this folder. If so, files that were
    /// not synced to the disk may be cut short.
    #[must_use]
    pub fn is_of_another_boot(&self) -> bool {
        self.is_of_another_boot
    }

    /// The folder's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where snapshots are that are named without a path.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }

    /// Where kernels and root file systems are that came from other hosts.
    #[must_use]
    pub fn fetched(&self) -> PathBuf {
        self.path.join("fetched")
    }

    /// The folder of one VM, made now.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn create_vm(&self, name: &str) -> Result<VmDir, StoreError> {
        let dir = self.vm(name);
        create_dir(dir.path(), false)?;
        Ok(dir)
    }

    /// The folder of one VM, whether it exists or not.
    #[must_use]
    pub fn vm(&self, name: &str) -> VmDir {
        VmDir::at(self.path.join("vms").join(name))
    }

    /// A folder for a warm VM, made now.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_warm(&self) -> Result<VmDir, StoreError> {
        // Not by its name: that may be another VM's until it is used.
        let dir = VmDir::at(self.path.join("warm").join(Uuid::new_v4().to_string()));
        create_dir(dir.path(), false)?;
        Ok(dir)
    }

    /// Makes a warm VM's folder the folder of the VM of that name, at one instant.
    ///
    /// # Errors
    /// There is one already, or it cannot be moved.
    pub fn promote(&self, warm: &VmDir, name: &str) -> Result<VmDir, StoreError> {
        let dir = self.vm(name);
        renameat_with(CWD, warm.path(), CWD, dir.path(), RenameFlags::NOREPLACE).map_err(|errno| {
            StoreError::Move { from: warm.path().into(), to: dir.path().into(), source: errno.into() }
        })?;
        Ok(dir)
    }

    /// Every folder under `vms/`, by name.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn list(&self) -> Result<Vec<(String, VmDir)>, StoreError> {
        self.folders("vms")
    }

    /// Every folder under `warm/`.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn list_warm(&self) -> Result<Vec<(String, VmDir)>, StoreError> {
        self.folders("warm")
    }

    fn folders(&self, of: &str) -> Result<Vec<(String, VmDir)>, StoreError> {
        let path = self.path.join(of);
        let read = |source| StoreError::Read { path: path.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let entry = entry.map_err(read)?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push((name, VmDir::at(entry.path())));
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

/// Writes down the boot in which the folder is used; whether the last use was in another one.
fn mark_boot(state: &Path) -> bool {
    let path = state.join("boot");
    let before = fs::read_to_string(&path).unwrap_or_default();
    if before.trim() == boot() || boot().is_empty() {
        return false;
    }
    // The old one goes first, which works on a full disk too: it must not be taken for the last use
    // again.
    let written = match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => write_whole(&path, format!("{}\n", boot()).as_bytes(), Lasting::Host),
    };
    if let Err(error) = written {
        tracing::error!(path = %path.display(), error = %chain(&error), "records that a crash of the host cuts short will be left as they are");
    }
    !before.is_empty()
}

fn lock(state: &Path) -> Result<File, StoreError> {
    let path = state.join("lock");
    let failed = |source| StoreError::OpenLock { path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut file = match file.try_lock() {
        Ok(()) => file,
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let pid = (&file).take(20).read_to_string(&mut pid).is_ok().then(|| pid.trim().to_owned());
            let pid = pid.filter(|pid| !pid.is_empty());
            let left = if is_gone(pid.as_deref()) { wait_for_child(file).map_err(failed)? } else { None };
            left.ok_or_else(|| StoreError::Locked { path: state.to_owned(), pid })?
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    };
    // For people, and no reason not to start on a full disk.
    if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
        tracing::error!(path = %path.display(), error = %chain(&error), "whose lock this is cannot be written");
    }
    Ok(file)
}

fn is_gone(pid: Option<&str>) -> bool {
    let stat = |pid| fs::read_to_string(format!("/proc/{pid}/stat"));
    pid.is_some_and(|pid| stat(pid).is_ok_and(|stat| stat.contains(") Z ")) || stat(pid).is_err())
}

/// A `vmmd` that was killed as it started a vmm leaves the lock to its child, until that is a vmm.
/// None: it stays a child.
fn wait_for_child(file: File) -> io::Result<Option<File>> {
    let (sender, locked) = mpsc::channel();
    // Waiting for a lock has no end of its own. When nobody waits any more, the program ends, and
    // the thread with it.
    thread::Builder::new().spawn(move || sender.send(file.lock().map(|()| file)).is_ok())?;
    locked.recv_timeout(CHILD_PATIENCE).ok().transpose()
}

/// Writes a value as [`write_whole`] does.
fn write_json(path: &Path, value: &impl Serialize, lasting: Lasting) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec_pretty(value)?, lasting)
}

/// Writes a file so that what must be survived leaves the old one or the new one, whoever else
/// writes it at the same time.
fn write_whole(path: &Path, bytes: &[u8], lasting: Lasting) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // Under a name of its own, for its owner only; gone if it does not become the file.
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    new.write_all(bytes)?;
    if lasting == Lasting::Host {
        new.as_file().sync_all()?;
    }
    new.persist(path)?;
    match lasting {
        Lasting::Process => Ok(()),
        // The rename itself is safe only when the folder is.
        Lasting::Host => File::open(folder)?.sync_all(),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
