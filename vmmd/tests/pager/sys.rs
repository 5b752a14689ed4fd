//! A private mapping, whose pages are read by a system call, as KVM does.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

use std::{ffi::c_void, fs::File, io, os::fd::AsRawFd, ptr};

/// See the module.
#[derive(Debug)]
pub struct View {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: an address range that only system calls look at.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    pub fn map(file: &File, bytes: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { at, bytes }
    }

    pub fn address(&self) -> *mut c_void {
        self.at
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads some bytes. Waits for a page that is missing; fails with EFAULT where an access would
    /// be SIGBUS.
    pub fn read<const N: usize>(&self, offset: usize) -> io::Result<[u8; N]> {
        assert!(offset + N <= self.bytes, "within the view");
        let (reader, writer) = rustix::pipe::pipe()?;
        // SAFETY: the kernel reads so many bytes within the mapping.
        let done = unsafe { libc::write(writer.as_raw_fd(), self.at.wrapping_byte_add(offset), N) };
        if done.cast_unsigned() != N {
            return Err(io::Error::last_os_error());
        }
        let mut bytes = [0; N];
        rustix::io::read(&reader, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}
