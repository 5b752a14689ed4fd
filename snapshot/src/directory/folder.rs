//! A directory by its descriptor. What is opened in it is in it: no name leads out of it, and no
//! symbolic link is followed.

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, flock, fstat, fsync,
        mkdirat, openat, openat2, statat, unlinkat,
    },
    io::Errno,
    path::Arg,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Only its owner may read what a VM had in its memory.
const FOLDER_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR;
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens a directory by any path.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Opens a directory in this one.
    pub(super) fn folder(&self, name: &OsStr) -> Result<Self, Errno> {
        self.open_in(name, FOLDER).map(Self)
    }

    /// Opens a file for reading. It may be of any kind; a pipe is not waited for.
    pub(super) fn file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        self.open_in(OsStr::new(name), flags).map(File::from)
    }

    fn open_in(&self, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.0, name, flags, Mode::empty(), within) {
            // Some containers forbid the call. A single name needs no more than NOFOLLOW.
            Err(Errno::NOSYS | Errno::PERM) => openat(&self.0, name, flags, Mode::empty()),
            result => result,
        }
    }

    /// Makes a directory.
    pub(super) fn make_folder(&self, name: &OsStr) -> Result<(), Errno> {
        mkdirat(&self.0, name, FOLDER_MODE)
    }

    /// Makes a file, opened for reading and writing.
    pub(super) fn make_file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.0, name, flags, FILE_MODE).map(File::from)
    }

    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        fstat(&self.0)
    }

    /// What has this name, without following it.
    pub(super) fn stat_of(&self, name: impl Arg) -> Result<Stat, Errno> {
        statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The kind of what has this name. None: nothing has it.
    pub(super) fn kind_of(&self, name: &OsStr) -> Result<Option<FileType>, Errno> {
        match self.stat_of(name) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<OsString>, Errno> {
        let names = Dir::read_from(&self.0)?
            .map(|entry| Ok(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned()));
        let is_entry =
            |name: &Result<OsString, Errno>| !name.as_ref().is_ok_and(|name| name == "." || name == "..");
        let mut names = names.filter(is_entry).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        Ok(names)
    }

    pub(super) fn remove_file(&self, name: impl Arg) -> Result<(), Errno> {
        unlinkat(&self.0, name, AtFlags::empty())
    }

    pub(super) fn remove_folder(&self, name: &OsStr) -> Result<(), Errno> {
        unlinkat(&self.0, name, AtFlags::REMOVEDIR)
    }

    /// Puts the names in it on the disk.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        fsync(&self.0)
    }

    /// Locks it for as long as it is open, unless someone else has it. False: someone has.
    pub(super) fn lock(&self, operation: FlockOperation) -> Result<bool, Errno> {
        match flock(&self.0, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a lock at once: a process that was forked a moment ago may still have the descriptor.
    pub(super) fn unlock(&self) -> Result<(), Errno> {
        flock(&self.0, FlockOperation::Unlock)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
