//! Splits received bytes into lines. The memory is bounded by the greatest length of a line plus
//! the last read.

/// The peer sent a line longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {max_bytes} bytes")]
pub struct TooLong {
    /// The limit.
    pub max_bytes: usize,
}

/// Bytes that were read and not taken yet. It does no I/O: the reader adds the bytes, and takes all
/// complete lines before it reads again.
///
/// ```
/// let mut lines = patina_abi::lines::LineBuffer::new(8);
/// lines.push(b"one\ntw");
/// assert_eq!(lines.next_line(), Ok(Some(b"one".to_vec())));
/// assert_eq!(lines.next_line(), Ok(None));
/// lines.push(b"o\n");
/// assert_eq!(lines.next_line(), Ok(Some(b"two".to_vec())));
/// ```
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Bytes at the start of `bytes` that are known to hold no newline.
    scanned_bytes: usize,
    max_bytes: usize,
}

impl LineBuffer {
    /// For lines of at most `max_bytes`, newline included.
    #[must_use]
    pub const fn new(max_bytes: usize) -> Self {
        Self { bytes: Vec::new(), scanned_bytes: 0, max_bytes }
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The end of the buffer, to read into without a copy. What is there already must stay as it
    /// is.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether nothing is left, not even the beginning of a line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the next whole line, without its newline.
    ///
    /// # Errors
    /// The line is too long; nothing more can be taken.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let new = self.bytes.get(self.scanned_bytes..).unwrap_or_default();
        match new.iter().position(|byte| *byte == b'\n') {
            Some(position) if self.scanned_bytes + position < self.max_bytes => {
                let end = self.scanned_bytes + position;
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                self.scanned_bytes = 0;
                Ok(Some(line))
            }
            None if self.bytes.len() < self.max_bytes => {
                self.scanned_bytes = self.bytes.len();
                Ok(None)
            }
            _ => Err(TooLong { max_bytes: self.max_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_counts_the_newline() {
        let mut lines = LineBuffer::new(4);
        lines.push(b"abc\nabcd");
        assert_eq!(lines.next_line(), Ok(Some(b"abc".to_vec())));
        assert_eq!(lines.next_line(), Err(TooLong { max_bytes: 4 }));
        let mut lines = LineBuffer::new(4);
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
            let mut lines = LineBuffer::new(32);
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
            prop_assert!(lines.is_empty());
        }
    }
}
