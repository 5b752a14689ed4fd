//! The data of a join that passes through a VM, in pieces.

use super::Vm;
use patina_daemon::lock;
use std::sync::{Arc, MutexGuard};

/// What of a join passes through a VM in pieces.
#[derive(Debug, Default)]
pub(in crate::vms) struct Pieces {
    /// What this clone has left so far.
    pub leaving: Vec<u8>,
    /// It has left its result, with this text: it ends when its program has the answer.
    pub left: Option<String>,
    /// What its program reads at the moment, of which ticket and clone.
    pub joined: Option<(String, u32, Arc<Vec<u8>>)>,
}

impl Vm {
    pub(in crate::vms) fn pieces(&self) -> MutexGuard<'_, Pieces> {
        // No code panics under this lock; if some did, the pieces themselves are still whole.
        lock(&self.pieces)
    }

    /// The VM has ended: nobody asks for its pieces any more, and it may stay in the table for
    /// long.
    pub(in crate::vms) fn forget_pieces(&self) {
        *self.pieces() = Pieces::default();
    }
}

/// Ends a VM that has left its result, when the call is over, however that goes.
pub(in crate::vms) struct EndsWhenLeft(pub Arc<Vm>);

impl Drop for EndsWhenLeft {
    fn drop(&mut self) {
        if let Some(reason) = self.0.pieces().left.take() {
            self.0.say_joined(reason);
        }
    }
}
