//! The devices of the guest.
//!
//! - [`event_loop`]: one thread for each VM that drives all of its devices. While the loop is
//!   stopped, no device accesses a queue, so the VM can be frozen.
//! - [`virtio`]: the virtio-mmio transport, virtqueues, and the block, net, vsock and rng devices.
//! - [`console`]: the serial port, its bounded log and the attached clients.
//!
//! The `persist` module of a device saves its state and restores it in a clone.
//! [`virtio::mmio::persist`] gives the order.
//!
//! Everything that a guest writes is hostile. It is bounded and checked here. The worst that a
//! guest can cause is that its own device requests a reset.

pub mod console;
pub mod event_loop;
mod sys;
pub mod virtio;

pub use crate::memory::Memory;
