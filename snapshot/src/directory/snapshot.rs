//! A snapshot that is opened for reading.

use super::{
    copy::{buffer, data_runs},
    error::{FileError, OpenError, RunError, VerifyError},
    folder::Folder,
    layer::{LayerFile, Stamp},
    names, parallel,
    progress::{Meter, Watch},
};
use crate::manifest::{LayerId, MANIFEST_MAX_BYTES, Manifest, ManifestError, RUN_BYTES};
use patina_control::best_effort;
use rustix::{
    fs::{FileType, FlockOperation},
    io::Errno,
};
use std::{
    fs::File,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// A snapshot in a directory. While it is open, [`super::remove`] refuses it.
#[derive(Debug)]
pub struct Snapshot {
    place: PathBuf,
    folder: Folder,
    manifest: Manifest,
    state: File,
    layers: Vec<LayerFile>,
}

/// A layer that an earlier snapshot has. A later snapshot with the same layer need not write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownLayer {
    pub(super) place: PathBuf,
    pub(super) id: LayerId,
    pub(super) stamp: Stamp,
}

/// What [`Snapshot::verify`] has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Runs whose digest was checked.
    pub runs: u64,
    /// Bytes of state and runs.
    pub bytes: u64,
}

/// The space that a snapshot takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of files that no other snapshot has: what [`super::remove`] frees.
    pub own_bytes: u64,
    /// Bytes of files that it shares with others.
    pub shared_bytes: u64,
}

impl Snapshot {
    /// Opens a snapshot. Manifest, names, kinds and sizes are checked; no content but the
    /// manifest's.
    ///
    /// # Errors
    /// It is not a snapshot that this release can read, or it is being made or removed.
    pub fn open(place: &Path) -> Result<Self, OpenError> {
        let here = || place.to_owned();
        let (parent_path, name) = names::split(place).ok_or_else(|| OpenError::NotADirectory(here()))?;
        if names::is_unfinished(&name) {
            return Err(OpenError::Unfinished(here()));
        }
        let parent = Folder::open(&parent_path).map_err(|error| match error {
            Errno::NOENT => OpenError::Missing(here()),
            error => FileError::at("open", &parent_path)(error).into(),
        })?;
        match parent.kind_of(&name).map_err(FileError::at("look at", place))? {
            None => return Err(OpenError::Missing(here())),
            Some(FileType::Directory) => {}
            Some(FileType::Symlink) => return Err(OpenError::Link(here())),
            Some(_) => return Err(OpenError::NotADirectory(here())),
        }
        let folder = parent.folder(&name).map_err(FileError::at("open", place))?;
        let lock = folder.lock(FlockOperation::NonBlockingLockShared);
        if !lock.map_err(FileError::at("lock", place))? {
            return Err(OpenError::Busy(here()));
        }
        let manifest = read_manifest(&folder, place)?;
        let state = open_file(&folder, place, names::STATE, Some(manifest.state.bytes))?;
        let open_layer = |layer: LayerId| {
            let name = names::layer(layer);
            open_file(&folder, place, &name, Some(manifest.description.memory_bytes()))
        };
        let layers =
            manifest.layers.iter().map(|layer| LayerFile::new(open_layer(layer.id())?, layer.clone()));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { place: parent_path.join(name), folder, manifest, state, layers })
    }

    /// Its directory: an absolute path.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads the state and checks it.
    ///
    /// # Errors
    /// It cannot be read, or its content is not what it was.
    pub fn state(&self) -> Result<Vec<u8>, OpenError> {
        let path = self.place.join(names::STATE);
        let mut bytes = vec![0; usize::try_from(self.manifest.state.bytes).unwrap_or(usize::MAX)];
        self.state.read_exact_at(&mut bytes, 0).map_err(FileError::at("read", &path))?;
        if blake3::hash(&bytes) != self.manifest.state.digest {
            return Err(OpenError::State(path));
        }
        Ok(bytes)
    }

    /// A layer by its number.
    #[must_use]
    pub fn layer(&self, number: usize) -> Option<&LayerFile> {
        self.layers.get(number)
    }

    /// The layers, by number.
    #[must_use]
    pub fn layers(&self) -> &[LayerFile] {
        &self.layers
    }

    /// The layers, by number, without the rest. The snapshot is not in use by them.
    #[must_use]
    pub fn into_layers(mut self) -> Vec<LayerFile> {
        std::mem::take(&mut self.layers)
    }

    /// What [`super::create()`] needs to use a layer of this snapshot again.
    ///
    /// # Errors
    /// The layer's file cannot be looked at.
    pub fn known_layer(&self, number: usize) -> Result<Option<KnownLayer>, OpenError> {
        let known = self.layers.get(number).map(|layer| {
            let stamp = layer.stamp()?;
            Ok::<_, FileError>(KnownLayer { place: self.place.clone(), id: layer.id(), stamp })
        });
        Ok(known.transpose()?)
    }

    /// Reads all of it, and compares it with the digests. What it has not is compared, too: a
    /// layer's file has zeros where the manifest has no run.
    ///
    /// # Errors
    /// The first fault that is found; or the caller has cancelled it.
    pub fn verify(&self, watch: Watch<'_>) -> Result<Report, VerifyError> {
        let state_bytes = self.state()?.len() as u64;
        let runs = self.layers.iter().map(|layer| layer.layer().runs().present()).sum();
        let mut chunks = Vec::new();
        for layer in &self.layers {
            chunks.extend(to_check(layer)?.into_iter().map(|runs| (layer, runs)));
        }
        let total_bytes = chunks.iter().map(|(_, runs)| (runs.end - runs.start) * RUN_BYTES).sum();
        let meter = Meter::new(total_bytes, watch);
        parallel::each(&chunks, buffer, |buffer, (layer, runs)| {
            for run in runs.clone() {
                if layer.is_present(run) {
                    layer.read_run(run, buffer)?;
                } else if !layer.is_zero(run, buffer)? {
                    return Err(VerifyError::Stray { layer: layer.id(), run });
                }
            }
            meter.add((runs.end - runs.start) * RUN_BYTES).map_err(|_| VerifyError::Cancelled)
        })?;
        Ok(Report { runs, bytes: state_bytes + runs * RUN_BYTES })
    }

    /// The space that it takes.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn usage(&self) -> Result<Usage, OpenError> {
        let mut usage = Usage::default();
        let mut names: Vec<_> = self.layers.iter().map(|layer| names::layer(layer.id())).collect();
        names.extend(self.layers.iter().map(|layer| names::demand(layer.id())));
        names.extend([names::MANIFEST.to_owned(), names::STATE.to_owned()]);
        // Layers of the same content are one file.
        names.sort();
        names.dedup();
        for name in names {
            let stat = match self.folder.stat_of(name.as_str()) {
                // Of most layers nothing is kept that VMs demanded.
                Err(Errno::NOENT) if names::is_demand(&name) => continue,
                stat => stat,
            };
            let stat = stat.map_err(FileError::at("look at", &self.place.join(&name)))?;
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if stat.st_nlink > 1 { usage.shared_bytes += bytes } else { usage.own_bytes += bytes }
        }
        Ok(usage)
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        best_effort(self.folder.unlock(), "the lock ends with its last descriptor anyway");
    }
}

/// The runs that are present, or have content although they should not.
fn to_check(layer: &LayerFile) -> Result<Vec<Range<u64>>, RunError> {
    let failed = |source| RunError::Read { layer: layer.id(), run: 0, source };
    let mut chunks = data_runs(layer.file(), layer.bytes()).map_err(failed)?;
    let is_data = |run: &u64| {
        let at = chunks.partition_point(|chunk| chunk.end <= *run);
        chunks.get(at).is_some_and(|chunk| chunk.contains(run))
    };
    // These were not holes when they were written.
    let lost = layer.layer().runs().iter().map(|(run, _)| run).filter(|run| !is_data(run));
    let lost: Vec<_> = lost.map(|run| run..run + 1).collect();
    chunks.extend(lost);
    Ok(chunks)
}

fn read_manifest(folder: &Folder, place: &Path) -> Result<Manifest, OpenError> {
    let file = open_file(folder, place, names::MANIFEST, None).map_err(|error| match error {
        OpenError::MissingFile(_) => OpenError::NotASnapshot(place.to_owned()),
        error => error,
    })?;
    let path = place.join(names::MANIFEST);
    let wrong = |source| OpenError::Manifest { path: path.clone(), source };
    let found = file.metadata().map_err(FileError::at("look at", &path))?.size();
    if found > MANIFEST_MAX_BYTES {
        return Err(wrong(ManifestError::TooLong { found }));
    }
    let mut bytes = vec![0; usize::try_from(found).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0).map_err(FileError::at("read", &path))?;
    Manifest::decode(&bytes).map_err(wrong)
}

/// Opens a file of a snapshot: a regular file, of this length if one is given.
pub(super) fn open_file(
    folder: &Folder,
    place: &Path,
    name: &str,
    expected: Option<u64>,
) -> Result<File, OpenError> {
    let path = place.join(name);
    let file = folder.file(name).map_err(|error| match error {
        Errno::NOENT => OpenError::MissingFile(path.clone()),
        Errno::LOOP => OpenError::Link(path.clone()),
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => OpenError::NotAFile(path.clone()),
        error => FileError::at("open", &path)(error).into(),
    })?;
    let stat = file.metadata().map_err(FileError::at("look at", &path))?;
    match expected {
        _ if !stat.is_file() => Err(OpenError::NotAFile(path)),
        Some(expected) if stat.len() != expected => {
            Err(OpenError::Size { path, found: stat.len(), expected })
        }
        _ => Ok(file),
    }
}
