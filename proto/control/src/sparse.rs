//! Pages of zeros, which a file need not have.

use crate::PAGE_BYTES;
use std::{fs::File, io, os::unix::fs::FileExt as _};

const PAGE: usize = PAGE_BYTES as usize;
/// A page of zeros: what is compared with it is compared many bytes at a time, in every build.
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PAGE).all(|bytes| *bytes == ZEROS[..bytes.len()])
}

/// Writes bytes at `start`, but none of their pages of zeros. Where the file has a hole, those stay
/// holes.
///
/// # Errors
/// The file system's.
pub fn write_pages(to: &File, start: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    // Pages side by side are written with one call.
    for pages in bytes.chunks(PAGE).collect::<Vec<_>>().chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let length = pages.iter().map(|page| page.len()).sum::<usize>();
        if !is_zero(pages[0]) {
            to.write_all_at(&bytes[at..at + length], start + at as u64)?;
        }
        at += length;
    }
    Ok(())
}
