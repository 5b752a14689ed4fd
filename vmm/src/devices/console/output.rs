//! Buffers the guest's output until it is written, and keeps the last few KiB of it.

use super::TAIL_BYTES;

/// Output that waits for the device thread at most, bytes.
pub const PENDING_MAX_BYTES: usize = 4096;

/// Output that waits, and the tail.
#[derive(Debug, Default)]
pub struct Output {
    pending: Vec<u8>,
    tail: Vec<u8>,
}

impl Output {
    /// Adds output. Returns true if nothing waited before, so that the device thread must be
    /// notified.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let first = self.pending.is_empty();
        self.pending.extend_from_slice(bytes);
        // Twice the tail is kept and then halved, which costs less than moving it for every byte.
        self.tail.extend_from_slice(bytes);
        if self.tail.len() >= 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
        first
    }

    /// Whether the output must be taken before more is added.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX_BYTES
    }

    /// Takes what waits.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Returns the buffer of [`Output::take`], so that it need not be allocated again.
    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.pending.is_empty() {
            buffer.clear();
            self.pending = buffer;
        }
    }

    /// The last [`TAIL_BYTES`].
    pub fn tail(&self) -> Vec<u8> {
        self.tail.get(self.tail.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default().to_vec()
    }
}
