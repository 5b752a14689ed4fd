//! All unsafe code of the crate: system interfaces that rustix does not have, with safe signatures.
//! No decision is made here.
#![allow(unsafe_code, reason = "calls into libc; each block names its invariant")]

pub mod heap;
pub mod input;
pub mod netdev;
pub mod random;
pub mod signals;
pub mod spawn;
pub mod vsock;
