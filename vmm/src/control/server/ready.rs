//! Waits for what the control thread serves.

use super::{OPENING_MAX, Server};
use crate::control::lines::Lines;
use crate::control::vm::Connections;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd as _;

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
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.inbox.fd(), PollFlags::IN),
            PollFd::new(&self.clock, PollFlags::IN),
            // While there is no room, no connection is accepted.
            PollFd::from_borrowed_fd(
                self.listener.as_fd(),
                if self.opening.len() < OPENING_MAX { PollFlags::IN } else { PollFlags::empty() },
            ),
        ];
        for lines in [&self.control, &self.link].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(lines.fd(), interest(lines)));
        }
        // This client sends nothing more. Only its end is of interest.
        fds.extend(self.freezing.iter().map(|(stream, _)| PollFd::new(stream, PollFlags::RDHUP)));
        fds.extend(self.opening.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        match poll(&mut fds, None) {
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
}
