//! What snapshots are made of and checked against, without the VMs themselves.
//!
//! - [`load`]: where the memory of restored VMs comes from. [`known`]: the layers in memory that a
//!   snapshot has already.
//! - [`digests`]: kernels and root file systems by their content. [`error`]: why a call fails.

pub mod digests;
pub mod error;
pub mod known;
pub mod load;
