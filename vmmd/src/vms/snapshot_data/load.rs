//! Where the memory of restored VMs comes from. The pager fills it while they run. Where that
//! cannot be, it is read whole before a VM starts.

use super::{error::SnapshotError, room::Taken};
use crate::{pager::Pager, process::generation::Generation};
use patina_control::memfd;
use patina_daemon::chain;
use patina_snapshot::{
    directory::{LayerFile, Snapshot, Watch, load_layer},
    manifest::RUN_BYTES,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::{collections::HashMap, fs::File, io, os::fd::OwnedFd, sync::Arc};

/// Makes a generation of a snapshot whose memory arrives while VMs run on it. None: this host
/// cannot do that.
pub async fn begin(pager: &Pager, snapshot: &Arc<Snapshot>) -> Option<Generation> {
    if !Pager::is_supported() {
        return None;
    }
    let begun = pager.generation(Arc::clone(snapshot)).await;
    let warn = |error| tracing::warn!(place = %snapshot.place().display(), error = %chain(&error), "the memory is read whole before VMs start");
    begun.map_err(warn).ok()
}

/// The memory that a snapshot's layers take which are not there already, bytes.
#[must_use]
pub fn missing_bytes(pager: &Pager, snapshot: &Snapshot) -> u64 {
    let missing = snapshot.layers().iter().filter(|layer| !pager.has(layer));
    // Layers of the same content are one.
    let missing: HashMap<_, _> =
        missing.map(|layer| (layer.id(), layer.layer().runs().present() * RUN_BYTES)).collect();
    missing.into_values().sum()
}

/// Keeps what was taken for a generation until all of its memory has arrived, or does not any more.
pub fn hold_until_complete(taken: Taken, generation: &Generation) {
    let settled: Vec<_> = generation.filling().iter().map(|(_, layer)| layer.settled()).collect();
    tokio::spawn(async move {
        for layer in settled {
            layer.await;
        }
        drop(taken);
    });
}

/// Makes a generation of a snapshot. Each run is checked before it is in a file that a VM maps. To
/// be called where it may block.
///
/// # Errors
/// The snapshot is damaged, there is no memory, or `watch` has cancelled it.
pub fn load(snapshot: &Snapshot, watch: Watch<'_>) -> Result<Generation, SnapshotError> {
    let place = || snapshot.place().to_owned();
    let no_memory = |source| SnapshotError::Memory { place: place(), source };
    let state = memfd::sealed("patina-state", &snapshot.state()?).map_err(no_memory)?;
    let mut files: Vec<OwnedFd> = vec![state.into()];
    for (number, layer) in snapshot.layers().iter().enumerate() {
        let before = snapshot.layers().iter().take(number);
        if let Some(same) = before.zip(files.iter().skip(1)).find(|(other, _)| other.id() == layer.id()) {
            let same = same.1.try_clone().map_err(no_memory)?;
            files.push(same);
            continue;
        }
        let memfd = empty(layer).map_err(no_memory)?;
        load_layer(layer, &memfd, watch).map_err(|source| SnapshotError::Load { place: place(), source })?;
        memfd::seal(&memfd).map_err(|errno| no_memory(errno.into()))?;
        files.push(memfd.into());
    }
    Ok(Generation::check(files, snapshot.manifest().description.memory_mib, &())?)
}

fn empty(layer: &LayerFile) -> io::Result<File> {
    let memfd = memfd_create("patina-layer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memfd, layer.bytes())?;
    Ok(memfd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::snapshot_data::known::tests::keep;
    use patina_snapshot::directory::unwatched;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn layers_of_the_same_content_are_loaded_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("base");
        let layers =
            [b"one", b"two", b"one"].map(|first| crate::vms::snapshot_data::known::tests::layer(first));
        keep(&place, &layers.each_ref(), &Default::default());
        let opened = load(&Snapshot::open(&place).unwrap(), &unwatched).unwrap().open().unwrap();
        let inodes: Vec<_> = opened.layers.iter().map(|layer| layer.metadata().unwrap().ino()).collect();
        assert_eq!(inodes[0], inodes[2]);
        assert_ne!(inodes[0], inodes[1]);
        for (layer, first) in opened.layers.iter().zip([b"one", b"two", b"one"]) {
            let mut bytes = [0; 3];
            std::os::unix::fs::FileExt::read_exact_at(layer, &mut bytes, 0).unwrap();
            assert_eq!(&bytes, first);
        }
    }
}
