//! The kernels and root file systems that other hosts may read here: those of VMs that they were
//! asked to make clones of. A host must not be able to read any other file.

use blake3::Hash;
use patina_daemon::lock;
use patina_snapshot::manifest::ImageRef;
use std::{collections::VecDeque, path::PathBuf, sync::Mutex};

/// How many are known; of more, the one that was offered least recently is forgotten.
const OFFERED_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Offered(Mutex<VecDeque<(Hash, PathBuf)>>);

impl Offered {
    /// Other hosts are told of these.
    pub fn note(&self, images: &[ImageRef]) {
        let mut offered = lock(&self.0);
        for ImageRef { digest, path } in images {
            offered.retain(|(other, _)| other != digest);
            if offered.len() >= OFFERED_MAX {
                offered.pop_front();
            }
            offered.push_back((*digest, path.clone()));
        }
    }

    /// Where a file with this content was when it was offered.
    #[must_use]
    pub fn find(&self, digest: Hash) -> Option<PathBuf> {
        let offered = lock(&self.0);
        offered.iter().find(|(other, _)| *other == digest).map(|(_, path)| path.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_offered_last_is_known_and_so_many_and_no_more() {
        let offered = Offered::default();
        let image = |number: usize, path: &str| ImageRef {
            digest: blake3::hash(&number.to_le_bytes()),
            path: path.into(),
        };
        for number in 0..OFFERED_MAX {
            offered.note(&[image(number, "/a")]);
        }
        // Offered again, from another place: it is the last one now.
        offered.note(&[image(0, "/b")]);
        offered.note(&[image(OFFERED_MAX, "/c")]);
        let find = |number| offered.find(image(number, "").digest);
        assert_eq!(find(0), Some("/b".into()));
        assert_eq!(find(OFFERED_MAX), Some("/c".into()));
        assert_eq!(find(1), None);
        assert_eq!(find(2), Some("/a".into()));
    }
}
