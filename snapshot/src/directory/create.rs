//! Makes a snapshot.

use super::{
    error::{CreateError, FileError},
    folder::Folder,
    layer::Stamp,
    names,
    progress::{Meter, Progress, Watch},
    reuse::Earlier,
    snapshot::KnownLayer,
    unfinished::{Unfinished, sweep},
    write::{Source, write_file, write_layer},
};
use crate::manifest::{Description, Layer, Manifest, StateRef};
use patina_control::{config::LAYERS_MAX, messages::STATE_MAX_BYTES};
use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What [`create`] has made.
#[derive(Debug)]
pub struct Created {
    /// The snapshot's directory: an absolute path.
    pub place: PathBuf,
    /// What the snapshot says of itself.
    pub manifest: Manifest,
    /// For each layer, by number: what a later snapshot needs to use it again.
    pub known: Vec<KnownLayer>,
    /// How many layers were not written, because an earlier snapshot has them.
    pub linked: usize,
    /// Bytes of layers that were looked at to be written.
    pub read_bytes: u64,
    /// For each layer, by number: how many of those were left out because they are free. None: the
    /// layer was not written.
    pub free_bytes: Vec<Option<u64>>,
}

impl Created {
    /// How many bytes were left out of all layers that were written.
    #[must_use]
    pub fn all_free_bytes(&self) -> u64 {
        self.free_bytes.iter().flatten().sum()
    }
}

/// Makes a snapshot of a generation at `place`, which does not exist yet and whose parent directory
/// does. `state` and `layers` are what a vmm gave: files that do not change any more, and layers
/// that are complete, so that a hole is zeros. What is `free`, ascending ranges of memory that do
/// not overlap, has no content that matters: it becomes holes in the layers that are written.
///
/// `reuse` is asked for each layer, by its number, whether an earlier snapshot has it. If it still
/// has, and is on the same file system, its file becomes a file of this snapshot, too (a hard
/// link). Otherwise the layer is written. The caller answers for it that what is free in the
/// earlier snapshot has no content that matters in this one either.
///
/// It takes as long as the disk. When it returns, all is on the disk.
///
/// # Errors
/// Something is not as it should be, the disk is full, or the caller has cancelled it. In each case
/// nothing is at `place` that was not there before, and nothing is left beside it.
pub fn create(
    place: &Path,
    description: &Description,
    state: &File,
    (layers, free): (&[&File], &[Range<u64>]),
    reuse: &mut dyn FnMut(usize) -> Option<KnownLayer>,
    watch: Watch<'_>,
) -> Result<Created, CreateError> {
    description.check()?;
    if !(1..=LAYERS_MAX).contains(&layers.len()) {
        return Err(CreateError::Layers(layers.len()));
    }
    let (parent_path, name) = names::split(place).ok_or_else(|| CreateError::Place(place.to_owned()))?;
    let place = parent_path.join(&name);
    if names::is_unfinished(&name) {
        return Err(CreateError::Reserved(place));
    }
    let parent = Folder::open(&parent_path).map_err(FileError::at("open", &parent_path))?;
    // Before anything is written. What appears there later is not replaced either.
    if parent.kind_of(&name).map_err(FileError::at("look at", &place))?.is_some() {
        return Err(CreateError::Exists(place));
    }
    let state = read_state(state)?;
    sweep(&parent);

    let to = Unfinished::make(&parent, &parent_path)?;
    write_file(&to, names::STATE, &state)?;
    let all = save_layers(&to, (description.memory_bytes(), free), layers, reuse, watch)?;
    let state = StateRef { bytes: state.len() as u64, digest: blake3::hash(&state) };
    let Saved { layers, linked, read_bytes, free_bytes } = all;
    let manifest = Manifest { description: description.clone(), state, layers, optional: Vec::new() };
    write_file(&to, names::MANIFEST, &manifest.encode()?)?;
    let known = manifest.layers.iter().map(|layer| known(&to, &place, layer)).collect::<Result<_, _>>()?;
    to.sync()?;
    // Who left while the disk was busy is left no snapshot.
    if watch(Progress { done_bytes: read_bytes, total_bytes: read_bytes }).is_break() {
        return Err(CreateError::Cancelled);
    }
    to.finish(&name).map_err(|error| match error.source.kind() {
        io::ErrorKind::AlreadyExists => CreateError::Exists(place.clone()),
        _ => error.into(),
    })?;
    Ok(Created { place, manifest, known, linked, read_bytes, free_bytes })
}

/// The layers of the new snapshot.
struct Saved {
    layers: Vec<Arc<Layer>>,
    linked: usize,
    read_bytes: u64,
    free_bytes: Vec<Option<u64>>,
}

fn save_layers(
    to: &Unfinished<'_>,
    (bytes, free): (u64, &[Range<u64>]),
    layers: &[&File],
    reuse: &mut dyn FnMut(usize) -> Option<KnownLayer>,
    watch: Watch<'_>,
) -> Result<Saved, CreateError> {
    let mut earlier = Earlier::default();
    let mut saved = Vec::new();
    for number in 0..layers.len() {
        let known = reuse(number);
        let linked = known.map(|known| earlier.link(&known, to, bytes)).transpose()?;
        saved.push(linked.flatten());
    }
    let linked = saved.iter().flatten().count();
    // How much there is to write is known before the first of it is written.
    let source = |(number, saved): (usize, &Option<_>)| {
        Source::new(number, layers[number], (bytes, free), saved.is_none())
    };
    let sources = saved.iter().enumerate().map(source).collect::<Result<Vec<_>, _>>()?;
    let meter = Meter::new(sources.iter().map(Source::data_bytes).sum(), watch);
    let write = |(saved, source): (Option<Arc<Layer>>, &Source<'_>)| match saved {
        Some(layer) => Ok((layer, None)),
        None => write_layer(to, source, &meter).map(|(layer, free_bytes)| (layer, Some(free_bytes))),
    };
    let written = saved.into_iter().zip(&sources).map(write).collect::<Result<Vec<_>, _>>()?;
    let (layers, free_bytes) = written.into_iter().unzip();
    Ok(Saved { layers, linked, read_bytes: meter.done_bytes(), free_bytes })
}

fn read_state(file: &File) -> Result<Vec<u8>, CreateError> {
    let failed = |source| CreateError::Read { what: "the state".to_owned(), source };
    let bytes = file.metadata().map_err(failed)?.len();
    if !(1..=STATE_MAX_BYTES).contains(&bytes) {
        return Err(CreateError::StateSize { found: bytes });
    }
    let mut state = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut state, 0).map_err(failed)?;
    Ok(state)
}

fn known(to: &Unfinished<'_>, place: &Path, layer: &Layer) -> Result<KnownLayer, FileError> {
    let name = names::layer(layer.id());
    let path = to.path().join(&name);
    let file = to.folder().file(&name).map_err(FileError::at("open", &path))?;
    Ok(KnownLayer { place: place.to_owned(), id: layer.id(), stamp: Stamp::of(&file, &path)? })
}
