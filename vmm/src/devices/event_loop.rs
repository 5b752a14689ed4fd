//! The thread that drives a VM's devices.
//!
//! ```text
//!  guest kick (ioeventfd) --+
//!  tap, vsock streams ------+--> epoll --> handler.event(token), one at a time
//! ```
//! All device work is done synchronously on this thread. So between the return of
//! [`DeviceLoop::stop`] and [`DeviceLoop::start`], no device accesses a queue or guest memory.
//! Events that arrive meanwhile are not lost: they stay pending in the kernel.
//!
//! ```text
//!  running ──stop──▶ stopping ──between two events──▶ stopped ──start──▶ running
//! ```
//! The thread lives on while the loop is stopped. So a frozen VM need not start a new thread, which
//! could fail.

use patina_control::best_effort;
use patina_daemon::lock;
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Events taken from the kernel at a time.
const BATCH_EVENTS: usize = 32;
/// The token of the loop's own wake-up event.
const WAKE: u64 = u64::MAX;

/// Why the event loop could not do something.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel gave no epoll or event descriptor.
    #[error("create the device loop")]
    Create(#[source] io::Error),
    /// A source could not be watched.
    #[error("watch source {token:#x} in the device loop")]
    Watch {
        /// The source's token.
        token: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("start the device thread")]
    Start(#[source] io::Error),
    /// The thread ended because waiting failed.
    #[error("wait for device events")]
    Wait(#[source] io::Error),
    /// A device is still at work, and the loop goes on.
    #[error(
        "stop the devices: one of them has been at work for {0:?}; it may be waiting for memory that has not arrived"
    )]
    Busy(Duration),
    /// The thread panicked.
    #[error("the device thread panicked")]
    Panicked,
}

/// Handles the events of its sources, always on the device thread.
pub trait EventHandler: Send + Sync {
    /// The source with this token has an event.
    fn event(&self, token: u32);
}

/// A file descriptor to watch.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The descriptor. Its owner keeps it open as long as the loop lives.
    pub fd: BorrowedFd<'a>,
    /// The token that is passed to the handler.
    pub token: u32,
    /// Report arrivals only (the handler remembers what it left unread), instead of as long as
    /// there is something to read.
    pub edge: bool,
}

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It serves.
    Running,
    /// It is to stop.
    Stopping,
    /// It waits.
    Stopped,
    /// It is to end, or has.
    Ended,
}

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    phase: Mutex<Phase>,
    changed: Condvar,
    handlers: Mutex<Vec<Arc<dyn EventHandler>>>,
}

/// Records that the thread has ended, also after a panic.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.enter(Phase::Ended);
    }
}

/// The loop; dropping it stops its thread.
pub struct DeviceLoop {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), LoopError>>>,
}

impl Shared {
    fn wake(&self) {
        best_effort(
            rustix::io::write(&self.wake, &1_u64.to_ne_bytes()),
            "the only error is a full counter, and then the loop is awake already",
        );
    }

    fn watch(&self, source: &Source<'_>, data: u64) -> Result<(), LoopError> {
        let mut flags = epoll::EventFlags::IN;
        if source.edge {
            flags |= epoll::EventFlags::ET;
        }
        epoll::add(&self.epoll, source.fd, epoll::EventData::new_u64(data), flags)
            .map_err(|error| LoopError::Watch { token: source.token, source: error.into() })
    }

    fn run(&self) -> Result<(), LoopError> {
        let mut batch = Vec::with_capacity(BATCH_EVENTS);
        while self.goes_on() {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut batch), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LoopError::Wait(error.into())),
            }
            for event in batch.drain(..) {
                // The rest of the batch waits here, because an edge is not reported again.
                if !self.goes_on() {
                    return Ok(());
                }
                self.dispatch(event.data.u64());
            }
        }
        Ok(())
    }

    fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        self.changed.notify_all();
    }

    /// Called between two events. Waits while the loop is stopped. Returns false if the thread must
    /// end.
    fn goes_on(&self) -> bool {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Stopping {
            *phase = Phase::Stopped;
            self.changed.notify_all();
        }
        while *phase == Phase::Stopped {
            phase = self.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
        }
        *phase != Phase::Ended
    }

    fn dispatch(&self, data: u64) {
        if data == WAKE {
            let mut count = [0; 8];
            best_effort(
                rustix::io::read(&self.wake, &mut count),
                "nothing to read means that the wake-up was already taken",
            );
            return;
        }
        let [index, token] = split(data);
        let handler = usize::try_from(index).ok().and_then(|index| lock(&self.handlers).get(index).cloned());
        if let Some(handler) = handler {
            handler.event(token);
        }
    }
}

fn split(data: u64) -> [u32; 2] {
    // Both halves fit by construction.
    [(data >> 32) as u32, (data & 0xffff_ffff) as u32]
}

impl DeviceLoop {
    /// A loop that is not running yet.
    pub fn new() -> Result<Self, LoopError> {
        let create = |error: rustix::io::Errno| LoopError::Create(error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(create)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(create)?;
        let shared = Shared {
            epoll,
            wake,
            phase: Mutex::new(Phase::Running),
            changed: Condvar::new(),
            handlers: Mutex::default(),
        };
        shared.watch(&Source { fd: shared.wake.as_fd(), token: u32::MAX, edge: false }, WAKE)?;
        Ok(Self { shared: Arc::new(shared), thread: None })
    }

    /// Watches `sources` and hands their events to `handler`, which the loop keeps.
    pub fn add(&self, handler: Arc<dyn EventHandler>, sources: &[Source<'_>]) -> Result<(), LoopError> {
        let index = {
            let mut handlers = lock(&self.shared.handlers);
            handlers.push(handler);
            (handlers.len() - 1) as u64
        };
        sources.iter().try_for_each(|source| self.shared.watch(source, index << 32 | u64::from(source.token)))
    }

    /// Makes the thread but keeps it stopped, so that [`Self::start`] is fast.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn prepare(&mut self) -> Result<(), LoopError> {
        self.spawn(Phase::Stopped)
    }

    /// Starts the thread, or resumes it. Does nothing if it runs already.
    ///
    /// # Errors
    /// No thread can be created, or the thread has ended with an error.
    pub fn start(&mut self) -> Result<(), LoopError> {
        if self.thread.is_some() {
            let mut phase = lock(&self.shared.phase);
            if *phase == Phase::Stopped {
                *phase = Phase::Running;
                self.shared.changed.notify_all();
            }
            let has_ended = *phase == Phase::Ended;
            drop(phase);
            return if has_ended { self.join() } else { Ok(()) };
        }
        self.spawn(Phase::Running)
    }

    fn spawn(&mut self, phase: Phase) -> Result<(), LoopError> {
        self.shared.enter(phase);
        let ending = Ending(Arc::clone(&self.shared));
        let thread = Builder::new().name("devices".into()).spawn(move || ending.0.run());
        self.thread = Some(thread.map_err(LoopError::Start)?);
        Ok(())
    }

    /// Stops the thread after its current event, and waits for that: one turn of one queue at most.
    /// [`Self::start`] resumes it.
    ///
    /// # Errors
    /// [`LoopError::Busy`]: it has not stopped after `patience`, and goes on. Others: the thread
    /// has ended, so the devices no longer work.
    pub fn stop(&mut self, patience: Duration) -> Result<(), LoopError> {
        if self.thread.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + patience;
        let mut phase = lock(&self.shared.phase);
        if *phase == Phase::Running {
            *phase = Phase::Stopping;
            self.shared.wake();
        }
        while *phase == Phase::Stopping {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                *phase = Phase::Running;
                return Err(LoopError::Busy(patience));
            }
            let waited = self.shared.changed.wait_timeout(phase, left);
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let has_ended = *phase == Phase::Ended;
        drop(phase);
        if has_ended { self.join() } else { Ok(()) }
    }

    fn join(&mut self) -> Result<(), LoopError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| LoopError::Panicked)?
    }
}

impl Drop for DeviceLoop {
    fn drop(&mut self) {
        self.shared.enter(Phase::Ended);
        self.shared.wake();
        best_effort(self.join(), "nobody is left to tell; the thread has ended either way");
    }
}

#[cfg(test)]
#[path = "event_loop_test.rs"]
mod tests;
