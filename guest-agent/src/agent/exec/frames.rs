//! Splits the host's bytes into frames.

use crate::sys::input::append;
use patina_abi::exec::{FrameError, FrameType, HEADER_BYTES, PAYLOAD_MAX_BYTES, parse_header};
use rustix::io::Errno;
use std::os::fd::AsFd;

pub use crate::agent::lines::Filled;

/// How much is read at once: a whole frame. Room that receives nothing costs nothing.
const CHUNK_BYTES: usize = HEADER_BYTES + PAYLOAD_MAX_BYTES;

/// A frame from the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameType,
    /// At most [`PAYLOAD_MAX_BYTES`].
    pub payload: Vec<u8>,
}

/// Holds at most one frame and what was read with it.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Reads once, at most what a frame that has begun still needs. Take all frames before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fill(&mut self, from: impl AsFd) -> Result<Filled, Errno> {
        let room_bytes = CHUNK_BYTES.saturating_sub(self.buffer.len()).max(1);
        match append(from, &mut self.buffer, room_bytes) {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Filled::Nothing),
            Err(e) => Err(e),
        }
    }

    fn header(&self) -> Option<Result<(FrameType, usize), FrameError>> {
        self.buffer.first_chunk().map(|bytes| parse_header(*bytes))
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// What was read is no frame; nothing more can be taken.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header() else { return Ok(None) };
        let (kind, length) = header?;
        let end = HEADER_BYTES + length;
        let Some(payload) = self.buffer.get(HEADER_BYTES..end).map(<[u8]>::to_vec) else { return Ok(None) };
        self.buffer.drain(..end);
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_abi::exec::header;
    use proptest::prelude::*;

    fn bytes(kind: FrameType, payload: &[u8]) -> Vec<u8> {
        [&header(kind, payload.len() as u32)[..], payload].concat()
    }

    proptest! {
        #[test]
        fn frames_come_out_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..20),
            cuts in prop::collection::vec(1_usize..40, 1..40),
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|p| bytes(FrameType::Stdin, p)).collect();
            let (mut frames, mut got, mut rest) = (Frames::default(), Vec::new(), stream.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                frames.buffer.extend_from_slice(now);
                rest = later;
                while let Some(frame) = frames.next_frame().unwrap() {
                    prop_assert_eq!(frame.kind, FrameType::Stdin);
                    got.push(frame.payload);
                }
            }
            prop_assert_eq!(got, payloads);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_read() {
        let mut frames = Frames { buffer: vec![99, 0, 0, 0, 0] };
        assert_eq!(frames.next_frame(), Err(FrameError::Type(99)));
        let mut frames = Frames { buffer: vec![2, 1, 0, 1, 0] };
        assert_eq!(frames.next_frame(), Err(FrameError::Length(0x1_0001)));
    }
}
