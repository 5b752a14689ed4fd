//! What `vmmd` and a `vmm` process say to each other.
//!
//! - [`config`]: the JSON document that a `vmm` reads from its `--config-fd`; file descriptors by number.
//! - [`control`]: the lines on its control socket while it runs.
//! - [`end`]: how a VM ended, left in a file for a `vmmd` that was not there to see it.

pub mod config;
pub mod control;
pub mod end;
