//! Virtual CPUs.
//!
//! - [`kind`]: the kind of KVM that the host has, and what that kind needs.
//! - [`offer`]: what a guest is offered of what KVM supports. [`cpuid`]: the CPUID of each CPU.
//! - [`setup`]: a vCPU's state before its first instruction.
//! - [`run`]: the loop of a vCPU's thread.
//! - [`gate`]: pauses all vCPUs of a VM.
//! - [`persist`]: saves and restores a vCPU's state. [`tsc`]: restores its TSC.

pub mod cpuid;
pub mod gate;
pub mod kind;
pub mod offer;
pub mod persist;
pub mod registers;
pub mod run;
pub mod setup;
pub mod tsc;
