//! Lines from a peer. At most one line of the greatest length is kept in memory.

use crate::sys::input::append;
use patina_abi::lines::{LineBuffer, TooLong};
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

/// Cuts what is read into lines.
#[derive(Debug)]
pub struct Lines {
    buffer: LineBuffer,
}

impl Lines {
    /// For lines of at most `max_bytes`, newline included.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { buffer: LineBuffer::new(max_bytes) }
    }

    /// Reads once.
    ///
    /// # Errors
    /// The kernel's; a reset connection among them.
    pub fn fill(&mut self, from: impl AsFd) -> Result<Filled, Errno> {
        match append(from, self.buffer.tail(), CHUNK_BYTES) {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Filled::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Takes the next whole line, without its newline. Take all of them before the next
    /// [`Self::fill`].
    ///
    /// # Errors
    /// The line is too long; nothing more can be taken.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        self.buffer.next_line()
    }
}
