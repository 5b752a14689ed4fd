//! Runs as LZ4 blocks: fewer bytes for slow links.

use patina_control::pager::RUN_BYTES;
use std::io;

/// The longest block of a run.
pub const BLOCK_MAX_BYTES: usize = lz4_flex::block::get_maximum_output_size(RUN_BYTES as usize);

/// Compresses a run into `block`, which has room for [`BLOCK_MAX_BYTES`]. How long it is. None: it
/// is not much shorter than the run.
pub fn compress(run: &[u8], block: &mut [u8]) -> Option<usize> {
    let length = lz4_flex::block::compress_into(run, block).ok()?;
    (length < run.len() - run.len() / 8).then_some(length)
}

/// Decompresses a block into `run`. How long it is.
///
/// # Errors
/// InvalidData: it is no block, or is longer than `run`.
pub fn decompress(block: &[u8], run: &mut [u8]) -> io::Result<usize> {
    let length = lz4_flex::block::decompress_into(block, run);
    length.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: usize = RUN_BYTES as usize;

    /// Bytes that repeat after a while, as those of programs do.
    fn run(length: usize, period: usize) -> Vec<u8> {
        (0..length).map(|at| ((at % period) * 31 % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(length in 1..=RUN, period in 1..5000_usize) {
            let (run, mut block) = (run(length, period), vec![0; BLOCK_MAX_BYTES]);
            if let Some(short) = compress(&run, &mut block) {
                prop_assert!(short < length);
                let mut back = vec![0; length];
                prop_assert_eq!(decompress(&block[..short], &mut back).unwrap(), length);
                prop_assert_eq!(back, run);
            }
        }

        #[test]
        fn no_block_is_longer_than_the_run_that_is_wanted(block: Vec<u8>, length in 0..100_usize) {
            let mut back = vec![0; length];
            if let Ok(length_of_block) = decompress(&block, &mut back) {
                prop_assert!(length_of_block <= length);
            }
        }
    }

    #[test]
    fn a_run_without_order_is_sent_as_it_is() {
        let mut seed = 1_u32;
        let noise: Vec<u8> = (0..RUN)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        assert_eq!(compress(&noise, &mut vec![0; BLOCK_MAX_BYTES]), None);
        let short = compress(&run(RUN, 300), &mut vec![0; BLOCK_MAX_BYTES]);
        assert!(short.is_some_and(|short| short < RUN / 20));
    }
}
