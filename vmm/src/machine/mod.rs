//! One VM, put together: memory, kernel, devices and vCPUs.
//!
//! - [`build`]: makes it all from a configuration.
//! - [`wiring`]: devices to KVM: kicks, interrupts, windows.
//! - [`doors`]: connections of the control socket to the guest's vsock and console.
//! - [`origin`]: where a VM begins: with a kernel, or warm, waiting for a generation.
//! - [`start`]: gives a warm VM its generation.
//! - [`freeze`]: turns the VM into a generation and lets it go on.
//! - `standstill`: in which order it stops for that, and whether it goes on. `merging`: fewer layers for its next generation.
//! - [`ahead`]: copies pages ahead that will be written soon.
//! - `tune`: what KVM is told to leave.
//! - [`persist`]: what KVM keeps of a VM, saved and restored.
//! - [`bus`], [`ports`]: what a vCPU's I/O reaches.

pub mod ahead;
pub mod build;
pub mod bus;
pub mod doors;
pub mod freeze;
mod merging;
pub mod origin;
pub mod persist;
pub mod ports;
mod standstill;
pub mod start;
pub mod tune;
pub mod wiring;
