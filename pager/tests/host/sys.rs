//! Memory that a pager serves, and the mount of a file system, behind safe signatures.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

use std::ffi::{CString, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

/// A private mapping. Its pages are read and written by system calls, as KVM does.
#[derive(Debug)]
pub struct View {
    at: *mut c_void,
    pub bytes: usize,
}

// SAFETY: an address range that only system calls look at.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl View {
    pub fn map(file: &File, bytes: usize, offset: u64) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), offset as i64) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { at, bytes }) }
    }

    pub fn address(&self) -> *mut c_void {
        self.at
    }

    fn inside(&self, offset: usize, length: usize) -> *mut c_void {
        assert!(offset + length <= self.bytes, "beyond the view");
        self.at.wrapping_byte_add(offset)
    }

    /// Reads bytes. Waits for missing pages; fails with EFAULT where an access would be SIGBUS.
    pub fn read(&self, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        let mut into = vec![0; length];
        let pipe = rustix::fs::memfd_create("read", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut done = 0;
        while done < length {
            let from = self.inside(offset + done, length - done);
            // SAFETY: the kernel reads bytes within the mapping.
            done += check(unsafe { libc::write(pipe.as_raw_fd(), from, length - done) } as libc::c_long)?;
        }
        std::os::unix::fs::FileExt::read_exact_at(&File::from(pipe), &mut into, 0)?;
        Ok(into)
    }

    /// Writes bytes.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let pipe = File::from(rustix::fs::memfd_create("write", rustix::fs::MemfdFlags::CLOEXEC)?);
        std::os::unix::fs::FileExt::write_all_at(&pipe, bytes, 0)?;
        let to = self.inside(offset, bytes.len());
        // SAFETY: the kernel writes bytes within the mapping, to which no reference exists.
        let done = check(unsafe { libc::pread(pipe.as_raw_fd(), to, bytes.len(), 0) } as libc::c_long)?;
        if done == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// A descriptor that this process was started with, taken once.
pub fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: the parent has left it open under this number for this program, which takes it once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path")
}

/// Mounts a FUSE file system that `device` serves.
pub fn mount_fuse(device: &File, at: &Path) -> io::Result<()> {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let (options, at) = (CString::new(options).expect("options"), c_string(at));
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all strings end with a zero and live during the call.
    let result = unsafe {
        libc::mount(c"patina-test".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), flags, options.as_ptr().cast())
    };
    check(result.into()).map(drop)
}

/// Unmounts, also what is in use: requests that wait fail, and so does whatever comes later.
pub fn unmount(at: &Path) {
    // SAFETY: the string ends with a zero and lives during the call.
    unsafe { libc::umount2(c_string(at).as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
}

/// How many bytes a TCP connection has received: `tcpi_bytes_received` of `struct tcp_info`.
pub fn received(stream: &std::net::TcpStream) -> io::Result<u64> {
    let mut info = [0_u64; 17];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, to `info`.
    let told = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    check(told.into())?;
    Ok(info[16])
}
