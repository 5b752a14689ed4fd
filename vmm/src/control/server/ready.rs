//! Waits for what the control thread serves, and accepts connections.

use super::{OPENING_MAX, Server};
use crate::control::lines::Lines;
use crate::control::vm::Connections;
use crate::note::note;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// How long no connection is accepted after one could not be, for want of descriptors for example.
const REST: Duration = Duration::from_millis(100);

/// What [`Server::wait`] found ready.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) inbox: bool,
    pub(super) clock: bool,
    pub(super) listener: bool,
    pub(super) control: bool,
    pub(super) link: bool,
    pub(super) freezing: bool,
    pub(super) opening: Vec<bool>,
}

impl<D: Connections> Server<D> {
    /// Waits until something is ready.
    ///
    /// # Errors
    /// The wait for events fails.
    pub(super) fn wait(&self) -> std::io::Result<Ready> {
        let interest = |lines: &Lines| {
            PollFlags::IN | if lines.wants_write() { PollFlags::OUT } else { PollFlags::empty() }
        };
        let rest = self
            .rests_until
            .map(|until| until.saturating_duration_since((self.now)()))
            .filter(|rest| !rest.is_zero());
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.inbox.fd(), PollFlags::IN),
            PollFd::new(&self.clock, PollFlags::IN),
            // While there is no room, no connection is accepted.
            PollFd::from_borrowed_fd(
                self.listener.as_fd(),
                if self.opening.len() < OPENING_MAX && rest.is_none() {
                    PollFlags::IN
                } else {
                    PollFlags::empty()
                },
            ),
        ];
        for lines in [&self.control, &self.link].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(lines.fd(), interest(lines)));
        }
        // This client sends nothing more. Only its end is of interest.
        fds.extend(self.freezing.iter().map(|(stream, _)| PollFd::new(stream, PollFlags::RDHUP)));
        fds.extend(self.opening.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        let timeout = rest.map(|rest| Timespec {
            tv_sec: rest.as_secs().cast_signed(),
            tv_nsec: rest.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || found.next().unwrap_or(false);
        Ok(Ready {
            inbox: next(),
            clock: next(),
            listener: next(),
            control: self.control.is_some() && next(),
            link: self.link.is_some() && next(),
            freezing: self.freezing.is_some() && next(),
            opening: self.opening.iter().map(|_| next()).collect(),
        })
    }

    /// Accepts all connections that there is room for.
    pub(super) fn accept(&mut self) {
        let had_rested = self.rests_until.take().is_some();
        while self.opening.len() < OPENING_MAX {
            match (self.accept)(&self.listener) {
                Ok(stream) if stream.set_nonblocking(true).is_ok() => self.opening.push(stream),
                Ok(_) => {}
                Err(error) => return self.rest(&error, had_rested),
            }
        }
    }

    /// A connection cannot be accepted. If that is for want of descriptors, the listener stays
    /// readable: it is not looked at for a while.
    fn rest(&mut self, error: &std::io::Error, had_rested: bool) {
        use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) {
            return;
        }
        if !had_rested {
            note(&format!("accept a connection: {error}; it is tried again"));
        }
        self.rests_until = Some((self.now)() + REST);
    }
}
