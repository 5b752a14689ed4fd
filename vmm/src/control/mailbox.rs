//! Passes events from the VM's other threads to the control thread.

use super::vm::{Failure, Reply};
use patina_control::best_effort;
use patina_control::end::End;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Most links that wait for the control thread. A guest can connect as often as it likes; only the
/// last one counts.
pub const LINKS_MAX: usize = 4;

/// Where a link comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Whether the link was the parent's. Lines on it may have been sent in the parent.
    pub is_carried_on: bool,
    /// Whether the guest's end has a port that its kernel binds only for a program with privileges
    /// ([`patina_abi::AGENT_PORTS`]).
    pub is_privileged: bool,
}

/// An event for the control thread.
#[derive(Debug)]
pub enum Event {
    /// The VM has ended.
    End(End),
    /// The guest's agent has connected to its link's port. Or, in a clone, the agent's link to the
    /// parent continues here.
    Link {
        /// The link.
        stream: UnixStream,
        /// Where it comes from.
        origin: Origin,
    },
    /// The oldest order that is answered was carried out.
    Done(Result<Reply, Failure>),
}

/// The sending side; one for each thread.
#[derive(Debug, Clone)]
pub struct Mailbox {
    events: Sender<Event>,
    wake: Arc<OwnedFd>,
    links: Arc<AtomicUsize>,
}

/// The control thread's side.
#[derive(Debug)]
pub struct Inbox {
    events: Receiver<Event>,
    wake: Arc<OwnedFd>,
    links: Arc<AtomicUsize>,
}

/// Makes both sides.
///
/// # Errors
/// The kernel gives no eventfd.
pub fn mailbox() -> rustix::io::Result<(Mailbox, Inbox)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = channel();
    let links = Arc::new(AtomicUsize::new(0));
    let mailbox = Mailbox { events: sender, wake: Arc::clone(&wake), links: Arc::clone(&links) };
    Ok((mailbox, Inbox { events: receiver, wake, links }))
}

impl Mailbox {
    /// Sends a new link. If [`LINKS_MAX`] links wait already, closes the stream and returns false.
    pub fn send_link(&self, stream: UnixStream, origin: Origin) -> bool {
        let admit = |waiting: usize| (waiting < LINKS_MAX).then_some(waiting + 1);
        let is_admitted = self.links.fetch_update(Ordering::AcqRel, Ordering::Acquire, admit).is_ok();
        if is_admitted {
            self.send(Event::Link { stream, origin });
        }
        is_admitted
    }

    /// Sends an event to the control thread. If that thread has ended, the process is ending and
    /// the event is dropped.
    pub fn send(&self, event: Event) {
        if self.events.send(event).is_ok() {
            best_effort(
                rustix::io::write(&self.wake, &1u64.to_ne_bytes()),
                "the only error is a full counter, and then the thread is awake already",
            );
        }
    }
}

impl Inbox {
    /// Readable when there are events.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The events so far.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        let mut count = [0; 8];
        best_effort(
            rustix::io::read(&self.wake, &mut count),
            "nothing to read: the events were taken with an earlier wake-up",
        );
        let events: Vec<Event> = self.events.try_iter().collect();
        let links = events.iter().filter(|event| matches!(event, Event::Link { .. })).count();
        self.links.fetch_sub(links, Ordering::AcqRel);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_links_is_cut_until_they_are_taken() {
        let (mailbox, inbox) = mailbox().expect("a mailbox");
        let link = || UnixStream::pair().expect("a pair").0;
        let admitted = (0..100).filter(|_| mailbox.send_link(link(), Origin::default())).count();
        assert_eq!(admitted, LINKS_MAX);
        assert_eq!(inbox.take().len(), LINKS_MAX);
        assert!(mailbox.send_link(link(), Origin::default()));
    }
}
