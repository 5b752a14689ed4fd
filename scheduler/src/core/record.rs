//! What is stored of a host: JSON that people can read.

use super::{
    present::{HostInfo, UnixMs},
    ticket::HostId,
};
use serde::{Deserialize, Serialize};

/// A host, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host's number.
    pub id: HostId,
    /// The host, as it described itself last; None: it has not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<HostInfo>,
    /// What an operator wants of it.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Since when, milliseconds since 1970; 0: from the beginning.
    #[serde(default)]
    pub scheduling_unix_ms: UnixMs,
    /// When it was given up, milliseconds since 1970; None: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_unix_ms: Option<UnixMs>,
}

/// What an operator wants of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// It is granted what fits.
    #[default]
    Open,
    /// It is granted nothing new. What was granted may be used.
    Cordoned,
    /// So, and what was granted and not used was taken back: it becomes empty.
    Draining,
}
