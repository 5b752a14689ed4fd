//! A gate between a VM and its network: it stops the frames of a clone that has no identity yet.

use super::PortError;
use patina_control::best_effort;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Opens and closes the gate of a network card, from any thread. The guest does not notice: its
/// card stays up.
#[derive(Clone)]
pub struct NetworkGate(Arc<Shared>);

struct Shared {
    open: AtomicBool,
    opened: AtomicBool,
    changed: EventFd,
}

impl NetworkGate {
    pub(super) fn new() -> Result<Self, PortError> {
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PortError::Event)?;
        Ok(Self(Arc::new(Shared { open: AtomicBool::new(true), opened: AtomicBool::new(false), changed })))
    }

    /// While the gate is closed, all frames from the guest are dropped, and it receives nothing.
    /// Frames that arrive meanwhile are discarded when the gate opens. A frame that the device
    /// thread is handling at this moment may still pass. To rule that out, call this while the
    /// device loop is stopped.
    pub fn set_open(&self, open: bool) {
        // In this order, or a frame from before could pass between the two.
        if open && !self.0.open.load(Ordering::SeqCst) {
            self.0.opened.store(true, Ordering::SeqCst);
        }
        self.0.open.store(open, Ordering::SeqCst);
        best_effort(
            self.0.changed.write(1),
            "the only error is a full counter: then the change will be seen anyway",
        );
    }

    /// Closes the gate, and cancels an opening that the device thread has not seen.
    pub(super) fn shut_anew(&self) {
        self.0.open.store(false, Ordering::SeqCst);
        self.0.opened.store(false, Ordering::SeqCst);
    }

    /// Whether frames pass.
    pub fn is_open(&self) -> bool {
        // What arrived while it was shut is still to be thrown away.
        self.0.open.load(Ordering::SeqCst) && !self.0.opened.load(Ordering::SeqCst)
    }

    /// True once after each opening; from then on frames pass.
    pub(super) fn take_opened(&self) -> bool {
        self.0.opened.swap(false, Ordering::SeqCst)
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.0.changed
    }
}
