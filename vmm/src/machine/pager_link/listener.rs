//! The side of the connection to the pager from which is read.

use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::LineBuffer;
use patina_control::pager::PagerToVm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

/// See the module.
pub(super) struct Listener {
    stream: Arc<UnixStream>,
    input: LineBuffer,
}

impl Listener {
    pub(super) fn new(stream: Arc<UnixStream>) -> Self {
        Self { stream, input: LineBuffer::new(LINE_MAX_BYTES) }
    }

    /// The next line. Waits for it, until `deadline` if there is one. The jail does not allow a
    /// time limit of the socket's own.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> std::io::Result<PagerToVm> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(line) = self.input.next_line().map_err(std::io::Error::other)? {
                return Ok(serde_json::from_slice(&line)?);
            }
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.input.push(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(deadline)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> std::io::Result<()> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
