//! Copies pages ahead: in bulk that is many times cheaper than one by one, as they are written.
//!
//! - A clone begins with the pages that earlier clones wrote before they were ready.
//! - A VM that is frozen for the first time goes on with those that it has written since it was ready: it is likely to
//!   write them again, and every one would have to be copied then. What only its boot wrote is left.

use super::build::Machine;
use super::freeze::{FreezeError, Ram};
use crate::memory::Memory;
use crate::memory::layers::parts;
use crate::note::note;
use crate::sys::pagemap::Pages;
use crate::sys::view;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestMemoryBackend;

/// Most RAM that is copied ahead for a VM that was frozen, bytes.
const PARENT_MAX_BYTES: u64 = 128 << 20;
/// So much is copied in one call: the VM's own faults wait for no more than that.
const CHUNK_BYTES: u64 = 256 << 10;
/// Most ranges in a list of touched pages.
pub const TOUCHED_MAX: usize = 4096;

impl Machine {
    /// Copies the pages ahead that clones write before they are ready.
    pub fn copy_ahead(&mut self) {
        copy(self.vm.memory(), std::mem::take(&mut self.ahead));
    }

    /// The agent is ready: notes what a clone has written so far, unless it was told, and from when on a VM that
    /// booted writes what it will write again.
    ///
    /// # Errors
    /// The page tables cannot be read.
    pub fn note_ready(&mut self) -> Result<(), FreezeError> {
        match (&self.ram, &self.tracker) {
            (Ram::View(_), _) if self.wants_touched => {
                let pages = self.private_pages(Pages::All)?;
                self.touched = crate::memory::extents::join(pages, TOUCHED_MAX);
                self.wants_touched = false;
            }
            (Ram::Shared(_), Some(tracker)) if !self.tracks_shared => {
                for region in self.vm.memory().iter() {
                    tracker.track(region).map_err(FreezeError::Pages)?;
                    self.pagemap.written(region).map_err(FreezeError::Pages)?;
                }
                self.tracks_shared = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The pages that a VM has written since it was ready, which is about to be frozen for the first time. It is
    /// tracked no more.
    ///
    /// # Errors
    /// The page tables cannot be read.
    pub(super) fn written_since_ready(&mut self) -> Result<Vec<Range<u64>>, FreezeError> {
        let Some(tracker) = self.tracker.as_ref().filter(|_| self.tracks_shared) else {
            return Ok(Vec::new());
        };
        let mut written = self.in_ram(|region| {
            let written = self.pagemap.written(region)?;
            tracker.forget(region).map(|()| written)
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

/// Copies ranges of RAM ahead on a thread of their own, beside the guest.
pub(super) fn copy_beside(memory: &Memory, ranges: Vec<Range<u64>>) {
    if ranges.is_empty() {
        return;
    }
    let memory = Arc::clone(memory);
    let thread = std::thread::Builder::new().name("ahead".into());
    if let Err(error) = thread.spawn(move || copy(&memory, ranges)) {
        note(&format!("copy pages ahead: start a thread: {error}"));
    }
}

fn copy(memory: &Memory, ranges: Vec<Range<u64>>) {
    for range in ranges {
        for start in range.clone().step_by(CHUNK_BYTES as usize) {
            for part in parts(memory, start..range.end.min(start + CHUNK_BYTES)) {
                if let Err(error) = view::copy_ahead(part.region, part.at, part.bytes) {
                    // They are copied when they are written, then.
                    return note(&format!("copy pages ahead: {error}"));
                }
            }
        }
    }
}
