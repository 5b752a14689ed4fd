//! Which layers in memory are in a snapshot already, so that a later snapshot need not write them.

use patina_daemon::lock;
use patina_snapshot::directory::KnownLayer;
use std::{collections::VecDeque, fs::File, io, os::unix::fs::MetadataExt as _, sync::Mutex};

/// How many layers are known; of more, the one that was noted first is forgotten.
const LAYERS_MAX: usize = 4096;

/// A memfd. The kernel gives no number twice before it starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memfd {
    device: u64,
    inode: u64,
}

impl Memfd {
    fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self { device: stat.dev(), inode: stat.ino() })
    }
}

/// The layers that are known. They are forgotten with the process.
#[derive(Debug, Default)]
pub struct KnownLayers(Mutex<VecDeque<(Memfd, KnownLayer)>>);

impl KnownLayers {
    /// A snapshot has the content of this memfd, which is sealed.
    pub fn note(&self, memfd: &File, layer: KnownLayer) {
        // Without it, the next snapshot writes the layer again.
        let Ok(memfd) = Memfd::of(memfd) else { return };
        let mut known = lock(&self.0);
        known.retain(|(other, _)| *other != memfd);
        if known.len() >= LAYERS_MAX {
            known.pop_front();
        }
        known.push_back((memfd, layer));
    }

    /// Where the content of this memfd is.
    #[must_use]
    pub fn find(&self, memfd: &File) -> Option<KnownLayer> {
        let memfd = Memfd::of(memfd).ok()?;
        // No code panics under this lock; if some did, the list itself is still whole.
        let known = lock(&self.0);
        known.iter().find(|(other, _)| *other == memfd).map(|(_, layer)| layer.clone())
    }
}

#[cfg(test)]
pub(in crate::vms) mod tests {
    use super::*;
    use blake3::Hash;
    use patina_control::memfd;
    use patina_snapshot::{
        directory::{Created, create, unwatched},
        manifest::{Description, ImageRef},
    };
    use std::path::Path;
    use uuid::Uuid;

    pub(in crate::vms) const MEMORY_MIB: u32 = 64;

    pub(in super::super) fn layer(first: &[u8]) -> File {
        let mut content = first.to_vec();
        content.resize(usize::try_from(MEMORY_MIB << 20).unwrap(), 0);
        memfd::sealed("layer", &content).unwrap()
    }

    /// A VM of [`MEMORY_MIB`].
    pub(in crate::vms) fn description() -> Description {
        let image = ImageRef { digest: Hash::from_bytes([1; 32]), path: "/k".into() };
        Description {
            uuid: Uuid::nil(),
            created_unix_ms: 1,
            name: "web".into(),
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            cmdline: String::new(),
            kernel: image.clone(),
            rootfs: image,
            agent_abi: 4,
            prefault_list: Vec::new(),
        }
    }

    pub(in super::super) fn keep(place: &Path, layers: &[&File], known: &KnownLayers) -> Created {
        let state = memfd::sealed("state", b"state").unwrap();
        let mut reuse = |number: usize| known.find(layers[number]);
        create(place, &description(), &state, layers, &mut reuse, &unwatched).unwrap()
    }

    #[test]
    fn a_layer_that_a_snapshot_has_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownLayers::default();
        let (old, new) = (layer(b"old"), layer(b"new"));
        let first = keep(&folder.path().join("first"), &[&old], &known);
        assert_eq!(first.linked, 0);
        known.note(&old, first.known[0].clone());
        // The same memfd, by another descriptor.
        assert_eq!(known.find(&old.try_clone().unwrap()), Some(first.known[0].clone()));
        assert_eq!(known.find(&new), None);
        let second = keep(&folder.path().join("second"), &[&old, &new], &known);
        assert_eq!(second.linked, 1);
        // A layer of the same content in another memfd is not known.
        assert_eq!(known.find(&layer(b"old")), None);
    }

    #[test]
    fn so_many_layers_are_known_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownLayers::default();
        let old = layer(b"old");
        let of = keep(&folder.path().join("first"), &[&old], &known).known[0].clone();
        known.note(&old, of.clone());
        let other = File::open("/dev/null").unwrap();
        // One file that is noted again and again is one.
        (0..LAYERS_MAX).for_each(|_| known.note(&other, of.clone()));
        assert!(known.find(&old).is_some());
        for number in 0..LAYERS_MAX {
            let path = folder.path().join(number.to_string());
            known.note(&File::create_new(path).unwrap(), of.clone());
        }
        assert!(known.find(&old).is_none(), "the first one is forgotten");
    }
}
