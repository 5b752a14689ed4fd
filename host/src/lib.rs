//! What the programs of a Patina host have in common.
//!
//! - [`stderr`]: lines for people, which never fail.

pub mod stderr;
