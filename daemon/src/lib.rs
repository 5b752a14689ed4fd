//! What every daemon of Patina needs.
//!
//! - [`log`]: the log of a daemon. [`oom`]: what the kernel ends last.
//! - [`values`]: values of options.
//! - [`listen`]: where clients connect. [`notify`]: tells the service manager.
//! - [`http`]: metrics over HTTP.

pub mod http;
pub mod listen;
pub mod log;
pub mod notify;
pub mod oom;
pub mod values;

/// What this daemon was built from.
pub const REVISION: &str = match option_env!("PATINA_REVISION") {
    Some(revision) => revision,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
