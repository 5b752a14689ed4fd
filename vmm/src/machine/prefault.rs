//! Prefaults pages: copies them in bulk, which costs much less than one page fault for each page.
//!
//! - In a clone, these are the pages that an earlier clone wrote before it was ready, while only
//!   the agent ran.
//! - In a VM that was frozen for the first time, these are the pages that it had written since it
//!   was ready. It is likely to write them again, and each write would copy a page. Pages that only
//!   its boot wrote are not prefaulted.

use super::Machine;
use super::generation::Ram;
use crate::memory::Memory;
use crate::memory::layers::parts;
use crate::note::note;
use crate::ranges::{bytes_of, join};
use crate::sys::pagemap::Pages;
use crate::sys::view;
use patina_control::PAGE_BYTES;
use patina_control::messages::PREFAULT_LIST_MAX_BYTES;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Most RAM that is prefaulted for a VM that was frozen, bytes.
const PARENT_MAX_BYTES: u64 = 128 << 20;
/// The most that one call copies. The VM's own faults wait for one call at most.
const CHUNK_BYTES: u64 = 256 << 10;
/// Most ranges in a prefault list.
const RANGES_MAX: usize = 4096;
const _: () = assert!(RANGES_MAX as u64 * 16 <= PREFAULT_LIST_MAX_BYTES);
/// Most RAM in a prefault list, bytes. A clone writes about a third of that before it is ready. A
/// longer list is not likely to hold for other clones.
const PREFAULT_MAX_BYTES: u64 = 4 << 20;

/// The page tables could not be read.
#[derive(Debug, thiserror::Error)]
#[error("find the pages that the VM has written")]
pub struct PrefaultError(#[from] rustix::io::Errno);

impl Machine {
    /// Prefaults the pages that clones write before they are ready.
    pub fn prefault(&mut self) {
        copy(self.vm.memory(), std::mem::take(&mut self.to_prefault));
    }

    /// Called when the agent is ready. A clone without a prefault list records the pages that it
    /// has written so far. A VM that booted starts to track its writes.
    ///
    /// # Errors
    /// The page tables cannot be read.
    pub fn note_ready(&mut self) -> Result<(), PrefaultError> {
        match (&self.ram, &self.userfault) {
            (Ram::View(_), _) if self.wants_prefault_list => {
                self.prefault_list = list_of(self.private_pages(Pages::All)?);
                self.wants_prefault_list = false;
            }
            (Ram::Shared(_), Some(userfault)) if !self.tracks_shared => {
                for region in self.vm.memory().iter() {
                    userfault.track(region)?;
                    self.pagemap.written(region)?;
                }
                self.tracks_shared = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The pages that a VM has written since it was ready. Called before its first freeze. Ends the
    /// tracking.
    ///
    /// # Errors
    /// The page tables cannot be read.
    pub(super) fn written_since_ready(&mut self) -> Result<Vec<Range<u64>>, PrefaultError> {
        let Some(userfault) = self.userfault.as_ref().filter(|_| self.tracks_shared) else {
            return Ok(Vec::new());
        };
        let mut written = self.in_ram(|region| {
            let written = self.pagemap.written(region)?;
            userfault.forget(region, 0, region.len()).map(|()| written)
        })?;
        self.tracks_shared = false;
        let mut room = PARENT_MAX_BYTES;
        for run in &mut written {
            run.end = run.end.min(run.start + room);
            room -= run.end - run.start;
        }
        Ok(written)
    }
}

/// The prefault list for these pages. Empty if they are too many for a list.
fn list_of(pages: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let list = join(pages, RANGES_MAX);
    if bytes_of(&list) <= PREFAULT_MAX_BYTES { list } else { Vec::new() }
}

/// Reads a prefault list for RAM of `ram_bytes`. The list is advice: ranges outside RAM are left
/// out, and a list that is too long is ignored.
pub(super) fn from_list(list: &[u8], ram_bytes: u64) -> Vec<Range<u64>> {
    let mut words =
        list.chunks_exact(8).map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    let mut ranges = Vec::new();
    let mut room = PREFAULT_MAX_BYTES;
    while let (Some(start), Some(bytes)) = (words.next(), words.next()) {
        let Some(rest) = room.checked_sub(bytes) else { return Vec::new() };
        let end = start.saturating_add(bytes);
        if start % PAGE_BYTES == 0 && end % PAGE_BYTES == 0 && start < end && end <= ram_bytes {
            room = rest;
            ranges.push(start..end);
        }
    }
    ranges
}

/// Prefaults ranges of RAM on a thread of their own, concurrently with the guest.
pub(super) fn prefault_beside(memory: &Memory, ranges: Vec<Range<u64>>) -> Option<JoinHandle<()>> {
    if ranges.is_empty() {
        return None;
    }
    let memory = Arc::clone(memory);
    let thread = std::thread::Builder::new().name("prefault".into());
    thread
        .spawn(move || copy(&memory, ranges))
        .inspect_err(|error| note(&format!("prefault pages: start a thread: {error}")))
        .ok()
}

fn copy(memory: &Memory, ranges: Vec<Range<u64>>) {
    for range in ranges {
        for start in range.clone().step_by(CHUNK_BYTES as usize) {
            for part in parts(memory, start..range.end.min(start + CHUNK_BYTES)) {
                if let Err(error) = view::prefault(part.region, part.at, part.bytes) {
                    // The pages are copied when the guest writes them.
                    return note(&format!("prefault pages: {error}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 64 << 20;

    fn words(ranges: &[(u64, u64)]) -> Vec<u8> {
        ranges.iter().flat_map(|(start, bytes)| [*start, *bytes]).flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn a_valid_list_reads_back() {
        let pages: Vec<_> = (0..100).map(|n| n * 0x3000..n * 0x3000 + 0x1000).collect();
        let list = list_of(pages.clone());
        assert_eq!(list, pages);
        let pairs: Vec<_> = list.iter().map(|range| (range.start, range.end - range.start)).collect();
        assert_eq!(from_list(&words(&pairs), RAM), pages);
    }

    #[test]
    fn a_list_that_is_too_long_is_ignored() {
        let most = |bytes| std::iter::once(0..bytes).collect();
        assert_eq!(list_of(most(PREFAULT_MAX_BYTES)).len(), 1);
        assert_eq!(list_of(most(PREFAULT_MAX_BYTES + 4096)), []);
        assert_eq!(from_list(&words(&[(0, PREFAULT_MAX_BYTES)]), RAM).len(), 1);
        assert_eq!(from_list(&words(&[(0, PREFAULT_MAX_BYTES), (PREFAULT_MAX_BYTES, 4096)]), RAM), []);
    }

    #[test]
    fn invalid_ranges_are_left_out() {
        let bad = [(1, 4096), (4096, 1), (RAM, 4096), (RAM - 4096, 8192), (0, 0), (u64::MAX - 4095, 4096)];
        let mut list = words(&bad);
        list.extend(words(&[(8192, 4096)]));
        list.push(7);
        assert_eq!(from_list(&list, RAM), std::iter::once(8192..12_288).collect::<Vec<_>>());
    }
}
