//! The protocol between programs in the guest and the agent: JSON lines on a Unix stream socket,
//! with one answer for each request, in order. The standard library of any language is enough to
//! speak it:
//!
//! ```text
//! → {"verb":"vmid"}
//! ← {"ok":0}
//! → {"verb":"fly"}
//! ← {"error":{"code":22,"message":"unknown verb \"fly\""}}
//! ```
//!
//! `README.md` beside this crate's `Cargo.toml` shows each verb's lines, and a test parses them
//! with these types. [`crate::codes`] explains the error codes.
//!
//! | verb | arguments | returns |
//! | --- | --- | --- |
//! | `vmid`, `my-ip`, `ismaster` | | the VM's number; its address; whether it is the master |
//! | `list` | [`ListArgs`] | a list of [`Member`]s, or a [`MembersPage`] |
//! | `clone` | [`CloneCall`] | [`CloneResult`], once in the parent and once in each clone |
//! | `rt` | [`TicketArgs`] | a [`TicketView`]; error 16 when the resources are not to be had in time |
//! | `lt` | [`TicketsArgs`] | a list of [`TicketView`]s, or a [`TicketsPage`] |
//! | `ticket` | [`TicketName`] | a [`TicketView`] |
//! | `sync` | [`SyncArgs`] | a [`Synced`]; error 62 (ETIME) when not all came in time |
//! | `leave-data`, `leave` | [`LeaveData`], [`LeaveArgs`] | null; in a clone: it ends |
//! | `join` | [`JoinArgs`] | a list of [`JoinedClone`]s, when all clones of the ticket have ended; error 62 |
//! | `join-data` | [`JoinDataArgs`] | a [`JoinData`] |
//! | `kill` | [`KillArgs`] | the vmids of the clones that have ended |
//!
//! **`clone`** is fork. A program sends its call, and while it waits for the answer, it is cloned
//! with its VM. So the answer arrives in each VM, on the connection of that VM's copy of the
//! program:
//!
//! ```text
//! → {"verb":"clone","args":{"count":2}}
//! ← {"ok":{"vmid":0,"clones":[1,2],"failed":[]}}      in the parent
//! ← {"ok":{"vmid":1,"clones":[],"failed":[]}}         in the first clone
//! ← {"ok":{"vmid":2,"clones":[],"failed":[]}}         in the second
//! ```
//!
//! Only one `clone` runs at a time. Other calls of `clone` wait until it ends. As with fork, a
//! clone has copies of the waiting calls, and they continue there, too.
//!
//! The identity is also in a file, [`IDENTITY_FILE`], so that `gc vmid` costs one read and no
//! context switch.

use serde::{Deserialize, Serialize};

pub use crate::link::{
    Answer, CallError, Cloned, JoinArgs, JoinData, JoinDataArgs, JoinedClone, KillArgs, LeaveArgs, LeaveData,
    ListArgs, Member, MembersPage, SyncArgs, Synced, TicketArgs, TicketName, TicketView, TicketsArgs,
    TicketsPage,
};

/// The agent's socket.
pub const SOCKET: &str = "/run/gridcentric/agent.sock";

/// The VM's identity as `KEY=VALUE` lines (`vmid`, `ip`, `prefix`, `gateway`, `mac`, `hostname`,
/// `family`, `ticket`: what the VM was made under, empty on the master), at most
/// [`IDENTITY_MAX_BYTES`]. The agent replaces it by rename, or writes it in place while all other
/// processes are held, so a reader sees one identity whole. Lines may be empty.
pub const IDENTITY_FILE: &str = "/run/gridcentric/identity";

/// Greatest size of [`IDENTITY_FILE`].
pub const IDENTITY_MAX_BYTES: usize = 1024;

/// One call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// See the table above.
    pub verb: String,
    /// The verb's arguments.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub args: serde_json::Value,
}

/// The arguments of the verb `clone`: `count` or `ticket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneCall {
    /// How many clones, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// As many as this ticket is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Whether the guest's other processes are held from before the freeze until they have, in each
    /// machine, the identity that is theirs. Without it they may run for a moment in a clone that
    /// takes itself for its parent.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub hold: bool,
}

fn yes() -> bool {
    true
}

/// What the verb `clone` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneResult {
    /// As fork: 0 in the machine that was cloned, whatever its own vmid; in a clone the clone's.
    pub vmid: u32,
    /// The vmids of the clones that run; empty in a clone.
    #[serde(default)]
    pub clones: Vec<u32>,
    /// Those that could not be started, with the reason; empty in a clone. Where all failed, the
    /// answer is an error instead.
    #[serde(default)]
    pub failed: Vec<(u32, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_call_holds_unless_it_says_otherwise() {
        let call = |text| serde_json::from_str::<CloneCall>(text).ok();
        let three = CloneCall { count: Some(3), ticket: None, hold: true };
        assert_eq!(call(r#"{"count":3}"#), Some(three.clone()));
        assert_eq!(serde_json::to_string(&three).ok(), Some(r#"{"count":3}"#.to_owned()));
        let unheld = CloneCall { hold: false, ..three };
        assert_eq!(serde_json::to_string(&unheld).ok(), Some(r#"{"count":3,"hold":false}"#.to_owned()));
        assert_eq!(call(r#"{"number":3}"#), None);
    }
}
