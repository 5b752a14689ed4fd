//! Lines from a peer, never more than one line's greatest length of them in memory.

use crate::sys::input::append;
use rustix::io::Errno;
use std::os::fd::AsFd;

/// How much is read at once. Room that receives nothing costs nothing.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Bytes.
    Some,
    /// Nothing for now.
    Nothing,
    /// The peer sends no more.
    End,
}

/// The peer sent a line longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {max_bytes} bytes")]
pub struct TooLong {
    /// The limit.
    pub max_bytes: usize,
}

/// Cuts what is read into lines.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that are known to hold no newline.
    scanned_bytes: usize,
    max_bytes: usize,
}

impl Lines {
    /// For lines of at most `max_bytes`, newline included.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { buffer: Vec::new(), scanned_bytes: 0, max_bytes }
    }

    /// Reads once.
    ///
    /// # Errors
    /// The kernel's; a reset connection among them.
    pub fn fill(&mut self, from: impl AsFd) -> Result<Filled, Errno> {
        match append(from, &mut self.buffer, CHUNK_BYTES) {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Filled::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Takes the next whole line, without its newline. Take all of them before the next [`Self::fill`].
    ///
    /// # Errors
    /// The line is too long; nothing more can be taken.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let new = self.buffer.get(self.scanned_bytes..).unwrap_or_default();
        match new.iter().position(|byte| *byte == b'\n') {
            Some(position) if self.scanned_bytes + position < self.max_bytes => {
                let end = self.scanned_bytes + position;
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                self.scanned_bytes = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() < self.max_bytes => {
                self.scanned_bytes = self.buffer.len();
                Ok(None)
            }
            _ => Err(TooLong { max_bytes: self.max_bytes }),
        }
    }

    #[cfg(test)]
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_counts_the_newline() {
        let mut lines = Lines::new(4);
        lines.push(b"abc\nabcd");
        assert_eq!(lines.next_line(), Ok(Some(b"abc".to_vec())));
        assert_eq!(lines.next_line(), Err(TooLong { max_bytes: 4 }));
        let mut lines = Lines::new(4);
        lines.push(b"abcd\n");
        assert_eq!(lines.next_line(), Err(TooLong { max_bytes: 4 }));
    }

    proptest! {
        #[test]
        fn lines_come_out_however_they_are_cut(
            wanted in prop::collection::vec("[a-z]{0,20}", 0..20),
            cuts in prop::collection::vec(1_usize..30, 1..50),
        ) {
            let stream: Vec<u8> = wanted.iter().flat_map(|l| l.bytes().chain([b'\n'])).collect();
            let mut lines = Lines::new(32);
            let (mut got, mut rest) = (Vec::new(), stream.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.push(now);
                rest = later;
                while let Some(line) = lines.next_line().unwrap() {
                    got.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(got, wanted);
        }
    }
}
