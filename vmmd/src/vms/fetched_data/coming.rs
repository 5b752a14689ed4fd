//! A file that is being written to the shelf.

use super::{book::Place, error::ShelfError};
use blake3::{Hash, Hasher};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Files under such a name are not complete.
pub const UNFINISHED: &str = ".new-";

/// A file whose bytes come. Until it is complete it has another name; if it is dropped before,
/// nothing of it is left.
#[derive(Debug)]
pub struct Coming {
    file: NamedTempFile,
    hasher: Hasher,
    done: u64,
    place: Place,
}

impl Coming {
    /// A file for which there is a place.
    ///
    /// # Errors
    /// It cannot be made, or there is no room for it on the disk.
    pub fn begin(place: Place) -> Result<Self, ShelfError> {
        let bad = |operation, source| failed(operation, place.folder(), source);
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(place.folder());
        let file = file.map_err(|error| bad("make a file in", error))?;
        // Now rather than at the last byte: a full disk is found out before anything is sent.
        match fallocate(file.as_file(), FallocateFlags::empty(), 0, place.bytes()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(bad("make room in", errno.into())),
        }
        Ok(Self { file, hasher: Hasher::new(), done: 0, place })
    }

    /// How much has come.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// How much there is in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.place.bytes()
    }

    /// The next bytes. May block.
    ///
    /// # Errors
    /// They cannot be written, or are too many.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ShelfError> {
        let done = self.done + bytes.len() as u64;
        if done > self.total() {
            return Err(ShelfError::Long(self.total()));
        }
        self.file.write_all(bytes).map_err(|error| failed("write", self.file.path(), error))?;
        self.hasher.update(bytes);
        self.done = done;
        Ok(())
    }

    /// All has come: the file is on the shelf from now on, also after a crash of the host. May
    /// block.
    ///
    /// # Errors
    /// It is not the file that was wanted, or cannot be kept.
    pub fn finish(self) -> Result<(), ShelfError> {
        let Self { file, hasher, done, place } = self;
        if done < place.bytes() {
            return Err(ShelfError::Short { done, total: place.bytes() });
        }
        let is = hasher.finalize();
        if is != place.digest() {
            return Err(ShelfError::OtherContent(is));
        }
        let path = path(place.folder(), place.digest());
        let at = |operation, error| failed(operation, &path, error);
        file.as_file().sync_all().map_err(|error| at("write", error))?;
        file.persist(&path).map_err(|error| at("name", error.error))?;
        // The name itself lasts only when the folder does.
        let synced = File::open(place.folder()).and_then(|folder| folder.sync_all());
        place.fill();
        synced.map_err(|error| at("write", error))
    }
}

/// Where a file is.
#[must_use]
pub fn path(folder: &Path, digest: Hash) -> PathBuf {
    folder.join(digest.to_hex().as_str())
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> ShelfError {
    ShelfError::File { operation, path: path.to_owned(), source }
}
