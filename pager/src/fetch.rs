//! Reads runs at their source, checks them, and puts them into the memfd.
//!
//! A run is staged in a buffer of the thread. It goes into the memfd only after its digest was
//! found right, and becomes visible only after all of it is there.

use crate::engine::{Engine, Job};
use crate::layer::{Layer, RUN_PAGES};
use crate::source::{Class, RunError};
use crate::switch::{Asking, Finish};
use patina_control::PAGE_BYTES;
use patina_control::pager::RUN_BYTES;
use patina_control::sparse::is_zero;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A thread's buffers.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// What the source has.
    new: Vec<u8>,
    /// What the memfd had.
    old: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { new: vec![0; RUN_BYTES as usize], old: vec![0; RUN_BYTES as usize] }
    }
}

/// Where a run's bytes are.
pub(crate) enum Read {
    /// In the buffer.
    Buffer,
    /// In the memfd already; the bits are its pages that are not zero.
    Memfd(u16),
}

impl Layer {
    /// Reads a run and checks it, if that takes no longer than a copy.
    pub(crate) fn read_now(&self, run: usize, scratch: &mut Scratch) -> Option<Result<Read, RunError>> {
        if let Some(data) = self.recover(run, scratch) {
            return Some(Ok(Read::Memfd(data)));
        }
        let new = &mut scratch.new[..self.run_bytes(run)];
        let read = self.source()?.read_now(run, new)?;
        Some(read.and_then(|()| self.check(run, new)))
    }

    /// Reads a run and checks it. May block.
    pub(crate) fn read(&self, run: usize, scratch: &mut Scratch) -> Result<Read, RunError> {
        if let Some(data) = self.recover(run, scratch) {
            return Ok(Read::Memfd(data));
        }
        self.read_source(run, scratch)
    }

    /// Reads a run that the memfd does not have, and checks it. May block.
    fn read_source(&self, run: usize, scratch: &mut Scratch) -> Result<Read, RunError> {
        let new = &mut scratch.new[..self.run_bytes(run)];
        self.source().ok_or(RunError::Truncated)?.read(run, new)?;
        self.check(run, new)
    }

    fn check(&self, run: usize, new: &[u8]) -> Result<Read, RunError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        if self.digests.matches(run, new) { Ok(Read::Buffer) } else { Err(RunError::Digest) }
    }

    /// A run that an earlier pager has put into the memfd, all of it. Its pages that are not zero.
    fn recover(&self, run: usize, scratch: &mut Scratch) -> Option<u16> {
        if !self.is_inherited {
            return None;
        }
        // Not through the mapping: that would make a page of each hole.
        let old = &mut scratch.old[..self.run_bytes(run)];
        self.memfd.read_exact_at(old, run as u64 * RUN_BYTES).ok()?;
        // Most often nothing is there, and that is soon seen.
        if is_zero(old) || !self.digests.matches(run, old) {
            return None;
        }
        Some(data_pages(old))
    }

    /// Puts a run that was read and checked into the memfd. Its pages that the memfd has.
    pub(crate) fn install(&self, run: usize, scratch: &Scratch, read: Read) -> Result<u16, RunError> {
        match read {
            Read::Memfd(data) => Ok(data),
            Read::Buffer => {
                let bytes = self.run_bytes(run);
                self.write(run, &scratch.new[..bytes], &scratch.old[..bytes])
            }
        }
    }

    /// Checks a run that has come, and puts it into the memfd. Its pages that the memfd has.
    pub(crate) fn take(&self, run: usize, new: &[u8]) -> Result<u16, RunError> {
        self.check(run, new)?;
        let mut old = Vec::new();
        if self.is_inherited {
            old.resize(new.len(), 0);
            self.memfd.read_exact_at(&mut old, run as u64 * RUN_BYTES).map_err(RunError::Read)?;
        }
        self.write(run, new, &old)
    }

    /// `old` is what the memfd has, if it may have something.
    fn write(&self, run: usize, new: &[u8], old: &[u8]) -> Result<u16, RunError> {
        let bytes = new.len();
        let mut data = data_pages(new);
        if self.is_inherited {
            // Half a run of an earlier pager: what must become zero is written.
            data |= data_pages(old);
        }
        if self.is_full() {
            // The run was given up, and somebody else has got it since. The memfd may be sealed.
            return Ok(data);
        }
        let mut page = 0;
        while page < RUN_PAGES {
            let length = (data >> page).trailing_ones() as usize;
            if length > 0 {
                let at = page * PAGE_BYTES as usize;
                let pages = &new[at..(at + length * PAGE_BYTES as usize).min(bytes)];
                // Not through a mapping: the kernel would clear each page before it is written, and
                // this takes half as long.
                let place = run as u64 * RUN_BYTES + at as u64;
                self.memfd.write_all_at(pages, place).map_err(RunError::Memory)?;
            }
            page += length.max(1);
        }
        Ok(data)
    }
}

/// A bit for each page that is not zero.
fn data_pages(run: &[u8]) -> u16 {
    let pages = run.chunks(PAGE_BYTES as usize).enumerate();
    pages.filter(|(_, page)| !is_zero(page)).fold(0, |bits, (at, _)| bits | 1 << at)
}

impl Engine {
    /// Asks for a run where that does not block. False: its source has to be read.
    pub(crate) fn request(self: &Arc<Self>, job: &Job, class: Class, finish: Finish) -> bool {
        let Some(source) = job.layer.source() else { return false };
        self.ask(&source, Asking::new(job.clone(), class, finish)).is_none()
    }

    /// Gets a run that VMs wait for. May block.
    pub(crate) fn fetch(&self, job: &Job, scratch: &mut Scratch) {
        let read = job.layer.read(job.run, scratch);
        self.finish(job, read.and_then(|read| job.layer.install(job.run, scratch, read)));
    }

    /// Gets a run that no VM here waits for, or begins to; if the source fails, it is absent again.
    /// May block.
    pub(crate) fn fetch_for_nobody(self: &Arc<Self>, job: &Job, scratch: &mut Scratch, class: Class) {
        if let Some(data) = job.layer.recover(job.run, scratch) {
            return self.settle(job, data);
        }
        if self.request(job, class, Self::finish_for_nobody) {
            return;
        }
        let read = job.layer.read_source(job.run, scratch);
        self.finish_for_nobody(job, read.and_then(|read| job.layer.install(job.run, scratch, read)));
    }

    /// A run that no VM here waited for was fetched, or cannot be.
    fn finish_for_nobody(&self, job: &Job, fetched: Result<u16, RunError>) {
        match fetched {
            Ok(data) => self.settle(job, data),
            Err(error) => {
                let sleepers = self.waiters.release(&job.layer, job.run);
                self.note_background_failure(job, &error);
                self.end_waiting(&job.layer, job.run, &error, sleepers);
            }
        }
    }
}
