//! What two pagers send each other over a stream: requests for runs, and answers.
//!
//! All numbers are little-endian.
//!
//! | request, 16 bytes | |
//! | --- | --- |
//! | 0..4 | the request's number, chosen by who asks |
//! | 4..8 | the layer, by its place in the list that `vmmd` gave to who answers |
//! | 8..12 | the run |
//! | 12..16 | zero |
//!
//! | answer, 16 bytes and the run | |
//! | --- | --- |
//! | 0..4 | the request's number |
//! | 4..8 | [`Kind`]: 0: the run's bytes follow; 1: the run cannot be had; 2: the run follows as one LZ4 block, which is shorter |
//! | 8..12 | how many bytes follow |
//! | 12..16 | zero |
//!
//! Answers may come in any order. A run that is zero is known by its digest and is never asked for,
//! so there is no shorter answer for one.

use patina_control::pager::RUN_BYTES;
use std::io::{self, Read};

/// Length of a request, and of an answer without its bytes.
pub const HEADER_BYTES: usize = 16;
const _: () = assert!(RUN_BYTES <= u32::MAX as u64);

/// A request for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub number: u32,
    /// The layer.
    pub layer: u32,
    /// The run.
    pub run: u32,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The run's bytes follow.
    Bytes,
    /// The run cannot be had.
    Refused,
    /// The run follows as one LZ4 block.
    Lz4,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The number of the request.
    pub number: u32,
    /// What it is.
    pub kind: Kind,
    /// How many bytes follow.
    pub bytes: u32,
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn encode(words: [u32; 4]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    for (bytes, word) in header.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    header
}

fn read_words(stream: &mut impl Read) -> io::Result<[u32; 4]> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "it has closed the connection"),
        _ => error,
    })?;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(header.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    if words[3] == 0 { Ok(words) } else { Err(invalid("a reserved field is not zero")) }
}

impl Request {
    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        encode([self.number, self.layer, self.run, 0])
    }

    /// Reads the next one.
    ///
    /// # Errors
    /// InvalidData: it is none. The stream's.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let [number, layer, run, _] = read_words(stream)?;
        Ok(Self { number, layer, run })
    }
}

impl Answer {
    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let kind = match self.kind {
            Kind::Bytes => 0,
            Kind::Refused => 1,
            Kind::Lz4 => 2,
        };
        encode([self.number, kind, self.bytes, 0])
    }

    /// Reads the next one. What follows it is at most a run.
    ///
    /// # Errors
    /// InvalidData: it is none. The stream's.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let [number, kind, bytes, _] = read_words(stream)?;
        let kind = match (kind, u64::from(bytes)) {
            (0, 1..=RUN_BYTES) => Kind::Bytes,
            (1, 0) => Kind::Refused,
            (2, 1..RUN_BYTES) => Kind::Lz4,
            (0..=2, _) => return Err(invalid("an answer has a length that no run has")),
            _ => return Err(invalid("an answer is of no known kind")),
        };
        Ok(Self { number, kind, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u32, layer: u32, run: u32, bytes in 1..=RUN_BYTES as u32) {
            let request = Request { number, layer, run };
            prop_assert_eq!(Request::read(&mut &request.encode()[..]).unwrap(), request);
            let answer = Answer { number, kind: Kind::Bytes, bytes };
            prop_assert_eq!(Answer::read(&mut &answer.encode()[..]).unwrap(), answer);
            let compressed = Answer { number, kind: Kind::Lz4, bytes: bytes.min(RUN_BYTES as u32 - 1) };
            prop_assert_eq!(Answer::read(&mut &compressed.encode()[..]).unwrap(), compressed);
            let refused = Answer { number, kind: Kind::Refused, bytes: 0 };
            prop_assert_eq!(Answer::read(&mut &refused.encode()[..]).unwrap(), refused);
        }

        #[test]
        fn no_bytes_announce_more_than_a_run(header: [u8; HEADER_BYTES]) {
            if let Ok(answer) = Answer::read(&mut &header[..]) {
                prop_assert!(u64::from(answer.bytes) <= RUN_BYTES);
                prop_assert_eq!(answer.kind == Kind::Refused, answer.bytes == 0);
                prop_assert_eq!(answer.encode(), header);
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let valid = Answer { number: 7, kind: Kind::Bytes, bytes: 4096 }.encode();
        let with = |at: usize, byte: u8| {
            let mut header = valid;
            header[at] = byte;
            Answer::read(&mut &header[..])
        };
        assert!(with(0, 9).is_ok());
        for (at, byte) in [(4, 3), (4, 1), (7, 1), (9, 0), (10, 2), (11, 1), (12, 1), (15, 1)] {
            assert!(with(at, byte).is_err(), "byte {at} is {byte}");
        }
        assert!(Answer::read(&mut &valid[..15]).is_err(), "it is cut short");
    }
}
