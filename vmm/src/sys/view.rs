//! Mappings of guest RAM: replaces one mapping with another, maps layers over a reservation,
//! prefaults pages and copies them into files.

use patina_control::best_effort;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap,
};
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

/// A private view of a region's part of its file, mapped at another address. It is unmapped when
/// dropped.
#[derive(Debug)]
pub struct PrivateView {
    at: *mut c_void,
    bytes: usize,
    /// The address to which the old mapping is moved.
    parking: *mut c_void,
}

/// The mapping that a view has replaced. It is unmapped when dropped.
#[derive(Debug)]
pub struct Replaced {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: plain address ranges that nobody else refers to.
unsafe impl Send for Replaced {}

fn unmap(at: *mut c_void, bytes: usize) {
    // SAFETY: the range was mapped by this module, and its owner, which is being dropped, is its
    // only user. The only possible error is an invalid range, and this range is valid.
    best_effort(unsafe { munmap(at, bytes) }, "the one error is a range that is none, and it is one");
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
    /// Maps the part of the file that `region` has, copy-on-write, at another address, and reserves
    /// address space for the old mapping. `region` itself does not change.
    ///
    /// # Errors
    /// There is no address space left.
    pub fn prepare(region: &GuestRegionMmap, file: &FileOffset) -> rustix::io::Result<Self> {
        let bytes = region.len() as usize;
        let at = reserve_like(region)?;
        let parking = reserve_like(region).inspect_err(|_| unmap(at, bytes))?;
        let view = Self { at, bytes, parking };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: in the place of `view`'s own reservation of as many bytes.
        unsafe { mmap(at, bytes, access, flags, file.file().as_fd(), file.start()) }?;
        Ok(view)
    }

    /// Replaces `region`'s mapping with the view. Both moves change page tables and copy no pages.
    ///
    /// # Errors
    /// The kernel refuses a move. If that is the second move, the old mapping is moved back.
    pub fn replace(self, region: &GuestRegionMmap) -> rustix::io::Result<Replaced> {
        let place: *mut c_void = region.as_ptr().cast();
        let (view, bytes, parking) = (self.at, self.bytes, self.parking);
        // Its parts belong to others from here on.
        std::mem::forget(self);
        // SAFETY: `place` is the region's live mapping of `bytes` and `parking` a reservation of as
        // many. For the moment between the two moves nothing is mapped at `place`; the caller has
        // stopped all that looks there.
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

/// Reserves as much address space as `region` has, with the same alignment to page tables: the
/// kernel then moves whole tables, 512 pages at a time.
fn reserve_like(region: &GuestRegionMmap) -> rustix::io::Result<*mut c_void> {
    const TABLE_BYTES: usize = 2 << 20;
    let bytes = region.len() as usize;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
    let all =
        unsafe { mmap_anonymous(std::ptr::null_mut(), bytes + TABLE_BYTES, ProtFlags::empty(), flags) }?;
    let before = (region.as_ptr() as usize).wrapping_sub(all as usize) % TABLE_BYTES;
    let place = all.wrapping_byte_add(before);
    for (spare, bytes) in [(all, before), (place.wrapping_byte_add(bytes), TABLE_BYTES - before)] {
        if bytes > 0 {
            unmap(spare, bytes);
        }
    }
    Ok(place)
}

/// Makes the kernel and KVM drop their mappings of a shared mapping's pages. The pages stay in the
/// file, and the next access maps them again. Works in steps, so that a running guest never waits
/// long.
///
/// # Errors
/// The kernel refuses.
pub fn forget_pages(region: &GuestRegionMmap) -> rustix::io::Result<()> {
    const STEP_BYTES: u64 = 16 << 20;
    for at in (0..region.len()).step_by(STEP_BYTES as usize) {
        let bytes = STEP_BYTES.min(region.len() - at);
        let place = inside(region, at, bytes)?;
        // SAFETY: the range is within the region's mapping, which is shared: what it holds is the
        // file's and stays.
        unsafe { madvise(place, bytes as usize, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// The address of `bytes` at offset `at` of a region, if they are within the region.
fn inside(region: &GuestRegionMmap, at: u64, bytes: u64) -> rustix::io::Result<*mut c_void> {
    match at.checked_add(bytes) {
        Some(end) if end <= region.len() => Ok(region.as_ptr().wrapping_add(at as usize).cast()),
        _ => Err(Errno::FAULT),
    }
}

/// Maps `bytes` of `file` from `offset`, copy-on-write, over the memory at `at` in `region`.
/// Nothing may use that memory.
///
/// # Errors
/// It is not within the region, or the kernel refuses.
pub fn map_layer(
    region: &GuestRegionMmap,
    at: u64,
    bytes: u64,
    file: &File,
    offset: u64,
) -> rustix::io::Result<()> {
    let place = inside(region, at, bytes)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the range is within the region's own mapping, which stays a mapping of the same size
    // and is only used through the region; what it holds is replaced, as guest memory may change at
    // any time.
    unsafe { mmap(place, bytes as usize, access, flags, file.as_fd(), offset) }?;
    Ok(())
}

/// Gives the private mapping at `at` of `region` its own copies of the pages: all at once, instead
/// of one at each first write.
///
/// # Errors
/// It is not within the region, or there is no memory.
pub fn prefault(region: &GuestRegionMmap, at: u64, bytes: u64) -> rustix::io::Result<()> {
    let place = inside(region, at, bytes)?;
    // SAFETY: the range is within the region's mapping; its content stays.
    unsafe { madvise(place, bytes as usize, Advice::LinuxPopulateWrite) }
}

/// Copies `bytes` at `at` of `region` to `offset` of `file`. The kernel reads their current
/// content.
///
/// # Errors
/// They are not within the region, or the file accepts no more.
pub fn copy_out(
    region: &GuestRegionMmap,
    at: u64,
    bytes: u64,
    file: &File,
    offset: u64,
) -> rustix::io::Result<()> {
    let from = inside(region, at, bytes)?;
    let mut done = 0;
    while done < bytes {
        let (rest, to) = ((bytes - done) as usize, (offset + done) as libc::off_t);
        // SAFETY: `rest` bytes from there are within the region's mapping; the kernel only reads
        // them.
        let count = unsafe { libc::pwrite(file.as_raw_fd(), from.byte_add(done as usize), rest, to) };
        match u64::try_from(count) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => done += count,
            Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::IO)),
            },
        }
    }
    Ok(())
}
