//! A directory that is being made or removed: it has a name of its own, and a lock.

use super::{
    error::FileError,
    folder::Folder,
    names::{self, UNFINISHED_PREFIX},
    steps::change,
};
use patina_control::best_effort;
use rustix::{
    fs::{FlockOperation, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// How often another name is tried where someone takes the directory for a leftover before it is
/// locked.
const TRIES: usize = 16;

/// A directory that goes when this is dropped, unless it is finished.
#[derive(Debug)]
pub(super) struct Unfinished<'a> {
    parent: &'a Folder,
    parent_path: &'a Path,
    name: OsString,
    folder: Folder,
    is_finished: bool,
}

impl<'a> Unfinished<'a> {
    /// Makes an empty one.
    pub(super) fn make(parent: &'a Folder, parent_path: &'a Path) -> Result<Self, FileError> {
        for _ in 0..TRIES {
            let name = new_name();
            let path = parent_path.join(&name);
            change("make", &path, || parent.make_folder(&name))?;
            // Whoever sweeps may have it, or have removed it, before it is locked.
            let folder = match parent.folder(&name) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    best_effort(parent.remove_folder(&name), "the next sweep removes it");
                    return Err(FileError::at("open", &path)(error));
                }
            };
            let made = Self { parent, parent_path, name, folder, is_finished: false };
            let lock = made.folder.lock(FlockOperation::NonBlockingLockExclusive);
            if lock.map_err(FileError::at("lock", &path))? && made.is_there()? {
                return Ok(made);
            }
        }
        let source = io::Error::from(io::ErrorKind::ResourceBusy);
        Err(FileError { operation: "make a directory in", path: parent_path.to_owned(), source })
    }

    /// Gives a snapshot, which the caller has locked exclusively, the name of an unfinished one.
    pub(super) fn of(
        parent: &'a Folder,
        parent_path: &'a Path,
        folder: Folder,
        name: &OsStr,
    ) -> Result<Self, FileError> {
        let to = new_name();
        let path = parent_path.join(name);
        change("rename", &path, || renameat_with(parent, name, parent, &to, RenameFlags::NOREPLACE))?;
        Ok(Self { parent, parent_path, name: to, folder, is_finished: false })
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(super) fn path(&self) -> PathBuf {
        self.parent_path.join(&self.name)
    }

    /// Whether its name still leads to it.
    fn is_there(&self) -> Result<bool, FileError> {
        let path = self.path();
        let failed = FileError::at("look at", &path);
        match (self.parent.stat_of(&self.name), self.folder.stat()) {
            (Err(Errno::NOENT), _) => Ok(false),
            (Ok(named), Ok(opened)) => Ok((named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)),
            (Err(error), _) | (_, Err(error)) => Err(failed(error)),
        }
    }

    /// Puts it on the disk.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        change("sync", &self.path(), || self.folder.sync())
    }

    /// Gives what is on the disk its name, which nothing has yet.
    pub(super) fn finish(mut self, name: &OsStr) -> Result<(), FileError> {
        let path = self.parent_path.join(name);
        let rename = || renameat_with(self.parent, &self.name, self.parent, name, RenameFlags::NOREPLACE);
        change("make", &path, rename)?;
        // If this fails, it goes under its new name. Nobody has opened it yet: it is locked.
        self.name = name.to_owned();
        change("sync", self.parent_path, || self.parent.sync())?;
        self.is_finished = true;
        best_effort(self.folder.unlock(), "the lock ends with its last descriptor anyway");
        Ok(())
    }

    /// Removes it.
    pub(super) fn remove(mut self) -> Result<(), FileError> {
        self.is_finished = true;
        clear(self.parent, &self.name, &self.folder).map_err(FileError::at("remove", &self.path()))?;
        change("sync", self.parent_path, || self.parent.sync())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            let cleared = clear(self.parent, &self.name, &self.folder);
            best_effort(cleared, "the next sweep removes what is left");
        }
    }
}

fn new_name() -> OsString {
    format!("{UNFINISHED_PREFIX}{}", Uuid::new_v4().simple()).into()
}

/// Removes the files of a snapshot, and the directory if it had no others.
fn clear(parent: &Folder, name: &OsStr, folder: &Folder) -> io::Result<()> {
    for _ in 1..TRIES {
        match clear_once(parent, name, folder) {
            // Somebody has just kept what VMs demanded of a layer, and cannot again: the directory
            // is not where it was.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && has_parts(folder)? => {}
            result => return result,
        }
    }
    clear_once(parent, name, folder)
}

fn has_parts(folder: &Folder) -> io::Result<bool> {
    Ok(folder.names()?.iter().any(|file| names::is_part(file)))
}

fn clear_once(parent: &Folder, name: &OsStr, folder: &Folder) -> io::Result<()> {
    // Names ascend, but the manifest goes first: what has none is not taken for a snapshot.
    let mut files = folder.names()?;
    files.retain(|file| names::is_part(file) || file == names::LAYER_UNFINISHED);
    files.sort_by_key(|file| file != names::MANIFEST);
    for file in files {
        let remove = || match folder.remove_file(&file) {
            // Who keeps what VMs demanded has renamed it.
            Err(Errno::NOENT) if file == names::DEMAND_UNFINISHED => Ok(()),
            result => result,
        };
        change("remove", Path::new(&file), remove).map_err(|error| error.source)?;
    }
    change("remove", Path::new(name), || parent.remove_folder(name)).map_err(|error| error.source)
}

/// Removes what processes that were killed have left in a directory. What is locked is in use, and
/// stays.
pub(super) fn sweep(parent: &Folder) {
    let names = parent.names().unwrap_or_default();
    for name in names.iter().filter(|name| names::is_unfinished(name)) {
        best_effort(sweep_one(parent, name), "others may sweep at the same time; the next sweep tries again");
    }
}

fn sweep_one(parent: &Folder, name: &OsStr) -> io::Result<()> {
    let folder = parent.folder(name)?;
    if folder.lock(FlockOperation::NonBlockingLockExclusive)? { clear(parent, name, &folder) } else { Ok(()) }
}
