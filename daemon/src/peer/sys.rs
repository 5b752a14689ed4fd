//! The groups of the one at the other end of a Unix socket.
#![allow(unsafe_code, reason = "getsockopt of SO_PEERGROUPS")]

use std::{io, os::fd::AsRawFd};

/// NGROUPS_MAX of Linux.
const GROUPS_MAX: usize = 65_536;

/// As they were when it connected, beside its first group.
pub fn groups(socket: &impl AsRawFd) -> io::Result<Vec<u32>> {
    let mut room = 64;
    loop {
        let mut groups = vec![0_u32; room];
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `bytes` bytes, which `groups` has, and how many it
        // wrote or needs into `bytes`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if result == 0 {
            groups.truncate(bytes as usize / size_of::<u32>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || room >= GROUPS_MAX {
            return Err(error);
        }
        room = GROUPS_MAX;
    }
}
