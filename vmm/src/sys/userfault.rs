//! The process's userfaultfd. It does two things, each for ranges of guest RAM:
//!
//! - It tracks writes: the kernel resolves write-protect faults itself (UFFD_FEATURE_WP_ASYNC,
//!   Linux 6.7), and [`super::pagemap`] finds the pages that were written.
//! - It waits for pages: an access to a page that is not mapped yet waits until the pager has
//!   served it. MISSING faults are those to pages that the layer's memfd does not have, MINOR
//!   faults those to pages that it has (the kernel's documentation: `admin-guide/mm/userfaultfd`).
//!
//! A mapping belongs to one userfaultfd, so one descriptor does both. The pager gets a duplicate of
//! it. As this process keeps its own, a pager that dies means a guest that waits. If the last
//! descriptor were closed, the kernel would serve zeros instead.

use patina_jail::ioctl::last_error;
use patina_jail::userfaultfd::{
    UFFD_API, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_WP_ASYNC, UFFDIO_API,
    UFFDIO_REGISTER, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
    UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT, UffdioApi, UffdioRange, UffdioRegister, UffdioWriteprotect,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// The userfaultfd.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

/// What happens at a range of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Writes are tracked.
    pub tracks: bool,
    /// An access to a page that is not mapped waits for the pager.
    pub waits: bool,
}

impl Userfault {
    /// Makes a userfaultfd. This needs privileges, so it must be called before the jail. None: the
    /// kernel cannot track writes (before Linux 6.7), or it refuses.
    #[must_use]
    pub fn open() -> Option<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // A kernel with the first feature has the others: they came with Linux 4.11 and 5.14.
        let features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
        let mut api: UffdioApi = [UFFD_API, features, 0];
        // SAFETY: `struct uffdio_api` is three u64.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
        (done == 0).then_some(Self(fd))
    }

    /// From now on [`Pages::Written`](super::pagemap::Pages::Written) works for this region. The
    /// first search returns all private pages.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn track(&self, region: &GuestRegionMmap) -> rustix::io::Result<()> {
        self.register(region, 0, region.len(), Modes { tracks: true, waits: false })
    }

    /// Sets what happens at `bytes` at `at` of a region. The new modes must include those that the
    /// range has: the kernel ignores a request for fewer.
    ///
    /// # Errors
    /// The range is not within the region, or the kernel refuses.
    pub fn register(
        &self,
        region: &GuestRegionMmap,
        at: u64,
        bytes: u64,
        modes: Modes,
    ) -> rustix::io::Result<()> {
        let Modes { tracks, waits } = modes;
        let mode = if tracks { UFFDIO_REGISTER_MODE_WP } else { 0 }
            | if waits { UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR } else { 0 };
        let mut range: UffdioRegister = [address(region, at, bytes)?, bytes, mode, 0];
        // SAFETY: `struct uffdio_register` is four u64. Write-protect faults are resolved by the
        // kernel. A thread that waits for another fault holds no lock that the pager needs, which
        // is another process.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }

    /// Forgets which pages of a region were written, and all write protection, of entries without a
    /// page too: the next search finds all private pages. Writes must be tracked in the whole
    /// region.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unprotect(&self, region: &GuestRegionMmap) -> rustix::io::Result<()> {
        /// While the process changes its mappings the kernel asks to try again.
        const TRIES: usize = 64;
        let mut range: UffdioWriteprotect = [region.as_ptr() as u64, region.len(), 0];
        for _ in 0..TRIES {
            // SAFETY: `struct uffdio_writeprotect` is three u64. No content changes.
            match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, range.as_mut_ptr()) } {
                0 => return Ok(()),
                _ if last_error() == Errno::AGAIN => {}
                _ => return Err(last_error()),
            }
        }
        Err(Errno::AGAIN)
    }

    /// Reverts [`Self::track`] and [`Self::register`] for `bytes` at `at` of a region, and wakes
    /// threads that wait there.
    ///
    /// # Errors
    /// The range is not within the region, or the kernel refuses.
    pub fn forget(&self, region: &GuestRegionMmap, at: u64, bytes: u64) -> rustix::io::Result<()> {
        let mut range: UffdioRange = [address(region, at, bytes)?, bytes];
        // SAFETY: `struct uffdio_range` is two u64.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The address of `bytes` at `at` of a region, if they are within the region.
fn address(region: &GuestRegionMmap, at: u64, bytes: u64) -> rustix::io::Result<u64> {
    match at.checked_add(bytes) {
        Some(end) if end <= region.len() => Ok(region.as_ptr() as u64 + at),
        _ => Err(Errno::FAULT),
    }
}

#[cfg(test)]
#[path = "userfault_test.rs"]
mod tests;
