//! JSON lines with descriptors on a non-blocking Unix socket. What a peer sends is bounded by the
//! length of a line and a number of descriptors, and what waits for it to read by a number of
//! bytes.

use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::{LineBuffer, TooLong};
use patina_control::rights;
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most bytes that wait for a peer to read.
const OUT_MAX_BYTES: usize = 16 * LINE_MAX_BYTES;
/// Most descriptors that came and belong to no line yet.
const DESCRIPTORS_MAX: usize = 2 * rights::DESCRIPTORS_MAX;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinesError {
    /// The peer has closed.
    #[error("it has closed its socket")]
    Closed,
    /// Reading or writing failed.
    #[error("use its socket")]
    Io(#[from] io::Error),
    /// The peer sends a line that is too long.
    #[error("read its socket")]
    TooLong(#[from] TooLong),
    /// The peer does not read.
    #[error("it leaves {OUT_MAX_BYTES} bytes unread")]
    NotReading,
    /// The peer sends descriptors without a line.
    #[error("it sends more descriptors than its lines need")]
    Descriptors,
    /// A message cannot be written.
    #[error("write a line")]
    Encode(#[from] serde_json::Error),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: UnixStream,
    input: LineBuffer,
    descriptors: VecDeque<OwnedFd>,
    /// What waits for the peer to read, with the descriptors that go with its first byte.
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    output_bytes: usize,
}

impl Lines {
    /// Takes a connected socket over and makes it non-blocking.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = LineBuffer::new(LINE_MAX_BYTES);
        Ok(Self { stream, input, descriptors: VecDeque::new(), output: VecDeque::new(), output_bytes: 0 })
    }

    /// The socket.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether something waits to be written.
    pub(crate) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what has come, once. False: nothing has.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn fill(&mut self) -> Result<bool, LinesError> {
        let mut chunk = [0; 8192];
        match rights::receive(&self.stream, &mut chunk) {
            Ok((0, _)) => Err(LinesError::Closed),
            Ok((length, descriptors)) => {
                self.input.push(&chunk[..length]);
                self.descriptors.extend(descriptors);
                if self.descriptors.len() > DESCRIPTORS_MAX {
                    return Err(LinesError::Descriptors);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole line.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn next_line(&mut self) -> Result<Option<Vec<u8>>, LinesError> {
        Ok(self.input.next_line()?)
    }

    /// Takes the descriptors that came with a line: as many as its kind has. None: fewer came.
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[OwnedFd; N]> {
        let taken: Vec<OwnedFd> = self.descriptors.drain(..N.min(self.descriptors.len())).collect();
        taken.try_into().ok()
    }

    /// Queues a message and writes what the socket accepts.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn send(
        &mut self,
        message: &impl Serialize,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), LinesError> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.output_bytes += line.len();
        self.output.push_back((line, descriptors));
        self.flush()?;
        if self.output_bytes > OUT_MAX_BYTES { Err(LinesError::NotReading) } else { Ok(()) }
    }

    /// Writes what waits, as far as the socket accepts it.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn flush(&mut self) -> Result<(), LinesError> {
        while let Some((line, descriptors)) = self.output.front_mut() {
            let given: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match rights::send_part(&self.stream, line, &given) {
                Ok(sent) => {
                    self.output_bytes -= sent;
                    descriptors.clear();
                    line.drain(..sent);
                    if line.is_empty() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
