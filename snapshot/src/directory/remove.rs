//! Lists and removes snapshots.

use super::{
    error::{FileError, OpenError, RemoveError},
    folder::Folder,
    names,
    snapshot::{Snapshot, Usage},
    unfinished::{Unfinished, sweep},
};
use crate::manifest::{Manifest, is_manifest};
use rustix::{
    fs::{FileType, FlockOperation},
    io::Errno,
};
use std::{
    ffi::OsStr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// A snapshot of a directory of snapshots.
#[derive(Debug)]
pub struct Listed {
    /// Its directory.
    pub place: PathBuf,
    /// What it says of itself and the space that it takes, or why it cannot be used.
    pub found: Result<(Manifest, Usage), OpenError>,
}

/// The first `most` snapshots in a directory whose paths are after `after`, by path. What has no
/// manifest is left out. No others are opened.
///
/// # Errors
/// The directory cannot be read.
pub fn list(directory: &Path, after: &str, most: usize) -> Result<Vec<Listed>, FileError> {
    let failed = || FileError::at("read", directory);
    let names = Folder::open(directory).and_then(|folder| folder.names()).map_err(failed())?;
    let places = names.iter().filter(|name| !names::is_unfinished(name)).map(|name| directory.join(name));
    let mut places: Vec<_> = places.map(|place| (place.display().to_string(), place)).collect();
    places.retain(|(path, _)| path.as_str() > after);
    places.sort_unstable();
    let mut listed = Vec::new();
    for (_, place) in places {
        if listed.len() >= most {
            break;
        }
        match Snapshot::open(&place) {
            // Something else, or removed a moment ago.
            Err(
                OpenError::Missing(_)
                | OpenError::NotADirectory(_)
                | OpenError::NotASnapshot(_)
                | OpenError::Link(_),
            ) => {}
            Err(error) => listed.push(Listed { place, found: Err(error) }),
            Ok(snapshot) => {
                let usage = snapshot.usage();
                let found = usage.map(|usage| (snapshot.manifest().clone(), usage));
                listed.push(Listed { place, found });
            }
        }
    }
    Ok(listed)
}

/// Removes what processes that were killed have left of snapshots in a directory. What is being
/// made or removed stays.
///
/// # Errors
/// The directory cannot be opened.
pub fn clean(directory: &Path) -> Result<(), FileError> {
    sweep(&Folder::open(directory).map_err(FileError::at("open", directory))?);
    Ok(())
}

/// Removes a snapshot, even a damaged one, but nothing else. Snapshots that share files with it are
/// not affected.
///
/// # Errors
/// It is not a snapshot, has files that do not belong to one, or is open. Nothing is removed then.
/// If the system refuses to remove a part, the next [`super::create()`] or [`remove`] beside it
/// removes the rest.
pub fn remove(place: &Path) -> Result<(), RemoveError> {
    let not = |why: &str| RemoveError::NotASnapshot { place: place.to_owned(), why: why.to_owned() };
    let (parent_path, name) = names::split(place).ok_or_else(|| not("the path names no directory"))?;
    let parent = Folder::open(&parent_path).map_err(|error| match error {
        Errno::NOENT => RemoveError::Missing(place.to_owned()),
        error => FileError::at("open", &parent_path)(error).into(),
    })?;
    sweep(&parent);
    if names::is_unfinished(&name) {
        return match parent.kind_of(&name).map_err(FileError::at("look at", place))? {
            // The sweep removed it.
            None => Ok(()),
            Some(_) => Err(RemoveError::InUse(place.to_owned())),
        };
    }
    match parent.kind_of(&name).map_err(FileError::at("look at", place))? {
        None => return Err(RemoveError::Missing(place.to_owned())),
        Some(FileType::Directory) => {}
        Some(FileType::Symlink) => return Err(not("it is a symbolic link")),
        Some(_) => return Err(not("it is not a directory")),
    }
    let folder = parent.folder(&name).map_err(FileError::at("open", place))?;
    let lock = folder.lock(FlockOperation::NonBlockingLockExclusive);
    if !lock.map_err(FileError::at("lock", place))? {
        return Err(RemoveError::InUse(place.to_owned()));
    }
    check(&folder, place)?;
    Ok(Unfinished::of(&parent, &parent_path, folder, &name)?.remove()?)
}

/// Whether a directory has the files of a snapshot and no others. Their content may be damaged.
fn check(folder: &Folder, place: &Path) -> Result<(), RemoveError> {
    let not = |why: String| RemoveError::NotASnapshot { place: place.to_owned(), why };
    let mut has_manifest = false;
    for name in folder.names().map_err(FileError::at("read", place))? {
        let path = place.join(&name);
        let kind = folder.kind_of(&name).map_err(FileError::at("look at", &path))?;
        if !names::is_part(&name) || kind != Some(FileType::RegularFile) {
            return Err(not(format!("it has {name:?}, which is no file of a snapshot")));
        }
        has_manifest |= name == OsStr::new(names::MANIFEST);
    }
    if !has_manifest {
        return Err(not("it has no file \"manifest\"".to_owned()));
    }
    let path = place.join(names::MANIFEST);
    let file = folder.file(names::MANIFEST).map_err(FileError::at("open", &path))?;
    let mut first = [0; 16];
    let read = file.read_at(&mut first, 0).map_err(FileError::at("read", &path))?;
    if is_manifest(&first[..read]) {
        Ok(())
    } else {
        Err(not("its file \"manifest\" begins like no manifest of a snapshot".to_owned()))
    }
}
