//! The folder of images: a snapshot each, named by its key.
//!
//! The time of a snapshot's directory says when a VM started from it last. What has not been used
//! for long goes, and of too much, what was used least recently. A snapshot that is locked is in
//! use, and stays: VMs still read their memory from it. Several `vmmd`s may share a folder.

use super::key::Key;
use crate::options::CacheSettings;
use patina_daemon::{chain, lock};
use patina_snapshot::{
    directory::{self, FileError, Listed, OpenError, RemoveError, Snapshot, Usage, unwatched},
    manifest::Manifest,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

/// See the module.
#[derive(Debug)]
pub struct ImageCache {
    settings: CacheSettings,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Images that a VM which boots will be kept as.
    making: HashSet<Key>,
    /// Images that were read and compared with their digests, and what their files were then.
    checked: HashMap<Key, Stamp>,
    /// Images that must not be used, and could not be removed yet.
    bad: HashSet<Key>,
}

/// What the files of an image are: other content has another.
type Stamp = Vec<(String, u64, u64, i64, i64)>;

/// The right to make an image, until it is dropped.
#[derive(Debug)]
pub struct Making {
    key: Key,
    inner: Arc<Mutex<Inner>>,
}

/// An image on the disk.
#[derive(Debug)]
pub struct Stored {
    /// Its key.
    pub key: Key,
    /// Its directory.
    pub place: PathBuf,
    /// When a VM started from it last.
    pub used: SystemTime,
    /// What it says of itself and its size, or why it cannot be used.
    pub found: Result<(Manifest, Usage), OpenError>,
}

impl Stored {
    /// The space that it takes, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let usage = self.found.as_ref().map(|(_, usage)| *usage).unwrap_or_default();
        usage.own_bytes.saturating_add(usage.shared_bytes)
    }
}

impl Making {
    /// Of which image.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        lock(&self.inner).making.remove(&self.key);
    }
}

impl ImageCache {
    /// Opens the folder, makes it if need be, and removes what a `vmmd` that was killed left of
    /// images that were not complete.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn open(settings: CacheSettings) -> Result<Self, FileError> {
        let folder = settings.folder;
        let at = |operation, source| FileError { operation, path: folder.clone(), source };
        // Only its owner may read what is in the memory of VMs.
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| at("make", error))?;
        directory::clean(&folder)?;
        let folder = folder.canonicalize().map_err(|error| at("open", error))?;
        let settings = CacheSettings { folder, ..settings };
        Ok(Self { settings, inner: Arc::default() })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.settings.folder
    }

    /// Where an image is, or would be.
    #[must_use]
    pub fn place(&self, key: Key) -> PathBuf {
        self.settings.folder.join(key.to_string())
    }

    /// The image with this key, checked. To be called where it may block: one that this `vmmd` has
    /// not checked yet is read whole. What is damaged is removed.
    #[must_use]
    pub fn find(&self, key: Key) -> Option<Arc<Snapshot>> {
        let place = self.place(key);
        if lock(&self.inner).bad.contains(&key) {
            self.remove(key).ok()?;
        }
        let snapshot = match Snapshot::open(&place) {
            Ok(snapshot) => snapshot,
            Err(OpenError::Missing(_) | OpenError::Busy(_)) => return None,
            Err(error) => {
                self.discard(key, &chain(&error));
                return None;
            }
        };
        match self.check(key, &snapshot) {
            Ok(()) => Some(Arc::new(snapshot)),
            Err(why) => {
                drop(snapshot);
                self.discard(key, &why);
                None
            }
        }
    }

    fn check(&self, key: Key, snapshot: &Snapshot) -> Result<(), String> {
        let stamp = stamp(snapshot.place()).map_err(|error| chain(&error))?;
        if lock(&self.inner).checked.get(&key) == Some(&stamp) {
            return Ok(());
        }
        snapshot.verify(&unwatched).map_err(|error| chain(&error))?;
        lock(&self.inner).checked.insert(key, stamp);
        Ok(())
    }

    /// A VM starts from it now.
    pub fn used(&self, key: Key) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        if let Err(error) = utimensat(CWD, self.place(key), &times, AtFlags::SYMLINK_NOFOLLOW) {
            tracing::warn!(image = %key, error = %chain(&error), "when it was used is not known");
        }
    }

    /// The right to make an image. None: another VM will be kept as that.
    #[must_use]
    pub fn begin(&self, key: Key) -> Option<Making> {
        let is_first = lock(&self.inner).making.insert(key);
        is_first.then(|| Making { key, inner: Arc::clone(&self.inner) })
    }

    /// An image was just made of memory: it need not be checked.
    pub fn made(&self, key: Key) {
        if let Ok(stamp) = stamp(&self.place(key)) {
            let mut inner = lock(&self.inner);
            inner.checked.insert(key, stamp);
            inner.bad.remove(&key);
        }
    }

    /// Removes an image that cannot be used. If it is in use, it is at least not used again.
    pub fn discard(&self, key: Key, why: &str) {
        tracing::warn!(image = %key, why, "an image cannot be used; it is removed, and the next VM boots");
        if let Err(error) = self.remove(key) {
            lock(&self.inner).bad.insert(key);
            tracing::warn!(image = %key, error = %chain(&error), "it is removed later");
        }
    }

    /// Removes an image.
    ///
    /// # Errors
    /// It is in use, or its files cannot be removed. One that is not there is no error.
    pub fn remove(&self, key: Key) -> Result<(), RemoveError> {
        let place = self.place(key);
        match directory::remove(&place) {
            Ok(()) | Err(RemoveError::Missing(_)) => {}
            // Nothing else has such a name here: it is an image that lost files, or got others.
            Err(RemoveError::NotASnapshot { .. }) => remove_whole(&place)?,
            Err(error) => return Err(error),
        }
        let mut inner = lock(&self.inner);
        inner.checked.remove(&key);
        inner.bad.remove(&key);
        Ok(())
    }

    /// All images, that which was used least recently first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Stored>, FileError> {
        let stored = |Listed { place, found }: Listed| {
            let key = place.file_name()?.to_str().and_then(Key::parse)?;
            let used = fs::metadata(&place).and_then(|stat| stat.modified()).ok()?;
            Some(Stored { key, place, used, found })
        };
        let mut all: Vec<Stored> =
            directory::list(&self.settings.folder, "", usize::MAX)?.into_iter().filter_map(stored).collect();
        all.sort_by_key(|stored| stored.used);
        Ok(all)
    }

    /// Removes what is too old and too much. To be called where it may block.
    pub fn evict(&self) {
        let all = match self.list() {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "images that are too old or too many stay");
                return;
            }
        };
        let now = SystemTime::now();
        let mut bytes: u64 = all.iter().map(Stored::bytes).sum();
        for stored in all {
            let age = now.duration_since(stored.used).unwrap_or_default();
            let why = if age > self.settings.age_max {
                "not used for long"
            } else if bytes > self.settings.bytes_max {
                "there is no room for it"
            } else {
                continue;
            };
            match self.remove(stored.key) {
                Ok(()) => {
                    bytes = bytes.saturating_sub(stored.bytes());
                    tracing::info!(image = %stored.key, why, "an image is removed");
                }
                Err(error) => tracing::debug!(image = %stored.key, error = %chain(&error), "it stays"),
            }
        }
    }
}

fn remove_whole(place: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(place) {
        Ok(stat) if stat.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError { operation: "remove", path: place.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Only of what [`Snapshot::verify`] reads: which pages VMs demanded is written as they run.
fn stamp(place: &Path) -> io::Result<Stamp> {
    let mut stamp = Stamp::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let is_read = |name: &str| ["manifest", "state"].contains(&name) || name.starts_with("layer-");
        if !entry.file_name().to_str().is_some_and(is_read) {
            continue;
        }
        let stat = entry.metadata()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        stamp.push((name, stat.ino(), stat.size(), stat.ctime(), stat.ctime_nsec()));
    }
    stamp.sort();
    Ok(stamp)
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod tests;
