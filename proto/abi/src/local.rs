//! What programs in the guest say to the agent: JSON lines on a Unix stream socket, one answer a
//! request, in order. A language needs nothing but its standard library:
//!
//! ```text
//! → {"verb":"vmid"}
//! ← {"ok":0}
//! → {"verb":"list"}
//! ← {"ok":[{"vmid":0,"ip":"100.64.0.1","state":"ready","host":"a"}]}
//! → {"verb":"fly"}
//! ← {"error":{"code":22,"message":"unknown verb \"fly\""}}
//! ```
//!
//! What never changes between clones is also in a file, so that `gc vmid` costs one read and no context
//! switch: [`IDENTITY_FILE`].

use serde::{Deserialize, Serialize};

pub use crate::link::{Answer, CallError, Member};

/// The agent's socket.
pub const SOCKET: &str = "/run/gridcentric/agent.sock";

/// The VM's identity as `KEY=VALUE` lines (`vmid`, `ip`, `prefix`, `gateway`, `mac`, `hostname`, `family`),
/// at most [`IDENTITY_MAX_BYTES`]. The agent replaces it by rename, so a reader sees one identity whole.
pub const IDENTITY_FILE: &str = "/run/gridcentric/identity";

/// Greatest size of [`IDENTITY_FILE`].
pub const IDENTITY_MAX_BYTES: usize = 1024;

/// One call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// `vmid`, `my-ip`, `ismaster`, `list`.
    pub verb: String,
    /// The verb's arguments.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub args: serde_json::Value,
}
