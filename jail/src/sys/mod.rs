//! System calls behind safe signatures.
//!
//! - [`inherit`]: takes over file descriptors that were inherited by number.
//! - [`rights`]: changes the user of the process.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

pub mod inherit;
pub mod rights;
