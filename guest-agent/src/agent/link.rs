//! The link to the host ([`patina_abi::link`]): connect, hello, identity, ready, requests and
//! replies.
//!
//! ```text
//!  Down ──connect──▶ Connecting ──writable: hello; or readable──▶ Up ──lost──▶ Down
//!   ▲  wait: none after a link that brought an identity, else 20 ms doubling to 2 s
//! ```
//!
//! Once a host has told who we are, hosts know us, and speak first.
//!
//! The host resets the link on purpose when it clones the machine: a new link at once is what makes
//! a clone ready soon.

use super::lines::{Filled, Lines};
use super::outbox::Outbox;
use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::TooLong;
use patina_abi::link::{FromAgent, FromHost, REQUESTS_MAX};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// First and longest wait between attempts to connect.
const WAIT_FIRST: Duration = Duration::from_millis(20);
const WAIT_LONGEST: Duration = Duration::from_secs(2);
/// What a host may leave unread before it gets no more calls, bytes: as many as it takes, each as
/// long as a line may be.
const UNREAD_MAX_BYTES: usize = REQUESTS_MAX * LINE_MAX_BYTES;

/// Why a link ended or was not made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error("connect to the host")]
    Connect(#[source] io::Error),
    /// Reading or writing failed.
    #[error("talk to the host")]
    Io(#[source] Errno),
    /// The host closed.
    #[error("the host closed the link")]
    Closed,
    /// The connection is broken: a clone begins like that.
    #[error("the link to the host was reset")]
    Reset,
    /// The host sent an endless line.
    #[error("read from the host")]
    TooLong(#[source] TooLong),
    /// The host sent what is no message.
    #[error("read from the host: invalid message")]
    Message(#[source] serde_json::Error),
    /// A message could not be written as JSON.
    #[error("write to the host")]
    Encode(#[source] serde_json::Error),
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    connecting: bool,
    lines: Lines,
    out: Outbox,
}

/// How long to wait before the next attempt.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn take(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).clamp(WAIT_FIRST, WAIT_LONGEST);
        wait
    }
}

/// The agent's end of the link.
#[derive(Debug)]
pub struct Link {
    connection: Option<Connection>,
    /// The last connection's socket. Closing it has time until there is a new one.
    ended: Option<OwnedFd>,
    /// When to connect next, while there is no connection.
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// Hosts speak first.
    known: bool,
}

impl Default for Link {
    fn default() -> Self {
        let backoff = Backoff { next: WAIT_FIRST };
        Self { connection: None, ended: None, retry_at: Some(Instant::now()), backoff, known: false }
    }
}

impl Link {
    /// Whether requests can be sent.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| !c.connecting)
    }

    /// Whether the host has left so much unread that it gets no more calls.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.out.len() >= UNREAD_MAX_BYTES)
    }

    /// When [`Self::connect`] wants to be called.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// What to wait for.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let connection = self.connection.as_ref()?;
        let says_hello = connection.connecting && !self.known;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !says_hello);
        flags.set(PollFlags::OUT, says_hello || !connection.out.is_empty());
        Some((connection.socket.as_fd(), flags))
    }

    /// Takes the socket of a new attempt, or why there is none.
    ///
    /// # Errors
    /// The attempt failed at once; [`Self::close`] it.
    pub fn connect(&mut self, socket: io::Result<OwnedFd>) -> Result<(), LinkError> {
        let socket = socket.map_err(LinkError::Connect)?;
        let (lines, out) = (Lines::new(LINE_MAX_BYTES), Outbox::default());
        self.connection = Some(Connection { socket, connecting: true, lines, out });
        self.retry_at = None;
        Ok(())
    }

    /// Ends the connection and schedules the next. The old socket is closed now or with
    /// [`Self::sweep`].
    pub fn close(&mut self, later: bool) {
        self.ended = self.connection.take().map(|c| c.socket).filter(|_| later);
        self.retry_at = Some(Instant::now() + self.backoff.take());
    }

    /// The host has told who we are: it is a host worth calling again at once.
    pub fn proven(&mut self) {
        self.known = true;
        self.backoff.next = Duration::ZERO;
    }

    /// Closes the socket of the connection before this one.
    pub fn sweep(&mut self) {
        self.ended = None;
    }

    /// Sends a message: what the socket does not take now follows when it does. Nothing without a
    /// link.
    ///
    /// # Errors
    /// The link is broken; [`Self::close`] it.
    pub fn send(&mut self, message: &FromAgent) -> Result<(), LinkError> {
        let line = encode(message)?;
        self.send_line(&line)
    }

    /// Sends a line made by [`encode`].
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn send_line(&mut self, line: &[u8]) -> Result<(), LinkError> {
        let Some(connection) = self.connection.as_mut().filter(|c| !c.connecting) else { return Ok(()) };
        connection.out.push(line);
        connection.out.send(&connection.socket).map_err(LinkError::Io)
    }

    /// Goes on after `ready` was reported for the socket; returns the messages that came.
    ///
    /// # Errors
    /// The link is broken; [`Self::close`] it. Messages that came before are lost with it.
    pub fn drive(&mut self, ready: PollFlags) -> Result<Vec<FromHost>, LinkError> {
        let Some(connection) = self.connection.as_mut() else { return Ok(Vec::new()) };
        let broken = ready.intersects(PollFlags::ERR | PollFlags::HUP);
        let became_up = connection.connecting;
        if became_up {
            if broken {
                let decided = rustix::net::sockopt::socket_error(&connection.socket)
                    .map_err(|e| LinkError::Connect(e.into()))?;
                decided.map_err(|e| LinkError::Connect(e.into()))?;
            }
            connection.connecting = false;
        }
        if became_up && !self.known {
            let agent = env!("CARGO_PKG_VERSION").to_owned();
            self.send(&FromAgent::Hello { abi: patina_abi::ABI, agent })?;
            return Ok(Vec::new());
        }
        // Known without a read that would say the same.
        if ready.contains(PollFlags::ERR) {
            return Err(LinkError::Reset);
        }
        if ready.contains(PollFlags::OUT) {
            connection.out.send(&connection.socket).map_err(LinkError::Io)?;
        }
        let mut messages = Vec::new();
        if ready.intersects(PollFlags::IN | PollFlags::HUP) {
            match connection.lines.fill(&connection.socket).map_err(LinkError::Io)? {
                Filled::End => return Err(LinkError::Closed),
                Filled::Some | Filled::Nothing => {}
            }
            while let Some(line) = connection.lines.next_line().map_err(LinkError::TooLong)? {
                messages.push(serde_json::from_slice(&line).map_err(LinkError::Message)?);
            }
        }
        Ok(messages)
    }
}

/// A message as a line.
///
/// # Errors
/// It cannot be said in JSON.
pub fn encode(message: &FromAgent) -> Result<Vec<u8>, LinkError> {
    let mut line = serde_json::to_vec(message).map_err(LinkError::Encode)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_get_rarer_and_a_proven_host_is_called_at_once() {
        let mut link = Link::default();
        let waits: Vec<u128> = (0..9).map(|_| link.backoff.take().as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000]);
        link.proven();
        assert_eq!(link.backoff.take(), Duration::ZERO);
        assert_eq!(link.backoff.take(), WAIT_FIRST);
    }

    #[test]
    fn a_refused_attempt_schedules_the_next() {
        let mut link = Link::default();
        let error = link.connect(Err(Errno::CONNREFUSED.into())).unwrap_err();
        assert!(patina_daemon::chain(&error).starts_with("connect to the host: "), "{error}");
        link.close(false);
        assert!(link.retry_at().is_some() && !link.is_up() && link.interest().is_none());
    }
}
