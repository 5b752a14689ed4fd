//! Copies runs without their zeros.

use crate::manifest::RUN_BYTES;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{fs::File, io, ops::Range};

/// How many runs a thread takes at a time: 2 MiB.
pub(super) const CHUNK_RUNS: u64 = 32;

/// A buffer for a run.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; usize::try_from(RUN_BYTES).unwrap_or(usize::MAX)]
}

/// The runs of a file of `bytes` that are not holes, ascending, at most [`CHUNK_RUNS`] in each
/// range.
pub(super) fn data_runs(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // There is no more.
            Err(Errno::NXIO) => break,
            // A file system without holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(bytes),
            Err(Errno::INVAL) => bytes,
            // It was cut meanwhile.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let (mut first, last) = (start / RUN_BYTES, end.div_ceil(RUN_BYTES));
        while first < last {
            let next = last.min(first + CHUNK_RUNS);
            chunks.push(first..next);
            first = next;
        }
        // From the next run on: this one is taken whole.
        at = last * RUN_BYTES;
    }
    Ok(chunks)
}
