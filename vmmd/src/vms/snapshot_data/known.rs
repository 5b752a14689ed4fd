//! Which layers in memory are in a snapshot already, so that a later snapshot need not write them.

use crate::store::record::Record;
use patina_daemon::lock;
use patina_snapshot::directory::KnownLayer;
use std::{collections::VecDeque, fs::File, io, os::unix::fs::MetadataExt as _, sync::Mutex};
use uuid::Uuid;

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

/// Who may use a layer's file for its memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// Every VM with this memfd: the file has all that the memfd has.
    All,
    /// The file lacks what was free in this VM then. In the VM these pages have no content that
    /// matters, unless it has written them since, and then they are in another layer. A VM that was
    /// cloned from it earlier may use what is free here.
    Vm {
        /// The VM's family.
        family: Uuid,
        /// Its vmid.
        vmid: u32,
    },
}

impl Users {
    /// The VM of this record only.
    #[must_use]
    pub fn only(record: &Record) -> Self {
        Self::Vm { family: record.family, vmid: record.vmid }
    }
}

/// The layers that are known. They are forgotten with the process.
#[derive(Debug, Default)]
pub struct KnownLayers(Mutex<VecDeque<(Memfd, Users, KnownLayer)>>);

impl KnownLayers {
    /// A snapshot has the content of this memfd, which is sealed: all that matters to these VMs.
    pub fn note(&self, memfd: &File, users: Users, layer: KnownLayer) {
        // Without it, the next snapshot writes the layer again.
        let Ok(memfd) = Memfd::of(memfd) else { return };
        let mut known = lock(&self.0);
        known.retain(|(other, others, _)| (*other, *others) != (memfd, users));
        if known.len() >= LAYERS_MAX {
            known.pop_front();
        }
        known.push_back((memfd, users, layer));
    }

    /// Where the content of this memfd is, for a VM, and for whom else.
    #[must_use]
    pub fn find(&self, memfd: &File, vm: &Record) -> Option<(Users, KnownLayer)> {
        let memfd = Memfd::of(memfd).ok()?;
        let own = Users::only(vm);
        // No code panics under this lock; if some did, the list itself is still whole.
        let known = lock(&self.0);
        let fits = |(other, users, _): &&(Memfd, Users, KnownLayer)| {
            *other == memfd && (*users == Users::All || *users == own)
        };
        known.iter().rev().find(fits).map(|(_, users, layer)| (*users, layer.clone()))
    }
}

#[cfg(test)]
pub(in crate::vms) mod tests {
    use super::*;
    use crate::store::record::tests::sample;
    use blake3::Hash;
    use patina_control::memfd;
    use patina_snapshot::{
        directory::{Created, create, unwatched},
        manifest::{Description, ImageRef},
    };
    use std::path::Path;

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
        let mut reuse = |number: usize| known.find(layers[number], &sample("web")).map(|(_, layer)| layer);
        create(place, &description(), &state, (layers, &[]), &mut reuse, &unwatched).unwrap()
    }

    #[test]
    fn a_layer_that_a_snapshot_has_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownLayers::default();
        let (old, new) = (layer(b"old"), layer(b"new"));
        let first = keep(&folder.path().join("first"), &[&old], &known);
        assert_eq!(first.linked, 0);
        known.note(&old, Users::All, first.known[0].clone());
        // The same memfd, by another descriptor.
        assert_eq!(
            known.find(&old.try_clone().unwrap(), &sample("web")),
            Some((Users::All, first.known[0].clone()))
        );
        assert_eq!(known.find(&new, &sample("web")), None);
        let second = keep(&folder.path().join("second"), &[&old, &new], &known);
        assert_eq!(second.linked, 1);
        // A layer of the same content in another memfd is not known.
        assert_eq!(known.find(&layer(b"old"), &sample("web")), None);
    }

    #[test]
    fn a_file_without_what_was_free_in_a_vm_is_used_by_that_vm_only() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownLayers::default();
        let (parent, memfd) = (sample("web"), layer(b"shared"));
        let clone = Record { vmid: parent.vmid + 1, ..parent.clone() };
        let of =
            |name: &str| keep(&folder.path().join(name), &[&layer(name.as_bytes())], &known).known[0].clone();
        let own = of("parent");
        known.note(&memfd, Users::only(&parent), own.clone());
        assert_eq!(known.find(&memfd, &parent), Some((Users::only(&parent), own)));
        assert_eq!(known.find(&memfd, &clone), None, "it may use what is free in its parent");
        let other = Record { family: Uuid::from_bytes([9; 16]), ..parent.clone() };
        assert_eq!(known.find(&memfd, &other), None);
        // Each has its own, and the clone's does not take the parent's away.
        let own = of("clone");
        known.note(&memfd, Users::only(&clone), own.clone());
        assert_eq!(known.find(&memfd, &clone), Some((Users::only(&clone), own)));
        assert!(known.find(&memfd, &parent).is_some_and(|(users, _)| users == Users::only(&parent)));
        let whole = of("whole");
        known.note(&memfd, Users::All, whole.clone());
        assert_eq!(known.find(&memfd, &other), Some((Users::All, whole)));
    }

    #[test]
    fn so_many_layers_are_known_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownLayers::default();
        let old = layer(b"old");
        let of = keep(&folder.path().join("first"), &[&old], &known).known[0].clone();
        known.note(&old, Users::All, of.clone());
        let other = File::open("/dev/null").unwrap();
        // One file that is noted again and again is one.
        (0..LAYERS_MAX).for_each(|_| known.note(&other, Users::All, of.clone()));
        assert!(known.find(&old, &sample("web")).is_some());
        for number in 0..LAYERS_MAX {
            let path = folder.path().join(number.to_string());
            known.note(&File::create_new(path).unwrap(), Users::All, of.clone());
        }
        assert!(known.find(&old, &sample("web")).is_none(), "the first one is forgotten");
    }
}
