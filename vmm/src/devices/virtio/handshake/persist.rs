//! A handshake, saved and restored.

use super::{FAILED, FEATURES_OK, Handshake, NEEDS_RESET, in_order, may_accept};
use serde::{Deserialize, Serialize};

/// Where driver and device stood. What the device offers is not part of it: the device at hand says that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeState {
    status: u32,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
}

/// Why a handshake could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No driver can have come to this status.
    #[error("go on from device status {status:#x}: no driver comes there")]
    Status {
        /// The register.
        status: u32,
    },
    /// The driver uses features that this device does not have.
    #[error("go on with features {accepted:#x}: the device at hand offers {offered:#x}")]
    Features {
        /// By the driver.
        accepted: u64,
        /// By the device.
        offered: u64,
    },
}

impl Handshake {
    /// What a saved VM keeps.
    pub fn save(&self) -> HandshakeState {
        HandshakeState {
            status: self.status,
            accepted: self.accepted,
            offered_select: self.offered_select,
            accepted_select: self.accepted_select,
        }
    }

    /// The handshake of a device that offers `offered`, where it was when it was saved.
    pub fn restore(offered: u64, state: &HandshakeState) -> Result<Self, HandshakeError> {
        let HandshakeState { status, accepted, offered_select, accepted_select } = *state;
        let steps = status & !(FAILED | NEEDS_RESET);
        if steps != 0 && !in_order(steps) {
            return Err(HandshakeError::Status { status });
        }
        // Before FEATURES_OK the driver may have written anything, and is asked about it when it sets that.
        if status & FEATURES_OK != 0 && !may_accept(offered, accepted) {
            return Err(HandshakeError::Features { accepted, offered });
        }
        Ok(Self { status, offered, accepted, offered_select, accepted_select })
    }
}

#[cfg(test)]
#[path = "persist_test.rs"]
mod tests;
