//! Names kernels and root file systems by their content. A file is read once, as long as it is the
//! same file as then.

use crate::store::record::FileId;
use blake3::Hash;
use patina_snapshot::manifest::image_digest;
use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Mutex, PoisonError},
};

/// How many files are known; of more, the one that was read first is forgotten.
const FILES_MAX: usize = 64;

/// The digests of files.
#[derive(Debug, Default)]
pub struct Digests(Mutex<VecDeque<(FileId, Hash)>>);

impl Digests {
    /// The digest of a file that was just opened. To be called where it may block: a new file is
    /// read whole.
    ///
    /// # Errors
    /// It cannot be read, or is written to meanwhile.
    pub fn of(&self, file: &File, id: FileId) -> io::Result<Hash> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let digest = image_digest(file)?;
        if FileId::of(&file.metadata()?) != id {
            return Err(io::Error::other("it was written to while it was read; try again"));
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= FILES_MAX {
            known.pop_front();
        }
        known.push_back((id, digest));
        Ok(digest)
    }

    fn known(&self, id: FileId) -> Option<Hash> {
        // No code panics under this lock; if some did, the list itself is still whole.
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(other, _)| *other == id).map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_read_once_and_again_when_it_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let digests = Digests::default();
        let digest = |digests: &Digests| {
            let file = File::open(&path).unwrap();
            let id = FileId::of(&file.metadata().unwrap());
            (digests.of(&file, id).unwrap(), id)
        };
        fs::write(&path, b"one").unwrap();
        let (first, id) = digest(&digests);
        assert_eq!(first, blake3::hash(b"one"));
        // Known now: the file that it is asked for is not looked into.
        fs::write(folder.path().join("other"), b"other").unwrap();
        let other = File::open(folder.path().join("other")).unwrap();
        assert_eq!(digests.of(&other, id).unwrap(), first);
        fs::write(&path, b"another").unwrap();
        assert_eq!(digest(&digests).0, blake3::hash(b"another"));
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, b"one").unwrap();
        let id = FileId::of(&fs::metadata(&path).unwrap());
        fs::write(&path, b"longer").unwrap();
        let digests = Digests::default();
        let error = digests.of(&File::open(&path).unwrap(), id).unwrap_err();
        assert!(error.to_string().contains("written to while it was read"), "{error}");
        assert!(digests.known(id).is_none());
    }

    #[test]
    fn so_many_files_are_known_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let digests = Digests::default();
        let mut ids = Vec::new();
        for number in 0..=FILES_MAX {
            let path = folder.path().join(number.to_string());
            fs::write(&path, number.to_string()).unwrap();
            let file = File::open(&path).unwrap();
            ids.push(FileId::of(&file.metadata().unwrap()));
            digests.of(&file, ids[number]).unwrap();
        }
        assert!(digests.known(ids[0]).is_none() && digests.known(ids[FILES_MAX]).is_some());
    }
}
