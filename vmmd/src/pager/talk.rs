//! The connection to the pager: lines, and descriptors that come with them.

use super::error::PagerError;
use patina_abi::{LINE_MAX_BYTES, lines::LineBuffer};
use patina_control::{
    pager::{FromPager, ToPager, VERSION},
    rights,
};
use std::{
    collections::VecDeque,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};
use tokio::{io::Interest, net::UnixStream, time::timeout};

/// How long the pager may take to read a line, and to answer it.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Talk {
    stream: UnixStream,
    input: LineBuffer,
    /// Those that came, and were not taken with their line yet.
    descriptors: VecDeque<OwnedFd>,
}

impl Talk {
    /// That over a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, input: LineBuffer::new(LINE_MAX_BYTES), descriptors: VecDeque::new() }
    }

    /// Sends a line with its descriptors.
    ///
    /// # Errors
    /// The connection broke, or the pager does not read.
    pub async fn send(&self, message: &ToPager, descriptors: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
        let mut line = serde_json::to_vec(message).map_err(PagerError::Parse)?;
        line.push(b'\n');
        let write = async {
            let mut sent = 0;
            while let Some(rest) = line.get(sent..).filter(|rest| !rest.is_empty()) {
                // All descriptors go with the first byte.
                let given = if sent == 0 { descriptors } else { &[] };
                let part = || rights::send_part(&self.stream, rest, given);
                sent += match part() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.stream.async_io(Interest::WRITABLE, part).await?
                    }
                    other => other?,
                };
            }
            Ok(())
        };
        timeout(PATIENCE, write).await.map_err(|_| PagerError::Timeout(PATIENCE))?
    }

    /// The next line, with its descriptor if its kind has one. May be dropped and called again.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<(FromPager, Option<OwnedFd>), PagerError> {
        loop {
            if let Some(line) = self.input.next_line()? {
                // One that is not understood may have a descriptor: which belongs to which line
                // nobody knows any longer.
                let message = serde_json::from_slice(&line).map_err(PagerError::Parse)?;
                let descriptor = match message {
                    FromPager::Memfd { .. } | FromPager::Demand { .. } => {
                        Some(self.descriptors.pop_front().ok_or(PagerError::NoDescriptor)?)
                    }
                    _ => None,
                };
                return Ok((message, descriptor));
            }
            let mut chunk = [0; 8192];
            let read = || rights::receive(&self.stream, &mut chunk);
            let (length, descriptors) = self.stream.async_io(Interest::READABLE, read).await?;
            if length == 0 {
                return Err(PagerError::Closed);
            }
            self.input.push(chunk.get(..length).unwrap_or_default());
            self.descriptors.extend(descriptors);
        }
    }
}

/// Waits for the pager's first line.
///
/// # Errors
/// It is another line, or of another version, or none comes.
pub async fn greet(stream: UnixStream) -> Result<Talk, PagerError> {
    let mut talk = Talk::new(stream);
    let hello = timeout(PATIENCE, talk.next()).await.map_err(|_| PagerError::Timeout(PATIENCE))??;
    match hello.0 {
        FromPager::Hello { version: VERSION } => Ok(talk),
        FromPager::Hello { version } => Err(PagerError::Version(version)),
        other => {
            tracing::error!(?other, "the pager's first line");
            Err(PagerError::Closed)
        }
    }
}
