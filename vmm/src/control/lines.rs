//! JSON lines on a non-blocking Unix socket. The length of a line bounds the input, and
//! [`OUT_MAX_BYTES`] bounds the output that waits. The connection of a peer that does not read is
//! closed, so the vmm's memory stays bounded.

use crate::note::note;
use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::{LineBuffer, TooLong};
use serde::Serialize;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Most bytes that wait for a peer to read.
pub const OUT_MAX_BYTES: usize = 16 * LINE_MAX_BYTES;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The peer has closed.
    #[error("the peer has closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("use the connection")]
    Io(#[source] std::io::Error),
    /// The peer sends a line that is too long.
    #[error("read a line")]
    TooLong(#[from] TooLong),
    /// The peer does not read.
    #[error("write a line: the peer has left {OUT_MAX_BYTES} bytes unread")]
    NotReading,
}

/// A connection of lines.
#[derive(Debug)]
pub struct Lines {
    stream: UnixStream,
    input: LineBuffer,
    output: Vec<u8>,
}

impl Lines {
    /// Takes a connected socket over and makes it non-blocking.
    ///
    /// # Errors
    /// The socket refuses.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: LineBuffer::new(LINE_MAX_BYTES), output: Vec::new() })
    }

    /// As [`Self::new`], but logs an error instead of returning it: the peer finds out by itself
    /// that the connection is closed. `what` names the connection in the log.
    #[must_use]
    pub fn noted(stream: UnixStream, what: &str) -> Option<Self> {
        Self::new(stream)
            .inspect_err(|error| note(&format!("{what}: make the socket non-blocking: {error}")))
            .ok()
    }

    /// The socket.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// The lines that have arrived in full, without their newlines.
    ///
    /// # Errors
    /// The connection has ended. Lines that arrived before are dropped, as their sender would not
    /// hear an answer.
    pub fn receive(&mut self) -> Result<Vec<Vec<u8>>, LinesError> {
        let mut chunk = [0; 4096];
        let mut lines = Vec::new();
        // At most one line's length at a time, so that a peer that floods does not delay the
        // others.
        for _ in 0..LINE_MAX_BYTES / chunk.len() {
            let length = match self.stream.read(&mut chunk) {
                Ok(0) if lines.is_empty() => return Err(LinesError::Closed),
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(LinesError::Io(error)),
            };
            self.input.push(&chunk[..length]);
            while let Some(line) = self.input.next_line()? {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// Queues one message and writes what the socket accepts.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), LinesError> {
        serde_json::to_writer(&mut self.output, message).map_err(|error| LinesError::Io(error.into()))?;
        self.output.push(b'\n');
        self.flush()?;
        if self.output.len() > OUT_MAX_BYTES {
            return Err(LinesError::NotReading);
        }
        Ok(())
    }

    /// Writes as much of the queued output as the socket accepts.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn flush(&mut self) -> Result<(), LinesError> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(LinesError::Closed),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LinesError::Io(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Lines, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Lines::new(ours).expect("non-blocking"), theirs)
    }

    #[test]
    fn lines_arrive_whole_whatever_the_pieces() {
        let (mut lines, mut peer) = pair();
        peer.write_all(b"one\ntw").expect("write");
        assert_eq!(lines.receive().expect("open"), [b"one".to_vec()]);
        peer.write_all(b"o\n\n").expect("write");
        assert_eq!(lines.receive().expect("open"), [b"two".to_vec(), b"".to_vec()]);
        assert!(lines.receive().expect("open").is_empty());
        drop(peer);
        assert!(matches!(lines.receive(), Err(LinesError::Closed)));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut lines, mut peer) = pair();
        let writer = std::thread::spawn(move || peer.write_all(&vec![b'x'; 64 * LINE_MAX_BYTES]).is_err());
        let error = loop {
            if let Err(error) = lines.receive() {
                break error;
            }
        };
        assert!(matches!(error, LinesError::TooLong(_)));
        drop(lines);
        assert!(writer.join().expect("the writer"), "the peer sees the connection go");
    }

    #[test]
    fn a_line_one_byte_too_long_is_refused_even_if_its_end_comes_with_it() {
        let longest = |bytes: usize| {
            let (mut lines, mut peer) = pair();
            // After a short one, so that the long one's end comes with what would still be short
            // enough.
            let mut line = b"short\n".to_vec();
            line.extend(vec![b'x'; bytes - 1]);
            line.push(b'\n');
            let writer = std::thread::spawn(move || peer.write_all(&line).is_ok());
            let heard = loop {
                match lines.receive() {
                    Ok(heard) if heard.is_empty() || heard == [b"short"] => {}
                    other => break other,
                }
            };
            drop(lines);
            writer.join().expect("the writer");
            heard
        };
        assert_eq!(longest(LINE_MAX_BYTES).expect("a line")[0].len(), LINE_MAX_BYTES - 1);
        assert!(matches!(longest(LINE_MAX_BYTES + 1), Err(LinesError::TooLong(_))));
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let (mut lines, _peer) = pair();
        let message = "x".repeat(LINE_MAX_BYTES);
        let error = (0..1000).find_map(|_| lines.send(&message).err()).expect("given up");
        assert!(matches!(error, LinesError::NotReading));
        assert!(lines.output.len() <= OUT_MAX_BYTES + 2 * LINE_MAX_BYTES);
    }
}
