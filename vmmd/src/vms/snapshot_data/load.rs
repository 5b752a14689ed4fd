//! Where the memory of restored VMs comes from. The pager fills it while they run. Where that cannot be,
//! it is read whole before a VM starts.

use super::error::SnapshotError;
use crate::{pager::Pager, process::generation::Generation};
use patina_control::memfd;
use patina_snapshot::directory::{LayerFile, Snapshot, Watch, load_layer};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::{fs::File, io, sync::Arc};

/// Makes a generation of a snapshot whose memory arrives while VMs run on it. None: this host cannot do that.
pub async fn begin(pager: &Pager, snapshot: &Arc<Snapshot>) -> Option<Generation> {
    if !Pager::is_supported() {
        return None;
    }
    let begun = pager.generation(Arc::clone(snapshot)).await;
    let warn = |error| tracing::warn!(place = %snapshot.place().display(), %error, "the memory is read whole before VMs start");
    begun.map_err(warn).ok()
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
    let mut files = vec![state.into()];
    for layer in snapshot.layers() {
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
