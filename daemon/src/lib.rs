//! What every daemon of Patina needs, and a little that other programs need too.
//!
//! With the feature `service`, for daemons:
//! - `process`: from the log (`log`) to the exit code; `oom`: what the kernel ends last; `stop`: the signals that end it.
//! - `values`: values of options.
//! - `listen`: where clients connect; `server`: what answers them. `notify`: tells the service manager.
//! - `http`: metrics over HTTP.
//!
//! With the feature `network`: `network`, what of the host stands in the way of the families' networks.
//!
//! For every program: [`stderr`], lines for people, which never fail.

#[cfg(feature = "service")]
pub mod http;
#[cfg(feature = "service")]
pub mod listen;
#[cfg(feature = "service")]
pub mod log;
#[cfg(feature = "network")]
pub mod network;
#[cfg(feature = "service")]
pub mod notify;
#[cfg(feature = "service")]
pub mod oom;
#[cfg(feature = "service")]
pub mod process;
#[cfg(feature = "service")]
pub mod server;
pub mod stderr;
#[cfg(feature = "service")]
pub mod stop;
#[cfg(feature = "service")]
pub mod values;

/// What this daemon was built from.
pub const REVISION: &str = match option_env!("PATINA_REVISION") {
    Some(revision) => revision,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
