//! The edge to the kernel.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

use std::{
    ffi::c_void,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, RawFd},
    ptr,
};

/// What this process was started with, and takes once.
pub fn taken<T: FromRawFd>(fd: RawFd) -> T {
    // SAFETY: the descriptor was inherited for this process, which takes each only once.
    unsafe { T::from_raw_fd(fd) }
}

/// Makes a system call that a filter of its own does not allow, as a jailed vmm may: the kernel
/// kills the process with SIGSYS.
pub fn do_what_is_forbidden() -> ! {
    let mut kill = libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_KILL_PROCESS,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut kill };
    patina_daemon::say!("about to make a system call that is not allowed");
    // SAFETY: the kernel copies the program of one instruction, which is live; from then on it
    // allows no system call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        libc::getppid();
    }
    unreachable!("the filter allows no system call")
}

/// A private mapping, whose pages are read by a system call, as KVM does.
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
