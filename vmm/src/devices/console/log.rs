//! The console's log: a file that never grows beyond its limit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PIECE_BYTES: usize = 16 * 1024;

/// A log of bounded size. When it is full, its older half is removed, up to the end of a line.
#[derive(Debug)]
pub struct Log {
    file: File,
    length_bytes: u64,
    max_bytes: u64,
}

impl Log {
    /// Appends to a file that is kept at `max_bytes` at most.
    pub fn new(file: File, max_bytes: u64) -> io::Result<Self> {
        let length_bytes = file.metadata()?.len();
        Ok(Self { file, length_bytes, max_bytes })
    }

    /// Appends output. What cannot be written (a full disk) is lost: the guest does not wait for
    /// its log.
    pub fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.length_bytes >= self.max_bytes && self.drop_older_half().is_err() {
                return;
            }
            let room = usize::try_from(self.max_bytes - self.length_bytes).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if now.is_empty() || self.file.write_all_at(now, self.length_bytes).is_err() {
                return;
            }
            self.length_bytes += now.len() as u64;
            bytes = later;
        }
    }

    fn drop_older_half(&mut self) -> io::Result<()> {
        let end = self.length_bytes;
        let mut from = self.line_start(end.saturating_sub(self.max_bytes / 2))?;
        let mut to = 0;
        let mut piece = [0; PIECE_BYTES];
        while from < end {
            let length = piece.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            let part = &mut piece[..length];
            self.file.read_exact_at(part, from)?;
            self.file.write_all_at(part, to)?;
            from += length as u64;
            to += length as u64;
        }
        self.file.set_len(to)?;
        self.length_bytes = to;
        Ok(())
    }

    /// The start of the first line after `from`; `from` itself when no line ends soon.
    fn line_start(&self, from: u64) -> io::Result<u64> {
        let mut piece = [0; PIECE_BYTES];
        let count = self.file.read_at(&mut piece, from)?;
        let newline = piece.iter().take(count).position(|byte| *byte == b'\n');
        Ok(newline.map_or(from, |at| from + at as u64 + 1))
    }
}
