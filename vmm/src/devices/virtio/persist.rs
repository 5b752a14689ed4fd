//! Why the saved state of a virtio device cannot always be restored.

use super::DeviceError;
use super::handshake::persist::HandshakeError;
use super::queue::QueueError;

/// Why a device could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is another device's.
    #[error("restore a {wanted} device: the state is that of a {saved} device")]
    Kind {
        /// The device at hand.
        wanted: &'static str,
        /// The device that was saved.
        saved: &'static str,
    },
    /// Status and features cannot be, or not with this device.
    #[error("restore a device's handshake")]
    Handshake(#[source] HandshakeError),
    /// The interrupt has causes that do not exist.
    #[error("restore a device's interrupt: status {status:#x} has unknown bits")]
    Interrupt {
        /// The value of the interrupt status register.
        status: u32,
    },
    /// The device has another number of queues than its state.
    #[error("restore {saved} queues of a device that has {found}")]
    QueueCount {
        /// How many queues the state has.
        saved: usize,
        /// How many queues the device has.
        found: usize,
    },
    /// Whether a queue has a position does not fit whether it is in use: the queues that an active device has set up have
    /// one, and no others.
    #[error("restore queue {index}: whether it has a position does not fit whether it is in use")]
    Position {
        /// The queue's index in its device.
        index: usize,
    },
    /// A queue does not take its state.
    #[error("restore queue {index}")]
    Queue {
        /// The queue's index in its device.
        index: usize,
        /// Why the queue does not take it.
        #[source]
        source: QueueError,
    },
    /// The guest knows another disk.
    #[error("restore a disk of {saved} sectors on a file of {found}: is it the same disk?")]
    DiskSize {
        /// The sectors of the disk that the guest knows.
        saved: u64,
        /// The sectors of the file.
        found: u64,
    },
    /// More connections than there can have been.
    #[error("restore a vsock with {count} connections to reset")]
    VsockResets {
        /// In the state.
        count: usize,
    },
    /// What is behind the device did not take the driver's features.
    #[error("restore a device: activate it again")]
    Activate(#[source] DeviceError),
}
