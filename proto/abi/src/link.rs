//! The agent's link to its host: JSON lines over vsock, from the guest to [`crate::HOST_CID`] port
//! [`crate::LINK_PORT`]. One link a VM; a second one replaces the first.
//!
//! ```text
//!  agent                                host
//!    │── hello {abi, agent} ─────────────▶│
//!    │◀──────────── identity {vmid, ip …} ─│   again at any time it changes
//!    │── ready {vmid} ───────────────────▶│   identity is in place, exec sessions are taken
//!    │   or: not_ready {reason} ──────────▶│   it is not, and cannot be: the VM is ended
//!    │── request {id, verb, args} ───────▶│   a program's call that the host must answer
//!    │◀────────────── reply {id, result} ──│   in any order
//!    │── cancel {id} ────────────────────▶│   the program has gone: no reply, but to a clone
//!    │◀─────────────────── prepare {hold} ─│   the VM is to be cloned from outside
//!    │── prepared {result} ──────────────▶│   hooks have run, processes are held: freeze now
//!    │◀───────────────── resumed {cloned} ─│   in the VM that was frozen, right after it
//!    │── clock ──────────────────────────▶│   the guest's clock was set by somebody else
//!    │◀───────────────── clock {clock_ns} ─│   the answer; also when the host's clock was set, or the host has slept
//! ```
//!
//! The agent says hello on its first link. From then on the host knows it, in this VM and in clones of it, and whenever it
//! connects again the host says `identity` at once, unasked: two messages less for a clone, which are milliseconds of its time. A
//! hello on such a link (of an agent that has been started again) needs no answer.
//!
//! **A clone** hears an identity with another vmid, unasked. That is how an agent knows that it is the clone: it puts the identity in
//! place, says ready, lets the held processes go on, runs the post-clone hook, and answers the program that asked with
//! the new vmid. The identity comes on the link that it has, whose other end is the clone's own host by now; or, where something
//! was on its way there as the VM was cloned, that link is found broken, and a new one brings it. What the agent said before it was
//! a clone is the parent's: a clone's host takes no notice until `ready` with its vmid. Calls that were with the host are, in the
//! clone, answered as if the link had broken. **The VM that was frozen** keeps its link, and hears `resumed` (and, when the guest
//! itself asked, the reply).
//!
//! **When a program asks** for clones, the agent prepares first (hook, holding) and sends the request `clone` then, with
//! [`CloneArgs`]; the reply is a [`Cloned`], or an error, and `resumed` comes before it where the VM was frozen.
//!
//! The VM is known by its connection: nothing the agent says can name another VM.

mod tickets;

pub use tickets::*;

use crate::args::{Args, kind_of};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;
use std::net::Ipv4Addr;

/// Most requests an agent may have unanswered at once.
pub const REQUESTS_MAX: usize = 64;

/// What the agent says. It is read from JSON text only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", remote = "Self")]
pub enum FromAgent {
    /// The first line of every link.
    Hello {
        /// [`crate::ABI`] of the agent.
        abi: u32,
        /// The agent's version, for people.
        agent: String,
    },
    /// The identity is in place and exec sessions are taken.
    Ready {
        /// Whose identity: a clone's link may still bring what was said in its parent.
        vmid: u32,
    },
    /// The identity cannot be put in place, or, in a clone, not what tells it from its parent: its network stays shut, and the host
    /// ends it.
    NotReady {
        /// In words, for people.
        reason: String,
    },
    /// A call of a program in the guest that the host must answer.
    Request {
        /// Chosen by the agent, unique among its unanswered requests.
        id: u64,
        /// For example `list`.
        verb: String,
        /// The verb's arguments; with the verb at most [`crate::CALL_MAX_BYTES`].
        #[serde(skip_deserializing)]
        args: Args,
    },
    /// The program that made a request has gone: it wants no answer, and none comes. Except to a `clone`: that is answered as ever, with
    /// error 125 (ECANCELED) where nothing had begun that cannot be undone.
    Cancel {
        /// The request's id.
        id: u64,
    },
    /// The answer to [`FromHost::Prepare`].
    Prepared {
        /// `Ok(null)`, or why not: another clone is under way (16, EBUSY), or the pre-clone hook failed (its output is in the
        /// message). After an error nothing is held.
        #[serde(flatten)]
        result: Answer,
    },
    /// Somebody else has set the guest's clock. Answered by [`FromHost::Clock`].
    Clock,
    /// A kind that only a newer agent knows. It is ignored.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// [`FromAgent::Request`] as it is read.
#[derive(Deserialize)]
struct Request {
    id: u64,
    verb: String,
    #[serde(default)]
    args: Args,
}

impl Serialize for FromAgent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for FromAgent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let line = Box::<RawValue>::deserialize(deserializer)?;
        if kind_of(line.get()).map_err(D::Error::custom)? == "request" {
            let Request { id, verb, args } = serde_json::from_str(line.get()).map_err(D::Error::custom)?;
            return Ok(Self::Request { id, verb, args });
        }
        Self::deserialize(&mut serde_json::Deserializer::from_str(line.get())).map_err(D::Error::custom)
    }
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
    /// Get ready to be cloned: run the pre-clone hook, hold the other processes. Answered by [`FromAgent::Prepared`].
    Prepare {
        /// Whether the guest's other processes are held until the clones have their identities.
        hold: bool,
    },
    /// Go on: let the held processes run.
    Resumed {
        /// Whether clones were made; only then the post-clone hook runs.
        cloned: bool,
    },
    /// What time it is: as an answer, or because the host's clock was set.
    Clock {
        /// As [`Identity::clock_ns`].
        clock_ns: u64,
    },
    /// A kind that only a newer host knows. It is ignored.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// The arguments of the request `clone`: exactly one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneArgs {
    /// How many clones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// As many as this ticket is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// What the request `clone` returns, in the VM that was cloned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// The vmids of the clones that run.
    pub vmids: Vec<u32>,
    /// Those that could not be started, with the reason. Where all failed, the request's answer is an error instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(u32, String)>,
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
    /// The ticket that the VM was made under; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ticket: String,
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
    /// An errno of Linux, also the exit code of `gc`: [`crate::codes`] has those of each verb.
    pub code: i32,
    /// What, why, and what to do.
    pub message: String,
}

impl CallError {
    /// With so much of its message as fits any line: the first [`crate::MESSAGE_MAX_BYTES`].
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.message.truncate(self.message.floor_char_boundary(crate::MESSAGE_MAX_BYTES));
        self
    }
}

/// The arguments of the request `list`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListArgs {
    /// Returns a [`MembersPage`] from this vmid on. None: returns a list of all [`Member`]s, or error 90 (EMSGSIZE) when that does not fit
    /// on a line, which holds some 400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
}

/// Some VMs of a family, by vmid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersPage {
    /// As many as fit on a line.
    pub members: Vec<Member>,
    /// [`ListArgs::from`] of the next page; None: this is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// One VM in the answer of `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The VM's vmid; 0 on the master.
    pub vmid: u32,
    /// The VM's address.
    pub ip: Ipv4Addr,
    /// `booting`, `ready` or `ended`.
    pub state: String,
    /// The host it runs on.
    pub host: String,
    /// The ticket that it was made under; None on the master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// The VM that it was cloned from; None on the master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_vmid: Option<u32>,
}
