//! Decisions, without I/O: no lock, clock, file or socket in here.
//!
//! - [`names`]: which names a VM may have, and names for those who give none.
//! - [`address`]: families, their networks, addresses, MACs and interface names.
//! - [`spec`]: a checked request for a VM.
//! - [`lifecycle`]: booting, ready, ended.
//! - [`adopt`]: what to do with what an earlier `vmmd` left.
//! - [`vmids`]: the vmids of a family.

pub mod address;
pub mod adopt;
pub mod lifecycle;
pub mod names;
pub mod spec;
pub mod vmids;
