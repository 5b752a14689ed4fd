//! Saves and restores a handshake.

use super::{FAILED, FEATURES_OK, Handshake, NEEDS_RESET, in_order, may_accept};
use crate::persist::Persist;
use std::convert::Infallible;

/// The state of a handshake. The offered features are not part of it: they are those of the device
/// that is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeState {
    pub(crate) status: u32,
    pub(crate) accepted: u64,
    pub(crate) offered_select: u32,
    pub(crate) accepted_select: u32,
}

patina_snapshot::layout!(HandshakeState {
    status: u32,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
});

/// Why a handshake could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No driver can have reached this status.
    #[error("restore device status {status:#x}: no driver can reach it")]
    Status {
        /// The register.
        status: u32,
    },
    /// The driver uses features that this device does not have.
    #[error("restore accepted features {accepted:#x}: the device offers only {offered:#x}")]
    Features {
        /// By the driver.
        accepted: u64,
        /// By the device.
        offered: u64,
    },
}

impl Persist for HandshakeState {
    type Source<'a> = &'a Handshake;
    /// The features that the device at hand offers.
    type Target<'a> = u64;
    type Restored = Handshake;
    type SaveError = Infallible;
    type RestoreError = HandshakeError;

    fn save(handshake: &Handshake) -> Result<Self, Infallible> {
        Ok(Self {
            status: handshake.status,
            accepted: handshake.accepted,
            offered_select: handshake.offered_select,
            accepted_select: handshake.accepted_select,
        })
    }

    fn restore(&self, offered: u64) -> Result<Handshake, HandshakeError> {
        let Self { status, accepted, offered_select, accepted_select } = *self;
        let steps = status & !(FAILED | NEEDS_RESET);
        if steps != 0 && !in_order(steps) {
            return Err(HandshakeError::Status { status });
        }
        // Before FEATURES_OK the driver may have written anything, and is asked about it when it
        // sets that.
        if status & FEATURES_OK != 0 && !may_accept(offered, accepted) {
            return Err(HandshakeError::Features { accepted, offered });
        }
        Ok(Handshake { status, offered, accepted, offered_select, accepted_select })
    }
}

#[cfg(test)]
#[path = "persist_test.rs"]
mod tests;
