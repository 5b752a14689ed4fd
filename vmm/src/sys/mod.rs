//! System calls and KVM calls behind safe signatures: every `unsafe` block of the VMM outside the
//! devices.
//!
//! - [`inherit`]: takes over file descriptors that were inherited by number.
//! - [`mod@slice`]: sets a thread's time slice.
//! - [`slot`]: gives guest RAM to KVM.
//! - [`exit`]: reads the parts of `kvm_run` that kvm-ioctls leaves in a union.
//! - [`faults`]: counts page faults.
//! - [`host_cpu`]: the CPUID of the CPU that this code runs on.
//! - [`ioctl`]: how the kernel composes the number of an ioctl.
//! - [`kick`]: gets a vCPU's thread out of KVM_RUN.
//! - [`kvm`]: /dev/kvm itself. [`kvm_state`]: its calls that kvm-ioctls lacks.
//! - [`pagemap`]: finds private pages and written pages.
//! - [`plain`]: structs of the boot protocols as bytes.
//! - [`rights`]: changes the user of the process.
//! - [`view`]: mappings of guest RAM.
//! - [`xstate`]: gets and sets XSAVE areas.
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
