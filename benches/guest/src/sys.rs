//! The measured system calls, without the overhead of a standard library.
#![allow(unsafe_code, reason = "fork, exec and mmap themselves are what is measured")]

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::{null, null_mut};

const PAGE_BYTES: usize = 4096;

/// The parent's process id, from the kernel each time (glibc keeps no copy of it).
pub fn parent_pid() -> io::Result<i32> {
    // SAFETY: getppid takes nothing and cannot fail.
    let pid = unsafe { libc::getppid() };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// The monotonic clock, which costs no system call where the vDSO has it.
pub fn clock() -> io::Result<()> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What serves a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// Pages of 4 KiB only.
    Small,
    /// Pages of 2 MiB where the kernel has them.
    Huge,
}

/// Fresh anonymous memory.
pub struct Pages {
    start: *mut u8,
    pages: usize,
}

impl Pages {
    /// Maps memory that has not been touched, of at least one page.
    pub fn map(pages: usize, size: PageSize) -> io::Result<Self> {
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = Self { start: start.cast(), pages };
        let advice = match size {
            PageSize::Small => libc::MADV_NOHUGEPAGE,
            PageSize::Huge => libc::MADV_HUGEPAGE,
        };
        // SAFETY: the range is the mapping made above; the advice changes no content. A kernel
        // without huge pages refuses it and serves small ones.
        unsafe { libc::madvise(start, bytes, advice) };
        Ok(mapped)
    }

    /// Writes to one page.
    pub fn touch(&mut self, page: usize) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        // SAFETY: the page lies in the mapping, which is writable and lives as long as `self`.
        unsafe { self.start.add(page * PAGE_BYTES).write_volatile(1) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it after this. Its result can
        // only be an error for a wrong range, which this is not.
        unsafe { libc::munmap(self.start.cast(), self.pages * PAGE_BYTES) };
    }
}

/// How a process is started.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// fork; the child exits at once.
    Fork,
    /// fork, then exec of the program with `--exit`.
    ForkExec,
    /// posix_spawn of the program with `--exit`: glibc does it with a vfork.
    Spawn,
}

/// A child that has not been waited for.
#[derive(Debug)]
#[must_use = "a child stays a zombie until it is waited for"]
pub struct Child(libc::pid_t);

impl Child {
    /// Waits for the child's end; anything but success is an error.
    pub fn wait(self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if status == 0 { Ok(()) } else { Err(io::Error::other(format!("the child ended with {status:#x}"))) }
    }
}

/// Starts a child that ends at once.
pub fn start(program: &Path, how: Start) -> io::Result<Child> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let arguments = [path.as_ptr().cast_mut(), c"--exit".as_ptr().cast_mut(), null_mut()];
    let environment = [null_mut()];
    if let Start::Spawn = how {
        let mut pid = 0;
        // SAFETY: the path, both lists and their strings end with zero and live through the call;
        // no file actions and no attributes are given.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                null(),
                null(),
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        return if error == 0 { Ok(Child(pid)) } else { Err(io::Error::from_raw_os_error(error)) };
    }
    fork(|| {
        if let Start::ForkExec = how {
            let arguments = arguments.map(|argument| argument.cast_const());
            // SAFETY: as above; it returns only if it fails, and then the child exits with an
            // error.
            unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), [null()].as_ptr()) };
            return 1;
        }
        0
    })
}

/// Starts a child that sends back on `far` every byte that `near` sends, until `near` is closed.
pub fn start_echo(near: &UnixStream, far: &UnixStream) -> io::Result<Child> {
    let (near_fd, fd) = (near.as_raw_fd(), far.as_raw_fd());
    fork(|| {
        // SAFETY: the child's own copy of the parent's end, which nothing in the child uses; left
        // open, it would keep the child from ever seeing that end close.
        unsafe { libc::close(near_fd) };
        let mut byte = 0u8;
        // SAFETY: one byte is read into and written from a byte of ours, on a socket that is open
        // here.
        while unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } == 1 {
            // SAFETY: as above.
            if unsafe { libc::write(fd, (&raw const byte).cast(), 1) } != 1 {
                return 1;
            }
        }
        0
    })
}

/// Forks; the child does `work`, which must call nothing but system calls, and exits with what it
/// returns.
fn fork(work: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: this program has one thread (its tests have more, and hold to the same rule), so the
    // child may go on; it leaves by _exit and runs no destructor of the parent's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = work();
            // SAFETY: ends the child without running anything more.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Child(pid)),
    }
}
