//! Virtual CPUs.
//!
//! - [`kind`]: which kind of KVM the host has, and what that kind needs.
//! - [`cpuid`]: what the guest's CPUs say of themselves.
//! - [`setup`]: a vCPU's state before its first instruction.
//! - [`run`]: the loop of a vCPU's thread.

pub mod cpuid;
pub mod kind;
pub mod run;
pub mod setup;
