//! The folder of kernels and root file systems that came from other hosts: a file each, named by
//! its digest.
//!
//! A name alone is not believed: whoever takes a file compares its content. Of too much, what was
//! used least recently goes, but nothing that a VM uses.

use super::{
    book::{Book, Place},
    coming::{Coming, UNFINISHED, path},
    error::ShelfError,
};
use blake3::Hash;
use patina_control::best_effort;
use patina_daemon::{chain, lock};
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

/// Most files.
pub const FILES_MAX: usize = 32;

/// See the module.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    bytes_max: u64,
    book: Arc<Mutex<Book>>,
    // Held while room is made for a file.
    placing: Mutex<()>,
}

/// A file on the shelf, which stays there until this is dropped.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _holder: Arc<()>,
}

impl Held {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a VM has a file as its kernel or root file system.
pub type IsUsed<'a> = &'a dyn Fn(&Path) -> bool;

impl Shelf {
    /// Opens the folder, makes it if need be, and removes what a `vmmd` that was killed left of
    /// files that were not complete.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self, ShelfError> {
        let bad = |operation, source| ShelfError::File { operation, path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| bad("make", error))?;
        let folder = folder.canonicalize().map_err(|error| bad("open", error))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|error| bad("list", error))? {
            let entry = entry.map_err(|error| bad("list", error))?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if name.starts_with(UNFINISHED) {
                best_effort(fs::remove_file(entry.path()), "the next vmmd tries again");
            } else if let Some(digest) = named(name)
                && let Ok(stat) = fs::symlink_metadata(entry.path())
                && stat.is_file()
            {
                found.push((stat.modified().unwrap_or(SystemTime::UNIX_EPOCH), digest, stat.len()));
            }
        }
        // Which was used last is forgotten with the process; the one that came last counts.
        found.sort_by_key(|(modified, ..)| *modified);
        let mut book = Book::default();
        found.into_iter().for_each(|(_, digest, bytes)| book.keep(digest, bytes));
        Ok(Self { folder, bytes_max, book: Arc::new(Mutex::new(book)), placing: Mutex::default() })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, digest: Hash) -> PathBuf {
        path(&self.folder, digest)
    }

    /// The file with this name, if there is one, to be used now. Its content must be compared.
    #[must_use]
    pub fn hold(&self, digest: Hash) -> Option<Held> {
        let holder = lock(&self.book).hold(digest)?;
        Some(Held { path: self.path(digest), _holder: holder })
    }

    /// Begins to write a file, for which others may have to go. May block.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn begin(&self, digest: Hash, bytes: u64, is_used: IsUsed<'_>) -> Result<Coming, ShelfError> {
        if bytes == 0 {
            return Err(ShelfError::Form);
        }
        if bytes > self.bytes_max {
            return Err(ShelfError::TooLarge { bytes, max: self.bytes_max });
        }
        Coming::begin(self.place(digest, bytes, is_used)?)
    }

    fn place(&self, digest: Hash, bytes: u64, is_used: IsUsed<'_>) -> Result<Place, ShelfError> {
        // One at a time: two must not take the same room.
        let _turn = lock(&self.placing);
        loop {
            let book = lock(&self.book);
            if book.files() < FILES_MAX && book.bytes().saturating_add(bytes) <= self.bytes_max {
                drop(book);
                return Ok(Book::place(&self.book, &self.folder, digest, bytes));
            }
            let free = book.free();
            drop(book);
            let oldest = free.into_iter().find(|digest| !is_used(&self.path(*digest)));
            let full = ShelfError::Full { files: FILES_MAX, max: self.bytes_max };
            if self.remove_free(oldest.ok_or(full)?)?.is_some() {
                tracing::info!(digest = ?oldest, "a file from another host is removed: there is no room for it");
            }
        }
    }

    /// Removes a file whose content is not what its name says.
    pub fn discard(&self, digest: Hash) {
        tracing::warn!(%digest, "a file from another host was changed; it is removed");
        if let Err(error) = self.remove(&mut lock(&self.book), digest) {
            tracing::error!(error = %chain(&error), "it stays, and is not used");
        }
    }

    /// Removes all that no VM uses. Returns how many bytes these files had. May block.
    pub fn prune(&self, is_used: IsUsed<'_>) -> u64 {
        let free = lock(&self.book).free();
        let mut freed = 0;
        for digest in free.into_iter().filter(|digest| !is_used(&self.path(*digest))) {
            match self.remove_free(digest) {
                Ok(bytes) => freed += bytes.unwrap_or_default(),
                Err(error) => tracing::warn!(error = %chain(&error), "a file from another host stays"),
            }
        }
        freed
    }

    /// The digests of the files, that which was used last first.
    #[must_use]
    pub fn digests(&self) -> Vec<Hash> {
        let mut all = lock(&self.book).all();
        all.reverse();
        all
    }

    /// Removes a file, unless somebody is about to use it by now. Returns how long it was, if it is
    /// gone.
    fn remove_free(&self, digest: Hash) -> Result<Option<u64>, ShelfError> {
        let mut book = lock(&self.book);
        let bytes = book.length_of_free(digest);
        if bytes.is_some() {
            self.remove(&mut book, digest)?;
        }
        Ok(bytes)
    }

    fn remove(&self, book: &mut Book, digest: Hash) -> Result<(), ShelfError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ShelfError::File { operation: "remove", path, source })
            }
            _ => {
                book.forget(digest);
                Ok(())
            }
        }
    }
}

/// The digest that a name is; nothing else is one: a file has one name.
fn named(name: &str) -> Option<Hash> {
    let digest = Hash::from_hex(name).ok()?;
    (digest.to_hex().as_str() == name).then_some(digest)
}

#[cfg(test)]
#[path = "shelf_test.rs"]
mod tests;
