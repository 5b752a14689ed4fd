//! Names kernels and root file systems by their content. A file is read once, as long as it is the
//! same file as then.

use crate::store::record::FileId;
use blake3::Hash;
use patina_daemon::lock;
use patina_snapshot::manifest::image_digest;
use std::{
    collections::VecDeque,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    sync::Mutex,
};

/// How many files are known; of more, the one that was read first is forgotten.
const FILES_MAX: usize = 64;

/// A file as it was when its digest was made. Whoever writes to a file can give it back its length
/// and its time of modification, but not its time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    id: FileId,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self { id: FileId::of(file), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// The digests of files.
#[derive(Debug, Default)]
pub struct Digests(Mutex<VecDeque<(Stamp, Hash)>>);

impl Digests {
    /// The digest of a file that was just opened, and which file it is. To be called where it may
    /// block: a new file is read whole.
    ///
    /// # Errors
    /// It cannot be read, or is written to meanwhile.
    pub fn of(&self, file: &File) -> io::Result<(Hash, FileId)> {
        let stamp = Stamp::of(&file.metadata()?);
        self.of_stamped(file, stamp).map(|digest| (digest, stamp.id))
    }

    fn of_stamped(&self, file: &File, stamp: Stamp) -> io::Result<Hash> {
        if let Some(known) = self.known(stamp) {
            return Ok(known);
        }
        let digest = image_digest(file)?;
        if Stamp::of(&file.metadata()?) != stamp {
            return Err(io::Error::other("it was written to while it was read; try again"));
        }
        let mut known = lock(&self.0);
        if known.len() >= FILES_MAX {
            known.pop_front();
        }
        known.push_back((stamp, digest));
        Ok(digest)
    }

    fn known(&self, stamp: Stamp) -> Option<Hash> {
        // No code panics under this lock; if some did, the list itself is still whole.
        let known = lock(&self.0);
        known.iter().find(|(other, _)| *other == stamp).map(|(_, digest)| *digest)
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
            (digests.of(&file).unwrap().0, Stamp::of(&file.metadata().unwrap()))
        };
        fs::write(&path, b"one").unwrap();
        let (first, stamp) = digest(&digests);
        assert_eq!(first, blake3::hash(b"one"));
        // Known now: the file that it is asked for is not looked into.
        fs::write(folder.path().join("other"), b"other").unwrap();
        let other = File::open(folder.path().join("other")).unwrap();
        assert_eq!(digests.of_stamped(&other, stamp).unwrap(), first);
        fs::write(&path, b"another").unwrap();
        assert_eq!(digest(&digests).0, blake3::hash(b"another"));
    }

    #[test]
    fn a_file_that_was_written_to_and_given_its_old_time_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let digests = Digests::default();
        fs::write(&path, b"one").unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let (_, id) = digests.of(&File::open(&path).unwrap()).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"two", 0).unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(FileId::of(&file.metadata().unwrap()), id);
        assert_eq!(digests.of(&File::open(&path).unwrap()).unwrap().0, blake3::hash(b"two"));
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, b"one").unwrap();
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        fs::write(&path, b"longer").unwrap();
        let digests = Digests::default();
        let error = digests.of_stamped(&File::open(&path).unwrap(), stamp).unwrap_err();
        assert!(error.to_string().contains("written to while it was read"), "{error}");
        assert!(digests.known(stamp).is_none());
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
            ids.push(Stamp::of(&file.metadata().unwrap()));
            digests.of(&file).unwrap();
        }
        assert!(digests.known(ids[0]).is_none() && digests.known(ids[FILES_MAX]).is_some());
    }
}
