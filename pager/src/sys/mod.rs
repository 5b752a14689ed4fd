//! System calls behind safe signatures.
//!
//! - [`faults`]: a VM's userfaultfd: reads faults and answers them.
//! - [`interrupt`]: gets a thread out of a read that should not have blocked.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

pub mod faults;
pub mod interrupt;
