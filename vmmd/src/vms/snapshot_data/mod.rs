//! What snapshots are made of and checked against, without the VMs themselves.
//!
//! - [`load`]: where the memory of restored VMs comes from. [`known`]: the layers in memory that a
//!   snapshot has already.
//! - [`fit`]: whether this host can run the VM of a snapshot. [`room`]: whether it has the memory.
//! - [`digests`]: kernels and root file systems by their content. [`error`]: why a call fails.

pub mod describe;
pub mod digests;
pub mod error;
pub mod fit;
pub mod known;
pub mod load;
pub mod room;
