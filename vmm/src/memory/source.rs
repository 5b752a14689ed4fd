//! Copies pages out of a layer and skips holes.

use patina_control::PAGE_BYTES;
use patina_control::sparse::write_pages;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// How much is copied at a time when layers are merged, bytes.
const CHUNK_BYTES: u64 = 1 << 20;
/// Ranges up to this size are read without a search for holes, which would take the kernel longer.
const LOOK_MIN_BYTES: u64 = 16 * PAGE_BYTES;

/// A layer that is read in ascending order. The kernel looks at each page of some data to find its
/// end, so the result of the last search is kept.
pub(super) struct Source<'a> {
    file: &'a File,
    /// The data that the last search found. There is none between the start of the search and this
    /// range. There may be more behind it.
    data: Range<u64>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, data: 0..0 }
    }

    /// Copies the data in `range` to the same offsets in `to`. Holes stay holes.
    pub(super) fn copy(&mut self, range: Range<u64>, to: &File, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let bytes = range.end - range.start;
        if bytes <= LOOK_MIN_BYTES && !self.data.contains(&range.start) {
            buffer.resize(bytes as usize, 0);
            self.file.read_exact_at(buffer, range.start)?;
            return write_pages(to, range.start, buffer);
        }
        let mut at = range.start;
        while at < range.end {
            self.find(at)?;
            at = at.max(self.data.start);
            let end = self.data.end.min(range.end);
            while at < end {
                buffer.resize((end - at).min(CHUNK_BYTES) as usize, 0);
                self.file.read_exact_at(buffer, at)?;
                to.write_all_at(buffer, at)?;
                at += buffer.len() as u64;
            }
        }
        Ok(())
    }

    /// Finds the first data at or behind `at`.
    fn find(&mut self, at: u64) -> rustix::io::Result<()> {
        if at >= self.data.end {
            self.data = match seek(self.file, SeekFrom::Data(at)) {
                Ok(start) => start..seek(self.file, SeekFrom::Hole(start))?,
                // There is no more data.
                Err(Errno::NXIO) => u64::MAX..u64::MAX,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}
