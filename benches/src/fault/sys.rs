//! Mappings behind safe signatures.
#![allow(unsafe_code, reason = "mappings and accesses to them; each block names its invariant")]

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;

/// A mapping of all of a file. It is unmapped when dropped.
#[derive(Debug)]
pub struct View {
    at: *mut c_void,
    pub bytes: usize,
}

// SAFETY: an address range that is used through the methods alone.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A private view, as a clone has.
    pub fn private(file: &File, bytes: usize) -> rustix::io::Result<Self> {
        Self::map(file, bytes, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    /// A view through which the file is written.
    pub fn shared(file: &File, bytes: usize) -> rustix::io::Result<Self> {
        Self::map(file, bytes, MapFlags::SHARED)
    }

    fn map(file: &File, bytes: usize, flags: MapFlags) -> rustix::io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at = unsafe { mmap(std::ptr::null_mut(), bytes, access, flags, file, 0) }?;
        Ok(Self { at, bytes })
    }

    /// Where it begins.
    pub fn address(&self) -> *mut c_void {
        self.at
    }

    /// Reads a byte, as a guest does: waits for its page.
    pub fn touch(&self, offset: usize) -> u8 {
        assert!(offset < self.bytes, "beyond the view");
        // SAFETY: within the mapping, whose content may change at any time.
        unsafe { self.at.cast::<u8>().byte_add(offset).read_volatile() }
    }

    /// Writes bytes to a shared view.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> rustix::io::Result<()> {
        assert!(offset + bytes.len() <= self.bytes, "beyond the view");
        let place = self.at.wrapping_byte_add(offset);
        // SAFETY: within the mapping; its content stays.
        unsafe { madvise(place, bytes.len(), Advice::LinuxPopulateWrite) }?;
        // SAFETY: the source is a slice, the destination as long, within the mapping, and not part
        // of the source.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast(), bytes.len()) };
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own.
        let unmapped = unsafe { munmap(self.at, self.bytes) };
        patina_control::best_effort(unmapped, "the one error is a range that is none, and it is one");
    }
}
