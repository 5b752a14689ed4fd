//! What every daemon of Patina needs, and a few parts for other programs.
//!
//! With the feature `service`, for daemons:
//! - `process`: from the log (`log`) to the exit code; `oom`: the order in which the kernel's OOM
//!   killer ends processes; `stop`: the signals that end a daemon.
//! - `values`: values of options.
//! - `listen`: the address for clients, `accept`: their connections, `peer`: who they are.
//! - `server`: the gRPC server, `roles`: who may make which call.
//! - `notify`: notifies the service manager.
//! - `http`: metrics over HTTP.
//!
//! With the feature `tls`: `tls`, certificates for both sides of a TCP connection.
//!
//! With the feature `network`: `network`, settings of the host that break the families' networks.
//!
//! For every program: [`stderr`], lines for people, which never fail; [`chain()`], an error with
//! its causes; [`lock()`], a lock that a panic does not poison; [`kernel`], the release of the
//! host's kernel.

#[cfg(feature = "service")]
mod accept;
mod chain;
#[cfg(feature = "service")]
pub mod http;
pub mod kernel;
#[cfg(feature = "service")]
pub mod listen;
mod lock;
#[cfg(feature = "service")]
pub mod log;
#[cfg(feature = "network")]
pub mod network;
#[cfg(feature = "service")]
pub mod notify;
#[cfg(feature = "service")]
pub mod oom;
#[cfg(feature = "service")]
pub mod peer;
#[cfg(feature = "service")]
pub mod process;
#[cfg(feature = "service")]
pub mod roles;
#[cfg(feature = "service")]
pub mod server;
pub mod stderr;
#[cfg(feature = "service")]
pub mod stop;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "service")]
pub mod values;

pub use chain::{chain, find_cause};
pub use lock::lock;

/// What this daemon was built from.
pub const REVISION: &str = match option_env!("PATINA_REVISION") {
    Some(revision) => revision,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
