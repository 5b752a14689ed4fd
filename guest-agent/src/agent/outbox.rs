//! Bytes that wait to be sent to a peer, which may be slow.

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::AsFd;

/// Capacity that an empty outbox keeps, bytes: a frame's worth, so that streaming allocates once.
const KEEP_BYTES: usize = 72 * 1024;

/// Bytes that were not sent yet. Its owner bounds it: it adds only while there is room.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent_bytes: usize,
}

impl From<Vec<u8>> for Outbox {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, sent_bytes: 0 }
    }
}

impl Outbox {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent_bytes
    }

    /// Whether none wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The end of the buffer, to read into without a copy. What is there already must stay as it
    /// is.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Sends what a socket takes now. A socket whose peer has gone is EPIPE, never a signal.
    ///
    /// # Errors
    /// The kernel's, except that it takes nothing for now.
    pub fn send(&mut self, socket: impl AsFd) -> Result<(), Errno> {
        self.flush(|bytes| rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
    }

    /// Writes what a non-blocking pipe or terminal takes now. The caller blocks or ignores SIGPIPE.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn write(&mut self, file: impl AsFd) -> Result<(), Errno> {
        self.flush(|bytes| rustix::io::write(&file, bytes))
    }

    /// Under a flow that never lets it run empty, the buffer must not grow by what is long gone.
    fn forget_sent(&mut self) {
        if self.sent_bytes >= self.len() {
            self.bytes.drain(..self.sent_bytes);
            self.sent_bytes = 0;
        }
    }

    fn flush(&mut self, mut put: impl FnMut(&[u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
        while let Some(rest) = self.bytes.get(self.sent_bytes..).filter(|rest| !rest.is_empty()) {
            match put(rest) {
                Ok(count) => self.sent_bytes += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.forget_sent();
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.sent_bytes = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_a_full_socket_does_not_take_waits_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let wanted: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let mut outbox = Outbox::default();
        outbox.push(&wanted);
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        near.set_nonblocking(true).unwrap();
        while !outbox.is_empty() {
            outbox.send(&near).unwrap();
            let mut fds = [rustix::event::PollFd::new(&near, rustix::event::PollFlags::OUT)];
            rustix::event::poll(&mut fds, None).unwrap();
        }
        drop(near);
        assert_eq!(reader.join().unwrap(), wanted);
    }

    #[test]
    fn a_peer_that_went_is_an_error() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut outbox = Outbox::default();
        outbox.push(b"x");
        assert_eq!(outbox.send(&near), Err(Errno::PIPE));
    }
}
