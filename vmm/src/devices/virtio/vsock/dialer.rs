//! How other threads open connections to the guest.

use patina_control::best_effort;
use patina_daemon::lock;
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Most dials that wait for the device thread.
pub const WAITING_MAX: usize = 64;

/// Why a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The guest has no vsock driver, or not yet.
    #[error("connect to the guest: its vsock driver is not ready; try again when it has booted")]
    NotReady,
    /// The guest said no.
    #[error("connect to the guest: nothing listens on that port")]
    Refused,
    /// The guest's driver was reset, or the VM has ended.
    #[error("connect to the guest: its vsock was reset")]
    Reset,
    /// Too many connections, or too many dials at once.
    #[error("connect to the guest: too many connections; close some first")]
    TooMany,
    /// The dialing side closed its stream before the guest answered.
    #[error("connect to the guest: the caller has closed its stream")]
    GivenUp,
    /// The stream could not be watched.
    #[error("connect to the guest: the stream cannot be watched")]
    Stream,
}

/// Called once with the outcome of a dial, on the device thread or the caller's. It must not block.
pub type Done = Box<dyn FnOnce(Result<(), DialError>) + Send>;

/// A dial that waits for the device thread.
pub(super) struct Dial {
    pub port: u32,
    pub stream: UnixStream,
    pub done: Done,
}

/// Dials vsock ports of the guest.
#[derive(Clone)]
pub struct VsockDialer(Arc<Shared>);

struct Shared {
    /// None once the device is gone.
    waiting: Mutex<Option<VecDeque<Dial>>>,
    changed: EventFd,
}

impl VsockDialer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            waiting: Mutex::new(Some(VecDeque::new())),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })))
    }

    /// Connects `stream` to a port of the guest. `done` is called once: with `Ok` when the guest
    /// has accepted, before any data passes; otherwise with the reason, and the stream is closed.
    pub fn dial(&self, port: u32, stream: UnixStream, done: Done) {
        let refused = match &mut *lock(&self.0.waiting) {
            None => Some((done, DialError::Reset)),
            Some(waiting) if waiting.len() >= WAITING_MAX => Some((done, DialError::TooMany)),
            Some(waiting) => {
                waiting.push_back(Dial { port, stream, done });
                None
            }
        };
        match refused {
            // Called without the lock, since it may want to dial again.
            Some((done, error)) => done(Err(error)),
            None => self.wake(),
        }
    }

    fn wake(&self) {
        best_effort(
            self.0.changed.write(1),
            "the only error is a full counter: then the device thread is awake already",
        );
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.0.changed
    }

    pub(super) fn take(&self) -> VecDeque<Dial> {
        lock(&self.0.waiting).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The device goes: no dial waits any longer.
    pub(super) fn close(&self) {
        let waiting = lock(&self.0.waiting).take();
        waiting.into_iter().flatten().for_each(|dial| (dial.done)(Err(DialError::Reset)));
    }
}
