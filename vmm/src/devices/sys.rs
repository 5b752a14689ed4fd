//! The system calls of devices that have no safe wrapper: vectored I/O on guest memory, and the
//! borrow of an [`EventFd`]'s descriptor. No policy is here.
#![allow(unsafe_code, reason = "readv and writev on guest memory, which Rust must not hold references to")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// Most parts that one vectored call takes (the kernel's UIO_MAXIOV).
pub const IOV_MAX: usize = 1024;

/// Borrows an event's file descriptor.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the EventFd owns its descriptor and outlives the borrow, by the lifetimes of this
    // function.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Pieces of guest memory for one vectored call, at most [`IOV_MAX`]. The guest may change the
/// bytes at any time; only the kernel touches them.
pub struct GuestSlices<'m> {
    iov: Vec<libc::iovec>,
    bytes: usize,
    memory: PhantomData<&'m ()>,
}

impl<'m> GuestSlices<'m> {
    /// No pieces yet, room for `parts`.
    pub fn with_capacity(parts: usize) -> Self {
        Self { iov: Vec::with_capacity(parts.min(IOV_MAX)), bytes: 0, memory: PhantomData }
    }

    /// Adds a piece; false when there are [`IOV_MAX`] already.
    pub fn push(&mut self, slice: &VolatileSlice<'m, ()>) -> bool {
        let Some(bytes) = self.bytes.checked_add(slice.len()) else { return false };
        if self.iov.len() == IOV_MAX {
            return false;
        }
        self.bytes = bytes;
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        self.iov.push(libc::iovec { iov_base, iov_len: slice.len() });
        true
    }

    /// Bytes in all pieces.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn parts(&self) -> libc::c_int {
        // At most IOV_MAX, so the conversion never saturates.
        libc::c_int::try_from(self.iov.len()).unwrap_or(libc::c_int::MAX)
    }

    /// `writev(2)`: guest memory to the file, bytes written.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: each iovec is a live piece of guest memory for 'm (a VolatileSlice's invariant),
        // which outlives this call; the kernel only reads them.
        check(unsafe { libc::writev(fd.as_raw_fd(), self.iov.as_ptr(), self.parts()) })
    }

    /// `preadv(2)`: the file from `offset` into guest memory, bytes read.
    pub fn read_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: as in `write_to`; the kernel writes into guest memory, to which no Rust reference
        // exists.
        check(unsafe { libc::preadv64(fd.as_raw_fd(), self.iov.as_ptr(), self.parts(), offset) })
    }

    /// `pwritev(2)`: guest memory into the file at `offset`, bytes written.
    pub fn write_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: as in `write_to`.
        check(unsafe { libc::pwritev64(fd.as_raw_fd(), self.iov.as_ptr(), self.parts(), offset) })
    }

    /// `readv(2)`: the file into guest memory, bytes read.
    pub fn read_from(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_at`.
        check(unsafe { libc::readv(fd.as_raw_fd(), self.iov.as_ptr(), self.parts()) })
    }
}

fn file_offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
