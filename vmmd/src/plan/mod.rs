//! Decisions without I/O: no lock, clock, file or socket.
//!
//! - [`names`]: valid names of VMs, and names for VMs without one.
//! - [`address`]: families, their networks, addresses, MACs and interface names.
//! - [`spec`]: a checked request for a VM; [`place`]: one for VMs from a snapshot.
//! - [`baseline`]: the CPU features of a VM that several hosts have in common.
//! - [`lifecycle`]: booting, ready, ended.
//! - [`vmids`]: the vmids of a family.

pub mod address;
pub mod baseline;
pub mod lifecycle;
pub mod names;
pub mod place;
pub mod spec;
pub mod vmids;
