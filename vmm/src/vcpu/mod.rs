//! Virtual CPUs.
//!
//! - [`kind`]: which kind of KVM the host has, and what that kind needs.
//! - [`cpuid`]: what the guest's CPUs say of themselves.
//! - [`setup`]: a vCPU's state before its first instruction.
//! - [`run`]: the loop of a vCPU's thread.
//! - [`gate`]: pauses all vCPUs of a VM.
//! - [`persist`]: a vCPU's state, saved and restored; [`tsc`]: its TSC, which goes on.

pub mod cpuid;
pub mod gate;
pub mod kind;
pub mod persist;
pub mod run;
pub mod setup;
pub mod tsc;
