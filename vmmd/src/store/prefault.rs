//! The pages that clones of an image write before they are ready. The list of a first clone helps
//! later ones of its family. It is stored here to help other families with the same image, too. The
//! shortest list is kept: a page that one clone did not write is not written by all.

use super::{Lasting, StateDir, StoreError, read_bounded, record::Record, write_whole};
use patina_control::messages::PREFAULT_LIST_MAX_BYTES;
use patina_daemon::chain;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Most lists that are kept; the oldest goes first.
pub const LISTS_MAX: usize = 64;

const _: () = assert!(PREFAULT_LIST_MAX_BYTES <= super::FILE_MAX_BYTES);

/// What is the same in all VMs that write the same pages: as text, a file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKey(String);

impl ImageKey {
    /// The key of a VM's image.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let Record { kernel, kernel_file, rootfs, rootfs_file, vcpus, memory_mib, cmdline, .. } = record;
        let image =
            format!("{kernel:?} {kernel_file:?} {rootfs:?} {rootfs_file:?} {vcpus} {memory_mib} {cmdline:?}");
        let digest = Sha256::digest(image.as_bytes());
        Self(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How much RAM is in a list: pairs of first byte and length.
fn covered_bytes(list: &[u8]) -> u64 {
    let lengths = list.chunks_exact(16).filter_map(|pair| pair.last_chunk().copied().map(u64::from_le_bytes));
    lengths.fold(0, u64::saturating_add)
}

/// Removes the lists that a `vmmd` kept under the folder's earlier name. They are learned again.
pub(super) fn remove_old_lists(state: &Path) {
    let path = state.join("touched");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %chain(&error), "remove the prefault lists of an earlier vmmd");
        }
        Ok(()) | Err(_) => {}
    }
}

impl StateDir {
    fn lists(&self) -> PathBuf {
        self.path.join("prefault")
    }

    /// The list for an image; None when there is none yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn prefault_list(&self, image: &ImageKey) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.lists().join(&image.0);
        match read_bounded(&path) {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Read { path, source }),
        }
    }

    /// Keeps the list of an image, unless there is one of less RAM.
    ///
    /// # Errors
    /// It cannot be written, or an old one not be deleted.
    pub fn save_prefault_list(&self, image: &ImageKey, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.lists().join(&image.0);
        // A list that cannot be read is replaced.
        if let Ok(Some(kept)) = self.prefault_list(image)
            && covered_bytes(&kept) <= covered_bytes(bytes)
        {
            return Ok(());
        }
        let written = write_whole(&path, bytes, Lasting::Process);
        written.map_err(|source| StoreError::Write { path: path.clone(), source })?;
        self.forget_oldest(&path)
    }

    fn forget_oldest(&self, newest: &Path) -> Result<(), StoreError> {
        let path = self.lists();
        let read = |source| StoreError::Read { path: path.clone(), source };
        let mut lists = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let entry = entry.map_err(read)?;
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            lists.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
        lists.retain(|(_, path)| path != newest);
        lists.sort();
        for (_, path) in lists.iter().rev().skip(LISTS_MAX - 1) {
            fs::remove_file(path).map_err(|source| StoreError::Delete { path: path.clone(), source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::sample;

    #[test]
    fn a_list_is_kept_for_its_image() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let image = ImageKey::of(&sample("a"));
        assert_eq!(state.prefault_list(&image).unwrap(), None);
        state.save_prefault_list(&image, b"list").unwrap();
        assert_eq!(
            state.prefault_list(&ImageKey::of(&sample("b"))).unwrap(),
            Some(b"list".to_vec()),
            "whoever asks"
        );
        let larger = Record { memory_mib: 512, ..sample("a") };
        assert_eq!(state.prefault_list(&ImageKey::of(&larger)).unwrap(), None);
    }

    #[test]
    fn lists_under_the_earlier_name_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("touched");
        fs::create_dir(&old).unwrap();
        fs::write(old.join("key"), b"list").unwrap();
        StateDir::open(folder.path()).unwrap();
        assert!(!old.exists());
    }

    #[test]
    fn the_list_of_the_least_ram_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let image = ImageKey::of(&sample("a"));
        let list =
            |pages: &[u64]| [0, 4096 * pages[0], 1 << 20, 4096 * pages[1]].map(u64::to_le_bytes).concat();
        let (large, small) = (list(&[9, 1]), list(&[2, 7]));
        for (given, kept) in [(&large, &large), (&small, &small), (&large, &small)] {
            state.save_prefault_list(&image, given).unwrap();
            assert_eq!(state.prefault_list(&image).unwrap().as_ref(), Some(kept));
        }
    }

    #[test]
    fn only_so_many_lists_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let image = |memory_mib| ImageKey::of(&Record { memory_mib, ..sample("a") });
        for memory_mib in 0..=LISTS_MAX as u32 {
            state.save_prefault_list(&image(memory_mib), b"x").unwrap();
        }
        assert_eq!(fs::read_dir(state.lists()).unwrap().count(), LISTS_MAX);
        assert!(state.prefault_list(&image(LISTS_MAX as u32)).unwrap().is_some(), "the newest stays");
    }
}
