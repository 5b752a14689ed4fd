//! One VM, put together: memory, kernel, devices and vCPUs.
//!
//! - [`build`]: makes it all from a configuration.
//! - [`wiring`]: devices to KVM: kicks, interrupts, windows.
//! - [`doors`]: connections of the control socket to the guest's vsock and console.
//! - [`origin`]: where a VM begins: a kernel, or a generation.
//! - [`freeze`]: turns the VM into a generation and lets it go on.
//! - [`persist`]: what KVM keeps of a VM, saved and restored.
//! - [`bus`], [`ports`]: what a vCPU's I/O reaches.

pub mod build;
pub mod bus;
pub mod doors;
pub mod freeze;
pub mod origin;
pub mod persist;
pub mod ports;
pub mod wiring;
