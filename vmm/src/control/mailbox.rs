//! What the VM's other threads tell the control thread.

use crate::api::end::End;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Something that the control thread must know.
#[derive(Debug)]
pub enum Event {
    /// The VM has ended.
    End(End),
    /// The guest's agent has connected to its link's port.
    Link(UnixStream),
}

/// The sending side; one for each thread.
#[derive(Debug, Clone)]
pub struct Mailbox {
    events: Sender<Event>,
    wake: Arc<OwnedFd>,
}

/// The control thread's side.
#[derive(Debug)]
pub struct Inbox {
    events: Receiver<Event>,
    wake: Arc<OwnedFd>,
}

/// Makes both sides.
///
/// # Errors
/// The kernel gives no eventfd.
pub fn mailbox() -> rustix::io::Result<(Mailbox, Inbox)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = channel();
    Ok((Mailbox { events: sender, wake: Arc::clone(&wake) }, Inbox { events: receiver, wake }))
}

impl Mailbox {
    /// Tells the control thread. When that one has gone, the process is ending and nobody need know.
    pub fn send(&self, event: Event) {
        if self.events.send(event).is_ok() {
            // The only error is a counter that is full, and then the thread is awake already.
            rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok();
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
        // Nothing to read: the events were taken with an earlier wake-up.
        rustix::io::read(&self.wake, &mut count).ok();
        self.events.try_iter().collect()
    }
}
