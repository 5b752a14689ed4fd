//! One VM, put together: memory, kernel, devices and vCPUs.
//!
//! - [`build`]: makes it all from a configuration.
//! - [`wiring`]: devices to KVM: kicks, interrupts, windows.
//! - [`doors`]: connections of the control socket to the guest's vsock and console.
//! - [`origin`]: where a VM begins: with a kernel, or warm, waiting for a generation.
//! - [`start`]: gives a warm VM its generation.
//! - [`freeze`]: turns the VM into a generation and lets it go on.
//! - [`ahead`]: copies pages ahead that will be written soon.
//! - [`persist`]: what KVM keeps of a VM, saved and restored.
//! - [`bus`], [`ports`]: what a vCPU's I/O reaches.

pub mod ahead;
pub mod build;
pub mod bus;
pub mod doors;
pub mod freeze;
pub mod origin;
pub mod persist;
pub mod ports;
pub mod start;
pub mod wiring;
