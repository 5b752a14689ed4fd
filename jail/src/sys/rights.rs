//! Changes the user of the process. It cannot change back.

use std::io;

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Drops all groups and becomes user and group `id`, real, effective and saved. To be called while
/// the process has one thread: the system calls change the calling thread alone.
///
/// # Errors
/// The kernel refuses (the process is not root).
pub fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: no group is read: the count is zero.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: these take three numbers and touch no memory.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })
}
