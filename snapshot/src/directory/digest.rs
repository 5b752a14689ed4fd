//! Describes a layer that is in memory, without a copy of it.

use super::{
    copy::{buffer, data_runs},
    parallel,
};
use crate::manifest::{Layer, ManifestError, RUN_BYTES, Runs};
use blake3::Hash;
use patina_control::sparse::is_zero;
use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

/// Why a layer cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// It cannot be read.
    #[error("read the layer")]
    Read(#[from] io::Error),
    /// It is longer than a layer can be.
    #[error(transparent)]
    Layer(#[from] ManifestError),
}

/// Reads a layer of `bytes`, a whole number of runs, and makes the digests of its runs. A run of
/// zeros is none. Reads on several threads.
///
/// # Errors
/// It cannot be read, or is too long.
pub fn digest_layer(file: &File, bytes: u64) -> Result<Arc<Layer>, DigestError> {
    let chunks = data_runs(file, bytes)?;
    let begin = || (buffer(), Vec::<(u64, Hash)>::new());
    let found = parallel::each(&chunks, begin, |(buffer, present), runs| {
        for run in runs.clone() {
            file.read_exact_at(buffer, run * RUN_BYTES)?;
            if !is_zero(buffer) {
                present.push((run, blake3::hash(buffer)));
            }
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(layer_of(bytes, found.into_iter().flat_map(|(_, present)| present))?)
}

/// The layer of `bytes` with these runs, which come in any order.
///
/// # Errors
/// It is too long, or has a run twice.
pub(super) fn layer_of(
    bytes: u64,
    present: impl Iterator<Item = (u64, Hash)>,
) -> Result<Arc<Layer>, ManifestError> {
    let mut present: Vec<_> = present.collect();
    present.sort_unstable_by_key(|(run, _)| *run);
    Ok(Arc::new(Layer::new(Runs::new(bytes / RUN_BYTES, &present)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_in_memory_is_described_as_its_file_would_be() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(40 * RUN_BYTES).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"last", 40 * RUN_BYTES - 4).unwrap();
        // Zeros that were written are none, either.
        file.write_all_at(&[0; 4096], 7 * RUN_BYTES).unwrap();
        let layer = digest_layer(&file, 40 * RUN_BYTES).unwrap();
        let runs: Vec<u64> = layer.runs().iter().map(|(run, _)| run).collect();
        assert_eq!((layer.runs().count(), runs), (40, vec![0, 39]));
        let mut content = buffer();
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(layer.runs().digest(0), Some(&blake3::hash(&content)));
        file.set_len(39 * RUN_BYTES).unwrap();
        assert!(digest_layer(&file, 40 * RUN_BYTES).is_ok(), "what is beyond its end is zeros");
    }
}
