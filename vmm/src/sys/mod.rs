//! System calls and KVM calls behind safe signatures: every `unsafe` block of the VMM outside the
//! devices.
//!
//! - [`mod@slice`]: sets a thread's time slice.
//! - [`slot`]: gives guest RAM to KVM.
//! - [`exit`]: reads the parts of `kvm_run` that kvm-ioctls leaves in a union.
//! - [`faults`]: counts page faults.
//! - [`host_cpu`]: the CPUID of the CPU that this code runs on.
//! - [`kick`]: gets a vCPU's thread out of KVM_RUN.
//! - [`kvm`]: /dev/kvm itself. [`kvm_state`]: its calls that kvm-ioctls lacks.
//! - [`pagemap`]: finds private pages and written pages.
//! - [`plain`]: structs of the boot protocols as bytes.
//! - [`userfault`]: tracks writes, and makes accesses wait for the pager.
//! - [`view`]: mappings of guest RAM.
//! - [`xstate`]: gets and sets XSAVE areas.
#![allow(unsafe_code, reason = "the edge to KVM and to the kernel; each block names its invariant")]

pub mod exit;
pub mod faults;
pub mod host_cpu;
pub mod kick;
pub mod kvm;
pub mod kvm_state;
pub mod pagemap;
pub mod plain;
pub mod slice;
pub mod slot;
pub mod userfault;
pub mod view;
pub mod xstate;
