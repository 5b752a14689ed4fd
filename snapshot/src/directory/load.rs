//! Copies a layer into memory, whole.

use super::{
    copy::{CHUNK_RUNS, buffer},
    error::LoadError,
    layer::{LayerFile, Run},
    parallel,
    progress::{Meter, Watch},
};
use crate::manifest::RUN_BYTES;
use patina_control::sparse::write_pages;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::fs::File;

/// Copies all runs of a layer into a sparse file in memory, each checked before it is written.
/// Pages of zeros stay holes. The file is as long as the layer, and has no content yet.
///
/// # Errors
/// A run is not what it should be, there is no memory, or the caller has cancelled it. The file has
/// a part of the layer then.
pub fn load_layer(layer: &LayerFile, into: &File, watch: Watch<'_>) -> Result<(), LoadError> {
    let id = layer.id();
    let write = |source| LoadError::Write { layer: id, source };
    let found = into.metadata().map_err(write)?.len();
    if found != layer.bytes() {
        return Err(LoadError::Size { layer: id, found, expected: layer.bytes() });
    }
    match seek(into, SeekFrom::Data(0)) {
        Err(Errno::NXIO) => {}
        Err(error) => return Err(write(error.into())),
        Ok(_) => return Err(LoadError::NotEmpty { layer: id }),
    }
    let present: Vec<u64> = layer.layer().runs().iter().map(|(run, _)| run).collect();
    let meter = Meter::new(present.len() as u64 * RUN_BYTES, watch);
    let chunk_runs = usize::try_from(CHUNK_RUNS).unwrap_or(1);
    let chunks: Vec<&[u64]> = present.chunks(chunk_runs).collect();
    parallel::each(&chunks, buffer, |buffer, runs| {
        for run in *runs {
            if layer.read_run(*run, buffer)? == Run::Data {
                write_pages(into, run * RUN_BYTES, buffer).map_err(write)?;
            }
        }
        meter.add(runs.len() as u64 * RUN_BYTES).map_err(|_| LoadError::Cancelled)
    })?;
    Ok(())
}
