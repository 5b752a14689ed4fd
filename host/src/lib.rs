//! What the programs of a Patina host have in common.
//!
//! - [`stderr`]: lines for people, which never fail.
//! - `network` (a feature): what of the host stands in the way of the families' networks.

#[cfg(feature = "network")]
pub mod network;
pub mod stderr;
