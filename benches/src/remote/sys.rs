//! Memory of another process.
#![allow(unsafe_code, reason = "a system call that has no safe wrapper; the block names its invariant")]

use std::io;

/// Reads a byte of a process, and waits for its page as the process itself would. A read of
/// /proc/PID/mem does not wait: it fails.
pub fn touch(pid: u32, address: u64) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut byte = 0_u8;
    let ours = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let theirs = libc::iovec { iov_base: address as *mut _, iov_len: 1 };
    // SAFETY: the kernel writes one byte, to `byte`, which outlives the call. The other address is
    // only looked at in the other process.
    match unsafe { libc::process_vm_readv(pid, &raw const ours, 1, &raw const theirs, 1, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_read_where_there_is_one() {
        let byte = 7_u8;
        touch(std::process::id(), (&raw const byte) as u64).unwrap();
        assert!(touch(std::process::id(), 0).is_err());
    }
}
