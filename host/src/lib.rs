//! What the programs of a Patina host have in common.
//!
//! - [`memfd`]: sealing of files in memory.
//! - [`stderr`]: lines for people, which never fail.
//! - `network` (a feature): what of the host stands in the way of the families' networks.

pub mod memfd;
#[cfg(feature = "network")]
pub mod network;
pub mod stderr;
