//! Which files are on the shelf, and which are to come.

use blake3::Hash;
use patina_daemon::lock;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// See the module.
#[derive(Debug, Default)]
pub struct Book {
    kept: HashMap<Hash, Kept>,
    /// The lengths of files that are being written.
    coming: HashMap<Hash, u64>,
    /// Counts uses: of two files, the one with the greater number was used later.
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: u64,
    used: u64,
    /// Who holds a clone of it is about to use the file.
    holders: Arc<()>,
}

impl Kept {
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.holders) == 1
    }
}

/// A place on the shelf, for a file that comes.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    digest: Hash,
    bytes: u64,
    book: Arc<Mutex<Book>>,
}

impl Place {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The digest of the file.
    #[must_use]
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file is there.
    pub fn fill(self) {
        lock(&self.book).keep(self.digest, self.bytes);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.book).coming.remove(&self.digest);
    }
}

impl Book {
    /// A file is there.
    pub fn keep(&mut self, digest: Hash, bytes: u64) {
        self.uses += 1;
        self.kept.insert(digest, Kept { bytes, used: self.uses, holders: Arc::default() });
    }

    /// A file is not there any more.
    pub fn forget(&mut self, digest: Hash) {
        self.kept.remove(&digest);
    }

    /// A file is used now, and stays at least as long as what this returns.
    pub fn hold(&mut self, digest: Hash) -> Option<Arc<()>> {
        let kept = self.kept.get_mut(&digest)?;
        self.uses += 1;
        kept.used = self.uses;
        Some(Arc::clone(&kept.holders))
    }

    /// Keeps a place for a file that comes to this folder.
    pub fn place(book: &Arc<Mutex<Self>>, folder: &Path, digest: Hash, bytes: u64) -> Place {
        lock(book).coming.insert(digest, bytes);
        Place { folder: folder.to_owned(), digest, bytes, book: Arc::clone(book) }
    }

    /// How many files there are, with those that come.
    pub fn files(&self) -> usize {
        self.kept.len() + self.coming.len()
    }

    /// How many bytes these have.
    pub fn bytes(&self) -> u64 {
        let kept = self.kept.values().map(|kept| kept.bytes);
        kept.chain(self.coming.values().copied()).fold(0, u64::saturating_add)
    }

    /// The files that nobody holds, that which was used least recently first.
    pub fn free(&self) -> Vec<Hash> {
        self.sorted(Kept::is_free)
    }

    /// The length of a file that nobody holds.
    pub fn length_of_free(&self, digest: Hash) -> Option<u64> {
        self.kept.get(&digest).filter(|kept| kept.is_free()).map(|kept| kept.bytes)
    }

    /// All files, that which was used least recently first.
    pub fn all(&self) -> Vec<Hash> {
        self.sorted(|_| true)
    }

    fn sorted(&self, is_meant: impl Fn(&Kept) -> bool) -> Vec<Hash> {
        let meant = self.kept.iter().filter(|(_, kept)| is_meant(kept));
        let mut meant: Vec<_> = meant.map(|(digest, kept)| (kept.used, *digest)).collect();
        meant.sort_by_key(|(used, _)| *used);
        meant.into_iter().map(|(_, digest)| digest).collect()
    }
}
