//! The errors of a restore of a virtio device.

use super::DeviceError;
use super::handshake::persist::HandshakeError;
use super::queue::QueueError;

/// Why a device could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is that of another kind of device.
    #[error("restore a {wanted} device: the state is that of a {saved} device")]
    Kind {
        /// The device at hand.
        wanted: &'static str,
        /// The device that was saved.
        saved: &'static str,
    },
    /// Status and features are impossible, or impossible for this device.
    #[error("restore a device's handshake")]
    Handshake(#[source] HandshakeError),
    /// The interrupt has causes that do not exist.
    #[error("restore a device's interrupt: status {status:#x} has unknown bits")]
    Interrupt {
        /// The value of the interrupt status register.
        status: u32,
    },
    /// The device has another number of queues than its state.
    #[error("restore a device: the state has {saved} queues, but the device has {found}")]
    QueueCount {
        /// How many queues the state has.
        saved: usize,
        /// How many queues the device has.
        found: usize,
    },
    /// A queue in use has no position, or a queue that is not in use has one. A queue is in use if
    /// its device is active and the guest has set it up.
    #[error("restore queue {index}: a queue has a position exactly if it is in use")]
    Position {
        /// The queue's index in its device.
        index: usize,
    },
    /// A queue rejects its state.
    #[error("restore queue {index}")]
    Queue {
        /// The queue's index in its device.
        index: usize,
        /// Why the queue rejects it.
        #[source]
        source: QueueError,
    },
    /// The file has another size than the disk that the guest knows.
    #[error("restore a disk of {saved} sectors: its file has {found}; use the disk that the parent used")]
    DiskSize {
        /// The sectors of the disk that the guest knows.
        saved: u64,
        /// The sectors of the file.
        found: u64,
    },
    /// The state has more connections than a device can have.
    #[error("restore a vsock: {count} connections to reset are too many")]
    VsockResets {
        /// In the state.
        count: usize,
    },
    /// The host's side of the device did not accept the driver's features.
    #[error("restore a device: activate it again")]
    Activate(#[source] DeviceError),
}
