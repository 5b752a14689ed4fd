//! What clones on other hosts are made of.
//!
//! - [`place`]: what a ticket has on another host. [`peers`]: how other hosts are called.
//! - [`leases`]: the layers that other hosts read here. [`described`]: layers whose digests are
//!   known.
//! - [`holders`]: which hosts may have the memory of a family.
//! - [`error`]: why clones are not made.

pub mod described;
pub mod error;
pub mod holders;
pub mod leases;
pub mod peers;
pub mod place;
