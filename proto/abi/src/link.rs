//! The agent's link to its host: JSON lines over vsock, from the guest to [`crate::HOST_CID`] port
//! [`crate::LINK_PORT`]. One link a VM; a second one replaces the first.
//!
//! ```text
//!  agent                                host
//!    │── hello {abi, agent} ─────────────▶│
//!    │◀──────────── identity {vmid, ip …} ─│   again at any time it changes
//!    │── ready ──────────────────────────▶│   identity is in place, exec sessions are taken
//!    │── request {id, verb, args} ───────▶│   a program's call that the host must answer
//!    │◀────────────── reply {id, result} ──│   in any order
//! ```
//!
//! The VM is known by its connection: nothing the agent says can name another VM.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Most requests an agent may have unanswered at once.
pub const REQUESTS_MAX: usize = 64;

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromAgent {
    /// The first line of every link.
    Hello {
        /// [`crate::ABI`] of the agent.
        abi: u32,
        /// The agent's version, for people.
        agent: String,
    },
    /// The identity is in place and exec sessions are taken.
    Ready,
    /// A call of a program in the guest that the host must answer.
    Request {
        /// Chosen by the agent, unique among its unanswered requests.
        id: u64,
        /// For example `list`.
        verb: String,
        /// The verb's arguments.
        #[serde(default)]
        args: serde_json::Value,
    },
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromHost {
    /// Who this VM is, from now on.
    Identity(Identity),
    /// The answer to a [`FromAgent::Request`].
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        #[serde(flatten)]
        result: Answer,
    },
}

/// Who a VM is. The agent puts it in place: hostname, MAC, address, route, clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 0 on the master.
    pub vmid: u32,
    /// UUID of the family.
    pub family: String,
    /// The VM's address on its family's network.
    pub ip: Ipv4Addr,
    /// Prefix length of that network.
    pub prefix: u8,
    /// The host's address on that network: the default route.
    pub gateway: Ipv4Addr,
    /// `02:…`, lower-case hex with colons.
    pub mac: String,
    /// The VM's host name.
    pub hostname: String,
    /// Wall clock of the host as it sent this, nanoseconds since 1970.
    pub clock_ns: u64,
    /// Randomness from the host, 64 hex digits, new with every identity that is sent: a clone has its parent's kernel
    /// randomness until it has mixed this in. Empty: none.
    #[serde(default)]
    pub seed: String,
}

/// The outcome of a call: exactly one of `ok` and `error` on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the verb returns.
    Ok(serde_json::Value),
    /// Why it did not work.
    Error(CallError),
}

/// Why a call did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// An errno of Linux, also the exit code of `gc`: 16 EBUSY, 22 EINVAL, 62 ETIME, 107 ENOTCONN …
    pub code: i32,
    /// What, why, and what to do.
    pub message: String,
}

/// One VM in the answer of `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// 0 on the master.
    pub vmid: u32,
    /// Its address.
    pub ip: Ipv4Addr,
    /// `booting`, `ready` or `ended`.
    pub state: String,
    /// The host it runs on.
    pub host: String,
}
