//! Writes the files of a snapshot that is being made.

use super::{
    copy::{buffer, data_runs},
    digest::layer_of,
    error::{CreateError, FileError},
    names, parallel,
    progress::Meter,
    steps::change,
    unfinished::Unfinished,
};
use crate::manifest::{Layer, RUN_BYTES};
use blake3::Hash;
use patina_control::sparse::{is_zero, write_pages};
use rustix::{
    fs::{RenameFlags, renameat_with},
    io::Errno,
};
use std::{fs::File, io::Write as _, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

/// A layer that is to be written.
pub(super) struct Source<'a> {
    file: &'a File,
    bytes: u64,
    /// What is not a hole.
    chunks: Vec<Range<u64>>,
    /// What is left out.
    free: &'a [Range<u64>],
    /// `layer 0`, for errors.
    what: String,
}

impl<'a> Source<'a> {
    /// Layer `number`, of `expected` bytes, without what is `free`. What is in it is looked up only
    /// if it `is_needed`.
    pub(super) fn new(
        number: usize,
        file: &'a File,
        (expected, free): (u64, &'a [Range<u64>]),
        is_needed: bool,
    ) -> Result<Self, CreateError> {
        let what = format!("layer {number}");
        let read = |source| CreateError::Read { what: what.clone(), source };
        let found = file.metadata().map_err(read)?.len();
        if found != expected {
            return Err(CreateError::LayerSize { layer: number, found, expected });
        }
        let chunks = if is_needed { data_runs(file, expected).map_err(read)? } else { Vec::new() };
        Ok(Self { file, bytes: expected, chunks, free, what })
    }

    /// Bytes that are to be read.
    pub(super) fn data_bytes(&self) -> u64 {
        self.chunks.iter().map(|runs| (runs.end - runs.start) * RUN_BYTES).sum()
    }
}

/// Writes a file with this content.
pub(super) fn write_file(to: &Unfinished<'_>, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = to.path().join(name);
    let mut file = change("make", &path, || to.folder().make_file(name))?;
    change("write", &path, || file.write_all(bytes))?;
    change("sync", &path, || file.sync_all())
}

/// What was written of a layer.
type Written = (Vec<(u64, Hash)>, u64);

/// Writes a layer without its zeros and without what is free, under the name that its content gives
/// it. Returns how many bytes were left out as free, too.
pub(super) fn write_layer(
    to: &Unfinished<'_>,
    source: &Source<'_>,
    meter: &Meter<'_>,
) -> Result<(Arc<Layer>, u64), CreateError> {
    let path = to.path().join(names::LAYER_UNFINISHED);
    let file = change("make", &path, || to.folder().make_file(names::LAYER_UNFINISHED))?;
    change("write", &path, || file.set_len(source.bytes))?;
    let begin = || (buffer(), Written::default());
    let written = parallel::each(&source.chunks, begin, |(buffer, (present, free_bytes)), runs| {
        for run in runs.clone() {
            let start = run * RUN_BYTES;
            let free = free_within(source.free, start..start + RUN_BYTES);
            let left_out: u64 = free.clone().map(|range| range.end - range.start).sum();
            *free_bytes += left_out;
            if left_out == RUN_BYTES {
                continue;
            }
            let read = source.file.read_exact_at(buffer, start);
            read.map_err(|error| CreateError::Read { what: source.what.clone(), source: error })?;
            for range in free {
                clear(buffer, range.start - start..range.end - start);
            }
            if !is_zero(buffer) {
                present.push((run, blake3::hash(buffer)));
                change("write", &path, || write_pages(&file, start, buffer))?;
            }
        }
        meter.add((runs.end - runs.start) * RUN_BYTES).map_err(|_| CreateError::Cancelled)
    })?;
    change("sync", &path, || file.sync_all())?;

    let free_bytes = written.iter().map(|(_, (_, free_bytes))| free_bytes).sum();
    let layer = layer_of(source.bytes, written.into_iter().flat_map(|(_, (present, _))| present))?;
    let (folder, name) = (to.folder(), names::layer(layer.id()));
    let rename = || {
        match renameat_with(folder, names::LAYER_UNFINISHED, folder, &name, RenameFlags::NOREPLACE) {
            // Another layer has the same content.
            Err(Errno::EXIST) => folder.remove_file(names::LAYER_UNFINISHED),
            result => result,
        }
    };
    change("rename", &path, rename)?;
    Ok((layer, free_bytes))
}

/// The parts of ascending ranges that lie in a run.
fn free_within(free: &[Range<u64>], run: Range<u64>) -> impl Iterator<Item = Range<u64>> + Clone {
    let first = free.partition_point(|range| range.end <= run.start);
    let inside = free.get(first..).unwrap_or_default().iter();
    let inside = inside.take_while(move |range| range.start < run.end);
    inside.map(move |range| range.start.max(run.start)..range.end.min(run.end))
}

fn clear(buffer: &mut [u8], range: Range<u64>) {
    let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(bytes) = buffer.get_mut(at(range.start)..at(range.end)) {
        bytes.fill(0);
    }
}
