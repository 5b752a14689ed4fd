//! The clients attached to a console.

use super::{CLIENTS_MAX, ConsoleError};
use patina_control::best_effort;
use rustix::event::epoll;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Bytes read from a client at a time.
const PIECE_BYTES: usize = 256;

/// The attached clients; an epoll of their own tells when one of them has input.
pub struct Clients {
    ready: OwnedFd,
    streams: Vec<UnixStream>,
}

impl Clients {
    /// No clients.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ready: epoll::create(epoll::CreateFlags::CLOEXEC)?, streams: Vec::new() })
    }

    /// Readable when a client has sent something, or left.
    pub fn ready(&self) -> io::Result<OwnedFd> {
        self.ready.try_clone()
    }

    /// Attaches one more.
    pub fn add(&mut self, stream: UnixStream) -> Result<(), ConsoleError> {
        if self.streams.len() >= CLIENTS_MAX {
            return Err(ConsoleError::TooManyClients);
        }
        stream.set_nonblocking(true).map_err(ConsoleError::Client)?;
        // Edges, because input stays in the socket while there is no room for it.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.ready, &stream, epoll::EventData::new_u64(0), flags)
            .map_err(|error| ConsoleError::Client(error.into()))?;
        self.streams.push(stream);
        Ok(())
    }

    /// Writes output to all clients. A client whose socket is full loses it. A client that has gone
    /// is removed.
    pub fn write(&mut self, bytes: &[u8]) {
        self.streams.retain_mut(|stream| {
            let mut rest = bytes;
            while !rest.is_empty() {
                match stream.write(rest) {
                    Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
            true
        });
    }

    /// Takes input from all clients until `input` holds `max_bytes`. Removes clients that have
    /// gone.
    pub fn read(&mut self, input: &mut VecDeque<u8>, max_bytes: usize) {
        let mut events = Vec::with_capacity(CLIENTS_MAX);
        let now = rustix::time::Timespec::default();
        let waited = epoll::wait(&self.ready, rustix::buffer::spare_capacity(&mut events), Some(&now));
        best_effort(waited, "it takes the edges away; what they say is found out by reading");
        self.streams.retain_mut(|stream| {
            let mut piece = [0; PIECE_BYTES];
            loop {
                let room = max_bytes.saturating_sub(input.len()).min(PIECE_BYTES);
                if room == 0 {
                    return true;
                }
                match stream.read(&mut piece[..room]) {
                    Ok(0) => return false,
                    Ok(count) => input.extend(&piece[..count]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
    }
}
