//! The pages that are free in a generation, as a vmm has found them in it.
//!
//! A vmm that lies here loses pages of its own VM's snapshot, which it could write to as well. The
//! list must only be one: the ranges in order, in RAM, and no more than there may be.

use super::{
    control_client::{self, ControlError},
    generation::{self, GenerationError},
};
use crate::store::VmDir;
use patina_control::{
    PAGE_BYTES,
    messages::{FREE_PAGES_MAX_BYTES, Open},
};
use std::{ops::Range, os::fd::OwnedFd, time::Duration};

const WHAT: &str = "free pages";
/// Two numbers.
const RANGE_BYTES: usize = 16;

/// Why it is not known which pages are free.
#[derive(Debug, thiserror::Error)]
pub enum FreePagesError {
    /// The vmm does not say it.
    #[error("ask for the free pages")]
    Ask(#[from] ControlError),
    /// The file is no list.
    #[error("read the free pages")]
    File(#[from] GenerationError),
    /// What the list says cannot be.
    #[error("read the free pages: range {number} of {memory_mib} MiB is wrong: {start:#x}, {bytes:#x} bytes")]
    Range {
        /// Which one, from 0 on.
        number: usize,
        /// Where it begins.
        start: u64,
        /// How long it is.
        bytes: u64,
        /// The RAM's size, MiB.
        memory_mib: u32,
    },
}

/// Asks a VM for the pages that are free in the generation of its last freeze, whose number this
/// is. The ranges are of bytes of RAM, ascending, and do not overlap.
///
/// # Errors
/// It is not known which pages are free.
pub async fn ask(
    dir: &VmDir,
    frozen: u64,
    memory_mib: u32,
    patience: Duration,
) -> Result<Vec<Range<u64>>, FreePagesError> {
    let sent = control_client::file(dir, &Open::FreePages { frozen }, patience).await?;
    read(sent, memory_mib)
}

fn read(sent: OwnedFd, memory_mib: u32) -> Result<Vec<Range<u64>>, FreePagesError> {
    let bytes = generation::read_list(sent, WHAT, FREE_PAGES_MAX_BYTES)?;
    let memory_bytes = u64::from(memory_mib) << 20;
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(bytes.len() / RANGE_BYTES);
    let (pairs, _) = bytes.as_chunks::<RANGE_BYTES>();
    for (number, pair) in pairs.iter().enumerate() {
        let [start, bytes] = [0, 8].map(|at| {
            let word = pair.get(at..at + 8).and_then(|word| word.try_into().ok());
            u64::from_le_bytes(word.unwrap_or_default())
        });
        let least = ranges.last().map_or(0, |last| last.end);
        let end = start.checked_add(bytes).filter(|end| *end <= memory_bytes);
        let is_pages = start % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0 && bytes > 0;
        match end {
            Some(end) if start >= least && is_pages => ranges.push(start..end),
            _ => return Err(FreePagesError::Range { number, start, bytes, memory_mib }),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::memfd;

    const MIB: u64 = 1 << 20;

    fn read_numbers(numbers: &[u64]) -> Result<Vec<Range<u64>>, FreePagesError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        read(memfd::sealed("test", &bytes).unwrap().into(), 64)
    }

    #[test]
    fn ranges_in_order_and_in_ram_are_read() {
        assert_eq!(read_numbers(&[]).unwrap(), []);
        let read = read_numbers(&[0, 4096, 4096, 8192, 63 * MIB, MIB]).unwrap();
        assert_eq!(read, [0..4096, 4096..12288, 63 * MIB..64 * MIB]);
    }

    #[test]
    fn what_is_no_list_of_ranges_in_ram_is_refused() {
        for numbers in [
            &[4096, 0][..],
            &[1, 4096],
            &[0, 4095],
            &[63 * MIB, MIB + 4096],
            &[u64::MAX - 4095, 4096],
            &[4096, u64::MAX - 4095],
            &[4096, 8192, 8192, 4096],
            &[8192, 4096, 0, 4096],
        ] {
            let error = read_numbers(numbers).unwrap_err();
            assert!(matches!(error, FreePagesError::Range { .. }), "{numbers:?}: {error}");
        }
        let unsealed = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(read(unsealed, 64), Err(FreePagesError::File(GenerationError::Unsealed { .. }))));
        let long = vec![0; usize::try_from(FREE_PAGES_MAX_BYTES).unwrap() + RANGE_BYTES];
        let error = read(memfd::sealed("test", &long).unwrap().into(), 64).unwrap_err();
        assert!(matches!(error, FreePagesError::File(GenerationError::Size { .. })), "{error}");
    }
}
