//! Devices: what the guest sees besides CPUs and RAM.
//!
//! - [`event_loop`]: one thread for each VM that drives all of its devices. While it is stopped nothing touches
//!   a queue, which is how a VM is frozen.
//! - [`virtio`]: the virtio-mmio transport, virtqueues, and the block, net, vsock and rng devices.
//! - [`console`]: the serial port, its bounded log and the people attached to it.
//!
//! Each has a `persist` module: what a saved VM keeps of it, and how a clone goes on from there. The order is in
//! [`virtio::mmio::persist`].
//!
//! Everything that a guest writes is hostile: it is bounded and checked here, and the worst that it can reach
//! is that its own device asks for a reset.

pub mod console;
pub mod event_loop;
mod sys;
pub mod virtio;

pub use crate::memory::Memory;
