//! A tap, from `/dev/net/tun`; a filter around a program; a pager's calls.
#![allow(
    unsafe_code,
    reason = "TUNSETIFF and userfaultfd have no safe wrappers, pre_exec is unsafe by signature"
)]

use crate::outer;
use patina_jail::userfaultfd::{
    UFFDIO_COPY, UFFDIO_UNREGISTER, UFFDIO_WAKE, UffdioCopy, UffdioFill, UffdioRange,
};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has `command` run its program as on a kernel before Linux 6.4.
pub fn hide_auxv(command: &mut Command) -> io::Result<()> {
    let filter = outer::filter()?;
    // SAFETY: the closure runs in the forked child and makes two system calls; the filter was made
    // before the fork.
    unsafe { command.pre_exec(move || outer::apply(&filter)) };
    Ok(())
}

/// A fresh tap with a name that the kernel chooses; it is gone when it is closed.
pub fn tap() -> io::Result<OwnedFd> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all of ifreq's members are integers or arrays of such, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tiny%d") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is live.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}

/// Takes the address of a fault from a userfaultfd that is non-blocking. None: there is none.
pub fn fault(userfault: &OwnedFd) -> io::Result<Option<u64>> {
    // `struct uffd_msg`: the event, flags and the address.
    let mut message = [0u64; 4];
    // SAFETY: the kernel writes one message of 32 bytes.
    let read = unsafe { libc::read(userfault.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
    match read {
        32 => Ok(Some(message[2] & !4095)),
        0.. => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Answers the fault of a page of another process with this ioctl. False: the kernel refuses, as
/// where there is an entry already.
pub fn fill(userfault: &OwnedFd, number: u64, address: u64) -> bool {
    let mut range: UffdioFill = [address, 4096, 0, 0];
    // SAFETY: all these ioctls take a struct of four u64. The memory is another process's, which
    // has given its userfaultfd for this.
    unsafe { libc::ioctl(userfault.as_raw_fd(), number, range.as_mut_ptr()) == 0 }
}

/// Answers the fault of a page of another process with a copy of a page. False: the kernel refuses.
pub fn copy(userfault: &OwnedFd, address: u64, page: &[u8; 4096]) -> bool {
    let mut range: UffdioCopy = [address, page.as_ptr() as u64, 4096, 0, 0];
    // SAFETY: the ioctl takes a struct of five u64, and reads the page, which is live.
    unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_COPY, range.as_mut_ptr()) == 0 }
}

/// Unregisters a range of another process.
pub fn unregister(userfault: &OwnedFd, start: u64, bytes: u64) {
    let mut range: UffdioRange = [start, bytes];
    // SAFETY: the ioctl takes a struct of two u64.
    unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr()) };
}

/// Wakes those who wait in a range, so that their faults come again.
pub fn wake(userfault: &OwnedFd, start: u64, bytes: u64) {
    let mut range: UffdioRange = [start, bytes];
    // SAFETY: the ioctl takes a struct of two u64.
    unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_WAKE, range.as_mut_ptr()) };
}

/// Reads a byte of another process's memory.
///
/// # Errors
/// There is none, or it cannot be had.
pub fn read_of(pid: u32, address: u64) -> io::Result<u8> {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: 1 };
    // SAFETY: one byte is written, to `byte`, which lives on. The other address is of that process.
    match unsafe { libc::process_vm_readv(pid as libc::pid_t, &raw const here, 1, &raw const there, 1, 0) } {
        1 => Ok(byte),
        _ => Err(io::Error::last_os_error()),
    }
}
