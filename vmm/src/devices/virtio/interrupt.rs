//! How a device interrupts the guest: a status register and an edge on the device's interrupt line.

use patina_control::best_effort;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// InterruptStatus: buffers were used.
pub const USED_RING: u32 = 1;
/// InterruptStatus: the configuration changed, or the device needs a reset.
pub const CONFIG: u32 = 2;

/// A device's interrupt.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// A quiet interrupt with a new event for its line.
    pub fn new() -> io::Result<Self> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { status: AtomicU32::new(0), generation: AtomicU32::new(0), line })
    }

    /// The line: register it as the irqfd of the device's interrupt, edge-triggered.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Buffers were put into a used ring.
    pub fn used(&self) {
        self.raise(USED_RING);
    }

    /// The configuration space changed, or the device needs a reset.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(CONFIG);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        best_effort(self.line.write(1), "the only error is a full counter: then an edge is pending already");
    }

    /// Takes over a saved VM's registers; see [`Interrupt::resend`].
    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.store(generation, Ordering::Release);
    }

    /// Raises the line once more if the guest has not acknowledged everything: an edge may have
    /// been lost.
    pub(super) fn resend(&self) {
        if self.status() != 0 {
            self.raise(0);
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}
