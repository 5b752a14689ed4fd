//! The memory of guests and generations: the memfds that the processes of a host hold or map.

use crate::leftovers;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The unit of `st_blocks`, bytes.
const BLOCK_BYTES: u64 = 512;

/// RAM and the layers of generations, each counted once however many processes have it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memfds {
    /// What each takes of the host's memory, bytes, by inode.
    bytes: BTreeMap<u64, u64>,
}

impl Memfds {
    /// Of the processes that belong to a folder.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut bytes = BTreeMap::new();
        for pid in leftovers::pids_of(folder)? {
            for list in ["fd", "map_files"] {
                // A process may end while we look at it: what it had is gone.
                for link in links(&format!("/proc/{pid}/{list}")).unwrap_or_default() {
                    if let Ok(file) = fs::metadata(link) {
                        bytes.insert(file.ino(), file.blocks() * BLOCK_BYTES);
                    }
                }
            }
        }
        Ok(Self { bytes })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bytes.len()
    }

    /// What all take of the host's memory, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.values().sum()
    }
}

/// The links in a folder that lead to memory of guests.
fn links(folder: &str) -> io::Result<Vec<PathBuf>> {
    let is_ours = |link: &PathBuf| {
        fs::read_link(link).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:patina-"))
    };
    let links = fs::read_dir(folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(links.filter(is_ours).collect())
}
