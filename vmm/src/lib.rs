//! The VMM of Patina: runs one VM in one process.
//!
//! - [`api`]: what `vmmd` and a `vmm` process say to each other: its configuration, its control socket.
//! - [`devices`]: the virtio devices, their MMIO transport, the serial console and the event loop that drives them.

pub mod api;
pub mod devices;
