//! The system-call edge: every `unsafe` block of the VMM outside the devices, behind safe signatures.
//!
//! - [`inherit`]: takes over file descriptors that were inherited by number.
//! - [`mod@slice`]: how long a thread runs before others do.
//! - [`slot`]: gives guest RAM to KVM.
//! - [`exit`]: reads the parts of `kvm_run` that kvm-ioctls leaves in a union.
//! - [`faults`]: how many page faults there were.
//! - [`host_cpu`]: the CPUID of the CPU that this code runs on.
//! - [`ioctl`]: how the kernel composes the number of an ioctl.
//! - [`kick`]: gets a vCPU's thread out of KVM_RUN.
//! - [`kvm`]: /dev/kvm itself; [`kvm_state`]: calls of it that kvm-ioctls lacks.
//! - [`pagemap`]: which pages are the process's own.
//! - [`plain`]: structs of the boot protocols as bytes.
//! - [`rights`]: becoming another user.
//! - [`view`]: mappings of guest RAM.
//! - [`xstate`]: XSAVE areas as KVM gives them.
#![allow(
    unsafe_code,
    reason = "the edge to KVM and to inherited descriptors; each block names its invariant"
)]

pub mod exit;
pub mod faults;
pub mod host_cpu;
pub mod inherit;
pub mod ioctl;
pub mod kick;
pub mod kvm;
pub mod kvm_state;
pub mod pagemap;
pub mod plain;
pub mod rights;
pub mod slice;
pub mod slot;
pub mod view;
pub mod xstate;
