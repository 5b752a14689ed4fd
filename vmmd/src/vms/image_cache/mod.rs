//! Images: snapshots of VMs that have just booted, without the VMs themselves.
//!
//! - [`key`]: what a VM must have in common with an image to start from it.
//! - [`cache`]: where images are, and for how long. [`way`]: whether a VM boots.

pub mod cache;
pub mod key;
pub mod way;
