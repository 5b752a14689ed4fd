//! A connection together with its stream on the host.

use super::connection::{BUFFER_BYTES, Connection, Quiet};
use super::dialer::{DialError, Done};
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::devices::Memory;
use crate::devices::virtio::queue::{Chain, QueueError, Side};
use patina_control::best_effort;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use std::os::unix::net::UnixStream;

/// A connection and its stream.
pub struct Stream {
    /// The protocol's side.
    pub connection: Connection,
    /// In the list of those that may have something for the guest.
    pub is_listed: bool,
    stream: UnixStream,
    /// From the guest, accepted and not yet taken by the stream; at most [`BUFFER_BYTES`].
    unsent: VecDeque<u8>,
    may_be_readable: bool,
    peer_is_gone: bool,
    watches_room: bool,
    done: Option<Done>,
}

/// The outcome of a read for the guest.
pub enum Read {
    /// So many bytes, in the chain.
    Data(u32),
    /// Nothing now, or nothing ever again.
    Nothing,
}

impl Stream {
    /// Of a connection that the guest asked for (without `done`) or that the host dials.
    /// `done` comes back when the stream cannot be made non-blocking.
    pub fn new(connection: Connection, stream: UnixStream, done: Option<Done>) -> Result<Self, Option<Done>> {
        if stream.set_nonblocking(true).is_err() {
            return Err(done);
        }
        Ok(Self {
            connection,

            is_listed: false,
            stream,
            unsent: VecDeque::new(),
            may_be_readable: true,
            peer_is_gone: false,
            watches_room: false,
            done,
        })
    }

    /// For the event list.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Room in the stream is news.
    pub fn watches_room(&self) -> bool {
        self.watches_room
    }

    /// Whether [`Stream::watches_room`] has just changed.
    pub fn must_watch_room_anew(&mut self) -> bool {
        let wanted = !self.unsent.is_empty();
        std::mem::replace(&mut self.watches_room, wanted) != wanted
    }

    /// Reports the outcome of the dial, if there was a dial and its outcome was not reported yet.
    pub fn tell(&mut self, result: Result<(), DialError>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }

    /// See [`Connection::quiet`]; here nothing waits in either direction, nor has the host's end
    /// been closed.
    pub fn quiet(&self) -> Option<Quiet> {
        let mut news = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN | PollFlags::RDHUP)];
        let has_news = poll(&mut news, Some(&Timespec::default())) != Ok(0);
        if has_news || self.peer_is_gone || !self.unsent.is_empty() {
            return None;
        }
        self.connection.quiet()
    }

    /// The stream has news.
    pub fn event(&mut self, peer_is_gone: bool) {
        self.may_be_readable = true;
        if peer_is_gone {
            self.peer_is_gone = true;
            if self.connection.has_ended(SHUTDOWN_SEND) {
                self.connection.shut(SHUTDOWN_BOTH);
            }
        }
        self.flush();
    }

    /// The program that dialed has closed its stream before the answer.
    pub fn is_given_up(&self) -> bool {
        self.peer_is_gone && !self.connection.is_open()
    }

    /// There may be a packet for the guest.
    pub fn may_have_output(&mut self) -> bool {
        let may_send = self.connection.may_send() > 0;
        if self.may_be_readable && !may_send {
            self.connection.starved();
        }
        self.connection.has_control() || self.may_be_readable && may_send
    }

    /// Data came from the guest, `length` bytes at `offset` of a chain; it is within the credit.
    pub fn take(
        &mut self,
        memory: &Memory,
        chain: &Chain,
        offset: u32,
        length: u32,
    ) -> Result<(), QueueError> {
        let mut done = 0;
        if self.unsent.is_empty() && length > 0 && !self.connection.has_ended(SHUTDOWN_RECEIVE) {
            let slices = chain.slices(memory, Side::Readable, offset, length as usize)?;
            match slices.write_to(self.stream.as_fd()) {
                Ok(count) => done = count as u32,
                Err(error) if is_temporary(&error) => {}
                Err(_) => self.connection.shut(SHUTDOWN_RECEIVE),
            }
        }
        if self.connection.has_ended(SHUTDOWN_RECEIVE) {
            // Nobody will ever read it.
            done = length;
        }
        self.connection.forwarded(done);
        if done < length {
            let mut rest = vec![0; (length - done) as usize];
            chain.read(memory, offset + done, &mut rest)?;
            self.unsent.extend(rest);
            debug_assert!(self.unsent.len() <= BUFFER_BYTES as usize, "credit bounds what waits");
        }
        Ok(())
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            let result = self.stream.write(self.unsent.as_slices().0);
            match result {
                Ok(count) => {
                    self.unsent.drain(..count);
                    self.connection.forwarded(count as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.connection.shut(SHUTDOWN_RECEIVE);
                    self.connection.forwarded(self.unsent.len() as u32);
                    self.unsent.clear();
                }
            }
        }
        if self.unsent.capacity() > 0 {
            self.unsent = VecDeque::new();
        }
        self.pass_shutdown();
    }

    /// Tells the host's end which directions the guest has ended, once its data is out.
    pub fn pass_shutdown(&mut self) {
        if self.connection.guest_has_shut(SHUTDOWN_RECEIVE) {
            best_effort(self.stream.shutdown(Shutdown::Read), "a peer that is gone need not be told");
        }
        if self.connection.guest_has_shut(SHUTDOWN_SEND) && self.unsent.is_empty() {
            best_effort(self.stream.shutdown(Shutdown::Write), "a peer that is gone need not be told");
        }
    }

    /// The guest has ended the connection, and all its data has been written.
    pub fn is_finished(&self) -> bool {
        self.connection.guest_has_shut(SHUTDOWN_BOTH) && self.unsent.is_empty()
    }

    /// Reads from the stream into a chain for the guest, from `offset` on.
    pub fn read(&mut self, memory: &Memory, chain: &Chain, offset: u32) -> Result<Read, QueueError> {
        if !self.may_be_readable || !self.connection.is_open() {
            return Ok(Read::Nothing);
        }
        let length = self.connection.may_send().min(BUFFER_BYTES);
        if length == 0 {
            return Ok(Read::Nothing);
        }
        let available = chain.writable_bytes();
        let length = match available.checked_sub(offset) {
            // A buffer for a header alone would never let any data through.
            None | Some(0) => return Err(QueueError::Short { offset, length: 1, available }),
            Some(room) => room.min(length),
        };

        let slices = chain.slices(memory, Side::Writable, offset, length as usize)?;
        match slices.read_from(self.stream.as_fd()) {
            Ok(0) => {
                self.may_be_readable = false;
                self.connection.shut(if self.peer_is_gone { SHUTDOWN_BOTH } else { SHUTDOWN_SEND });
            }
            Ok(count) => return Ok(Read::Data(count as u32)),
            Err(error) if is_temporary(&error) => {
                self.may_be_readable = error.kind() == ErrorKind::Interrupted;
            }
            Err(_) => {
                self.may_be_readable = false;
                self.connection.shut(SHUTDOWN_BOTH);
            }
        }
        Ok(Read::Nothing)
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
