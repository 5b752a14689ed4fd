//! Which VMs of a family run on which hosts.
//!
//! - [`book`]: what this host knows of it, and who is to be told. `family`: of one family.
//!   [`told`]: what hosts say.
//!   [`members`]: what there is of that on a host.
//! - [`error`]: why a host does not take what another one says.

pub mod book;
pub mod error;
mod family;
pub mod members;
pub mod told;
