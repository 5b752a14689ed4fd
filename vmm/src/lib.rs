//! The VMM of Patina: runs one VM in one process, with synchronous threads.
//!
//! The start of a VM, in order:
//! 1. [`process`] reads the configuration ([`patina_control`]) and takes over its descriptors.
//! 2. [`machine`] makes the VM: RAM ([`memory`]), kernel ([`boot`]), [`devices`], and CPUs
//!    ([`vcpu`]) with the [`bus`] for their I/O.
//! 3. Before the first guest instruction, the process drops its privileges ([`jail`]).
//! 4. Each vCPU runs on a thread of its own, and all devices on one thread. The main thread talks
//!    to `vmmd` and to the guest's agent ([`control`]).
//!
//! [`free_pages`] finds what a snapshot may leave out. [`persist`] is the trait with which each
//! part is saved into a generation and restored from it.
//! [`software`] finishes instructions if KVM has no hardware virtualization. [`sys`] has the system
//! calls. [`host_check`] checks the kernel before there is a VM.

pub mod boot;
pub mod bus;
pub mod control;
pub mod devices;
pub mod free_pages;
pub mod host_check;
pub mod jail;
pub mod machine;
pub mod memory;
pub mod note;
pub mod persist;
pub mod process;
mod ranges;
pub mod software;
pub mod sys;
pub mod vcpu;
