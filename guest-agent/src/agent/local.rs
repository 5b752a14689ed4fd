//! One program on the agent's socket ([`patina_abi::local`]).
//!
//! A program's calls are taken one after another: the next line is looked at when the last one is
//! answered and its answer is on the way. So a program can have one call at the host and one answer
//! in memory, whatever it sends; what it sends beyond waits in its own socket buffer.

use super::lines::{Filled, Lines};
use super::outbox::Outbox;
use patina_abi::LINE_MAX_BYTES;
use patina_abi::link::{Answer, CallError};
use patina_abi::local::Request;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most programs connected at once; one more gets an error line and is closed.
pub const CLIENTS_MAX: usize = 64;

/// EAGAIN, EINVAL, EMSGSIZE, ENOTCONN as codes of [`CallError`].
pub const AGAIN: i32 = libc::EAGAIN;
/// See [`AGAIN`].
pub const INVALID: i32 = libc::EINVAL;
/// See [`AGAIN`].
pub const TOO_LONG: i32 = libc::EMSGSIZE;
/// See [`AGAIN`].
pub const NOT_CONNECTED: i32 = libc::ENOTCONN;

/// Makes an error answer.
#[must_use]
pub fn refuse(code: i32, message: impl Into<String>) -> Answer {
    Answer::Error(CallError { code, message: message.into() })
}

/// A program's connection.
#[derive(Debug)]
pub struct Client {
    /// Never given twice.
    pub id: u64,
    socket: OwnedFd,
    lines: Lines,
    out: Outbox,
    /// A call is with the agent or the host.
    waits: bool,
    /// The program sends no more.
    ended: bool,
    /// Nothing more is taken from it; what is on the way is still sent.
    closing: bool,
    gone: bool,
}

impl Client {
    /// Takes a non-blocking connection.
    #[must_use]
    pub fn new(id: u64, socket: OwnedFd) -> Self {
        let (lines, out) = (Lines::new(LINE_MAX_BYTES), Outbox::default());
        Self { id, socket, lines, out, waits: false, ended: false, closing: false, gone: false }
    }

    /// The process that has connected, if it can be known.
    #[must_use]
    pub fn process(&self) -> Option<Pid> {
        rustix::net::sockopt::socket_peercred(&self.socket).ok().map(|peer| peer.pid)
    }

    /// What to wait for. Without a call in the making its hang-up is still reported.
    #[must_use]
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.waits && !self.ended && !self.closing && self.out.is_empty());
        flags.set(PollFlags::OUT, !self.out.is_empty());
        (self.socket.as_fd(), flags)
    }

    /// Goes on after `ready` was reported for its socket. Then call [`Self::next_call`] until it is
    /// done.
    pub fn drive(&mut self, ready: PollFlags) {
        if let Err(error) = self.try_drive(ready) {
            self.fail(error);
        }
    }

    fn try_drive(&mut self, ready: PollFlags) -> Result<(), Errno> {
        if ready.contains(PollFlags::OUT) {
            self.out.send(&self.socket)?;
        }
        if ready.contains(PollFlags::IN) {
            self.ended = self.lines.fill(&self.socket)? == Filled::End;
        } else if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            // Both directions are closed: nobody is left to answer.
            self.gone = true;
        }
        Ok(())
    }

    /// The next call to answer, with [`Self::answer`]; none while the last one is under way.
    pub fn next_call(&mut self) -> Option<Request> {
        if self.waits || self.closing || self.gone || !self.out.is_empty() {
            return None;
        }
        let problem = match self.lines.next_line() {
            Ok(None) => return None,
            Ok(Some(line)) => match serde_json::from_slice(&line) {
                Ok(request) => {
                    self.waits = true;
                    return Some(request);
                }
                Err(e) => refuse(INVALID, format!("read the call: the line is no call: {e}")),
            },
            Err(e) => refuse(TOO_LONG, format!("read the call: {e}")),
        };
        self.closing = true;
        self.answer(&problem);
        None
    }

    /// Answers the call under way.
    pub fn answer(&mut self, answer: &Answer) {
        self.waits = false;
        match serde_json::to_vec(answer) {
            Ok(mut line) => {
                line.push(b'\n');
                self.out.push(&line);
                if let Err(error) = self.out.send(&self.socket) {
                    self.fail(error);
                }
            }
            Err(_) => self.gone = true,
        }
    }

    /// Whether nobody is left who could hear an answer.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether the connection can be closed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.gone || (self.out.is_empty() && (self.closing || (self.ended && !self.waits)))
    }

    /// A program that breaks its connection off has what it wants; there is no one to tell.
    fn fail(&mut self, _error: Errno) {
        self.gone = true;
    }
}
