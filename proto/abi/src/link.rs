//! The agent's link to its host: JSON lines over vsock. The agent connects to [`crate::HOST_CID`],
//! port [`crate::LINK_PORT`]. A VM has one link. A second link replaces the first.
//!
//! ```text
//!  agent                                host
//!    │── hello {abi, agent} ─────────────▶│
//!    │◀──────────── identity {vmid, ip …} ─│   sent again when it changes
//!    │── ready {vmid, family} ───────────▶│   identity is applied, exec sessions are accepted
//!    │   or: not_ready {reason} ──────────▶│   identity cannot be applied: the VM is ended
//!    │── request {id, verb, args} ───────▶│   a program's call that the host must answer
//!    │◀────────────── reply {id, result} ──│   in any order
//!    │── cancel {id} ────────────────────▶│   the program has gone: no reply, except to a clone
//!    │◀─────────────────── prepare {hold} ─│   the host is going to clone the VM
//!    │── prepared {result} ──────────────▶│   hooks have run, processes are held: freeze now
//!    │◀───────────────── resumed {cloned} ─│   in the VM that was frozen, right after the freeze
//!    │── clock ──────────────────────────▶│   something else has set the guest's clock
//!    │◀───────────────── clock {clock_ns} ─│   the answer; also sent when the host's clock was
//!    │                                     │   set, or the host has slept
//! ```
//!
//! The agent says hello on its first link. From then on the host knows it, in this VM and in its
//! clones. Whenever the agent connects again, the host sends `identity` at once. This saves a clone
//! two messages, and milliseconds. A hello on such a link (from an agent that was restarted) needs
//! no answer.
//!
//! **A clone** receives an identity of another VM, without a request: the vmid or the family is
//! another one. (A VM that is restored from a snapshot may have the same vmid in a new family.)
//! This tells the agent that it is in a clone. It applies the identity, says ready, releases the
//! held processes, runs the post-clone hook, and answers the program that called `clone` with the
//! new vmid.
//!
//! The identity arrives on the existing link, whose other end is the clone's own vmm by then. If
//! data was in flight on that link when the VM was cloned, the link is broken, and the identity
//! arrives on a new link. Lines that the agent sent before it knew its new identity are for the
//! parent: a clone's vmm ignores them until `ready` with its vmid and its family. In the clone,
//! calls that the host had not answered are answered as if the link had broken.
//!
//! **The VM that was frozen** keeps its link and receives `resumed`. If the guest itself requested
//! the clone, it receives the reply as well.
//!
//! **When a program requests** clones, the agent first prepares (it runs the hook and holds the
//! processes). Then it sends the request `clone` with [`CloneArgs`]. The reply is a [`Cloned`] or
//! an error. If the VM was frozen, `resumed` comes before the reply.
//!
//! The host identifies the VM by its connection, so an agent cannot name another VM.

mod tickets;

pub use tickets::*;

use crate::args::{Args, kind_of};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;
use std::net::Ipv4Addr;

/// Most requests an agent may have unanswered at once.
pub const REQUESTS_MAX: usize = 64;

/// What the agent sends. It is read from JSON text only.
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
    /// The identity is applied, and exec sessions are accepted.
    Ready {
        /// The vmid of that identity. A clone's link may still carry a line that was sent in the
        /// parent.
        vmid: u32,
        /// The family of that identity, for the same reason. Agents before version 4 do not send
        /// it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        family: String,
        /// [`crate::ABI`] of the agent: in a clone no hello says it. Agents before version 4 do not
        /// send it.
        #[serde(default = "abi_of_old_agents", skip_serializing_if = "is_old")]
        abi: u32,
        /// Where the guest's kernel describes itself. None: this kernel does not, or an older agent
        /// does not say it. The host ignores it on a link that a program without privileges may
        /// have made: [`crate::AGENT_PORTS`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vmcoreinfo: Option<Vmcoreinfo>,
    },
    /// The identity cannot be applied, or in a clone, the part that differs from the parent's. The
    /// VM's network stays closed, and the host ends the VM.
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
    /// The program that made a request has gone, and no answer is sent. A `clone` is an exception:
    /// it is answered as usual, with error 125 (ECANCELED) if it could still be cancelled.
    Cancel {
        /// The request's id.
        id: u64,
    },
    /// The answer to [`FromHost::Prepare`].
    Prepared {
        /// `Ok(null)`, or an error: another clone is in progress (16, EBUSY), or the pre-clone hook
        /// failed (its output is in the message). After an error no process is held.
        #[serde(flatten)]
        result: Answer,
    },
    /// Something other than the agent has set the guest's clock. Answered by [`FromHost::Clock`].
    Clock,
    /// A kind that only a newer agent knows. It is ignored.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// Where the kernel's VMCOREINFO note lies, as `/sys/kernel/vmcoreinfo` says it. The host reads the
/// note in a frozen image, to find the pages that are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmcoreinfo {
    /// The physical address of the ELF note.
    pub address: u64,
    /// The greatest length of the note, bytes.
    pub bytes: u32,
}

/// The version of agents that do not say theirs with [`FromAgent::Ready`].
const ABI_OF_OLD_AGENTS: u32 = 3;

fn abi_of_old_agents() -> u32 {
    ABI_OF_OLD_AGENTS
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_old(abi: &u32) -> bool {
    *abi == ABI_OF_OLD_AGENTS
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

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromHost {
    /// The VM's identity from now on.
    Identity(Identity),
    /// The answer to a [`FromAgent::Request`].
    Reply {
        /// The request's id.
        id: u64,
        /// The outcome.
        #[serde(flatten)]
        result: Answer,
    },
    /// Prepare to be cloned: run the pre-clone hook, hold the other processes. Answered by
    /// [`FromAgent::Prepared`].
    Prepare {
        /// Whether the guest's other processes are held until the clones have their identities.
        hold: bool,
    },
    /// Continue: release the held processes.
    Resumed {
        /// Whether clones were made. The post-clone hook runs only then.
        cloned: bool,
    },
    /// The current time: as an answer, or because the host's clock was set.
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
    /// Those that could not be started, with the reason. Where all failed, the request's answer is
    /// an error instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(u32, String)>,
}

/// The identity of a VM. The agent applies it: hostname, MAC, address, route, clock.
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
    /// The host's wall clock when it sent this, nanoseconds since 1970.
    pub clock_ns: u64,
    /// Randomness from the host, 64 hex digits, new with every identity that is sent: a clone has
    /// its parent's kernel randomness until it has mixed this in. Empty: none.
    #[serde(default)]
    pub seed: String,
}

impl Identity {
    /// Whether the two are of the same VM, however its settings have changed.
    #[must_use]
    pub fn is_same_vm(&self, other: &Self) -> bool {
        self.vmid == other.vmid && self.family == other.family
    }
}

/// The outcome of a call: exactly one of `ok` and `error` on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the verb returns.
    Ok(serde_json::Value),
    /// Why the call failed.
    Error(CallError),
}

/// Why a call failed.
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
    /// Returns a [`MembersPage`] from this vmid on. None: returns a list of all [`Member`]s, or
    /// error 90 (EMSGSIZE) when that does not fit on a line, which holds some 400.
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
    /// `booting`, `ready` or `ended`; `unreachable` on another host that does not answer. VMs of
    /// other hosts are listed as long as they live.
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
