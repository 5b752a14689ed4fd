//! Reads into memory that was not touched before.

use rustix::io::{Errno, read};
use std::os::fd::AsFd;

/// Reads once, at most `max_bytes`, to the end of `buffer`. The room is not zeroed: a page of it
/// that receives nothing is never touched. Returns the number of bytes, 0 at the end.
///
/// # Errors
/// The kernel's; `buffer` is as it was.
pub fn append(from: impl AsFd, buffer: &mut Vec<u8>, max_bytes: usize) -> Result<usize, Errno> {
    buffer.reserve_exact(max_bytes);
    let length = buffer.len();
    let Some(room) = buffer.spare_capacity_mut().get_mut(..max_bytes) else { return Err(Errno::NOMEM) };
    let (got, _) = read(from, room)?;
    let count = got.len();
    // SAFETY: the kernel initialised `count` bytes behind the first `length`, within the capacity.
    unsafe { buffer.set_len(length + count) };
    Ok(count)
}
