//! A layer's memfd, mapped shared, to be written.

use patina_control::{PAGE_BYTES, best_effort};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;

/// A shared mapping of a whole memfd. It is unmapped when dropped.
#[derive(Debug)]
pub struct Window {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: the address range belongs to the value. It is written through raw pointers only, by those
// who agree among themselves who writes where, and no reference to it is made.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Maps `bytes` of a memfd that is at least as long and cannot shrink.
    ///
    /// # Errors
    /// The kernel's. EPERM: the memfd is sealed.
    pub fn new(memfd: &File, bytes: u64) -> Result<Self, Errno> {
        let bytes = bytes as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, memfd, 0) }?;
        Ok(Self { at, bytes })
    }

    /// Writes whole pages at `offset`. Nobody else may write there at the same time. Others may
    /// have these pages mapped, but the pager lets nobody see them before they are all written.
    ///
    /// # Errors
    /// There is no memory for them, or they are beyond the end.
    pub fn write(&self, offset: u64, pages: &[u8]) -> Result<(), Errno> {
        let end = (offset as usize).checked_add(pages.len()).filter(|end| *end <= self.bytes);
        if end.is_none() || !offset.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::FAULT);
        }
        let place = self.at.wrapping_byte_add(offset as usize);
        // One call instead of a fault for each page; and without memory it fails, where a write
        // would end the process. SAFETY: the range is within the mapping; its content stays.
        unsafe { madvise(place, pages.len(), Advice::LinuxPopulateWrite) }?;
        // SAFETY: the source is a slice, the destination is as long and within the mapping, which
        // is not part of it. No reference to the destination exists.
        unsafe { std::ptr::copy_nonoverlapping(pages.as_ptr(), place.cast(), pages.len()) };
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and its owner, which is being dropped, is its only
        // user.
        best_effort(
            unsafe { munmap(self.at, self.bytes) },
            "the one error is a range that is none, and it is one",
        );
    }
}
