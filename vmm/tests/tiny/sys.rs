//! A tap, from `/dev/net/tun`; and a filter around a program.
#![allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper, pre_exec is unsafe by signature")]

use crate::outer;
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
