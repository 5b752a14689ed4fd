//! Replaces a mapping by another at the same address, without unmapping the old one on the way.

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};
use std::ffi::c_void;
use std::os::fd::AsFd;
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

/// A private view of a region's part of its file, not yet in its place; unmapped when dropped.
#[derive(Debug)]
pub struct PrivateView {
    at: *mut c_void,
    bytes: usize,
    /// Where the old mapping goes.
    parking: *mut c_void,
}

/// The mapping that a view has replaced; unmapped when dropped, which takes time in proportion to its pages.
#[derive(Debug)]
pub struct Replaced {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: plain address ranges that nobody else refers to.
unsafe impl Send for Replaced {}

fn unmap(at: *mut c_void, bytes: usize) {
    // SAFETY: the range was mapped by this module, and its owner, which is being dropped, is its only user. The one
    // error is a range that is none, and it is one.
    unsafe { munmap(at, bytes) }.ok();
}

impl Drop for PrivateView {
    fn drop(&mut self) {
        unmap(self.at, self.bytes);
        unmap(self.parking, self.bytes);
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        unmap(self.at, self.bytes);
    }
}

impl PrivateView {
    /// Maps the part of the file that `region` has, copy-on-write, somewhere else, and reserves room to park the
    /// old mapping. Nothing changes for `region`.
    ///
    /// # Errors
    /// There is no address space left.
    pub fn prepare(region: &GuestRegionMmap, file: &FileOffset) -> rustix::io::Result<Self> {
        let bytes = region.len() as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file.file().as_fd(),
                file.start(),
            )
        }?;
        // SAFETY: as above.
        match unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::empty(), flags) } {
            Ok(parking) => Ok(Self { at, bytes, parking }),
            Err(error) => {
                unmap(at, bytes);
                Err(error)
            }
        }
    }

    /// Puts the view in `region`'s place. Both moves are of page tables, not of pages.
    ///
    /// # Errors
    /// The kernel refuses a move; where it is the second, the old mapping is put back.
    pub fn replace(self, region: &GuestRegionMmap) -> rustix::io::Result<Replaced> {
        let place: *mut c_void = region.as_ptr().cast();
        let (view, bytes, parking) = (self.at, self.bytes, self.parking);
        // Its parts belong to others from here on.
        std::mem::forget(self);
        // SAFETY: `place` is the region's live mapping of `bytes` and `parking` a reservation of as many. For the
        // moment between the two moves nothing is mapped at `place`; the caller has stopped all that looks there.
        unsafe { mremap_fixed(place, bytes, bytes, MremapFlags::MAYMOVE, parking) }?;
        // SAFETY: `view` is a live mapping of `bytes`, `place` is free now.
        match unsafe { mremap_fixed(view, bytes, bytes, MremapFlags::MAYMOVE, place) } {
            Ok(_) => Ok(Replaced { at: parking, bytes }),
            Err(error) => {
                // SAFETY: back to where it was, which is still free.
                unsafe { mremap_fixed(parking, bytes, bytes, MremapFlags::MAYMOVE, place) }?;
                Err(error)
            }
        }
    }
}
