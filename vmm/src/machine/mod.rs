//! One VM, put together: memory, kernel, devices and vCPUs.
//!
//! - [`build`]: makes it all from a configuration.
//! - [`wiring`]: devices to KVM: kicks, interrupts, windows.
//! - [`doors`]: connections of the control socket to the guest's vsock and console.
//! - [`bus`], [`ports`]: what a vCPU's I/O reaches.

pub mod build;
pub mod bus;
pub mod doors;
pub mod ports;
pub mod wiring;
