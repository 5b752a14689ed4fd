//! The control socket of a `vmm` process. It is a Unix stream socket. The first line of a
//! connection, an [`Open`] as JSON, gives the connection's purpose. The vmm answers with an
//! [`Opened`] line. What follows depends on the purpose:
//!
//! - `control`: JSON lines, [`FromVmm`] and [`ToVmm`], until either side closes. There is one
//!   control connection at a time: a new one replaces the old, so that a restarted `vmmd` takes
//!   over. The first line is a [`FromVmm::Hello`], unless a `vmmd` of version 0 started the vmm.
//!   The next line is a [`FromVmm::State`].
//! - `dial`: raw bytes to and from a vsock port on which the guest listens.
//! - `freeze`, `start`, `pager`, `touched`, `free_pages`: nothing. The answer has all the data, and
//!   the vmm closes the connection.
//! - `console`: raw bytes to and from the serial console, from this moment on.
//!
//! Lines are at most [`patina_abi::LINE_MAX_BYTES`] long. [`crate::VERSION`] has the rules for
//! lines of a newer peer.

use super::config::Member;
use super::end::End;
use patina_abi::args::{Args, kind_of};
use patina_abi::link::{Answer, CallError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;

/// The first line of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Open {
    /// Becomes the control connection.
    Control,
    /// A stream to a vsock port of the guest.
    Dial {
        /// The guest's port.
        port: u32,
    },
    /// The serial console.
    Console,
    /// Freezes the VM and resumes it. The answer, [`Opened::Frozen`], carries descriptors
    /// (SCM_RIGHTS): the generation's state, then the 1 to [`super::config::LAYERS_MAX`] sealed
    /// memfds of its RAM. Each memfd is as long as the RAM, and sparse. The state is a container
    /// (crate `patina-snapshot`), which maps each page to a memfd.
    Freeze {
        /// What the agent does first. None: the guest itself requested the clone, so the agent has
        /// prepared already. It is told afterwards that the VM has resumed.
        prepare: Option<Prepare>,
    },
    /// Starts a warm VM. The line comes with descriptors (SCM_RIGHTS): the generation's state, a
    /// prefault list (as [`Open::PrefaultList`] gives it, or empty), then the memfds of the RAM.
    /// The answer is [`Opened::Started`].
    Start {
        /// The ticket under which the VM is made. Empty: none.
        #[serde(default)]
        ticket: String,
        /// The numbers of the layers that the pager is still filling. If there are any, one more
        /// descriptor comes last: a connected Unix stream socket to the pager, on which the vmm
        /// sends [`super::pager::VmToPager::Attach`]. The pager numbers only these layers, in this
        /// order. A vmm before version 2 does not know this.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        filling: Vec<u8>,
        /// Who the VM is, if the vmm is a spare, and only then. Such a vmm knows this field; the
        /// tap of its configuration is on the family's bridge by now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        member: Option<Box<Member>>,
    },
    /// Another pager serves the VM. The line comes with one descriptor, as the last one of
    /// [`Open::Start`]. The answer is [`Opened::Ok`] when that pager serves it.
    Pager,
    /// The pages that the VM wrote between its start from a generation and its agent's ready, as
    /// one sealed memfd: pairs of u64 LE, first byte and length in bytes of a range of RAM,
    /// ascending. The next clone prefaults these pages.
    ///
    /// On the wire its name is `touched`, for vmms that were started before the name changed.
    #[serde(rename = "touched")]
    PrefaultList,
    /// The pages that are free in the generation of the last freeze, as the guest's kernel has them
    /// on its lists: one sealed memfd as for [`Open::PrefaultList`], at most
    /// [`FREE_PAGES_MAX_BYTES`] long. A snapshot leaves these pages out.
    ///
    /// It is refused where this is not known: the agent has not said where its kernel describes
    /// itself ([`patina_abi::link::Vmcoreinfo`]), or memory has not arrived yet.
    FreePages {
        /// [`Frozen::number`] of the generation. It is refused if the VM has been frozen since.
        frozen: u64,
    },
}

/// What a VM's agent does before the VM is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepare {
    /// The agent is asked to prepare, and told when the VM has resumed.
    Ask {
        /// Hold the guest's other processes until each clone has its identity.
        hold: bool,
        /// An agent of an older ABI is not asked, and the VM is not frozen: the answer is
        /// [`Opened::OldAgent`]. A vmm that does not know this freezes the VM.
        #[serde(default, skip_serializing_if = "is_zero")]
        agent_abi_min: u32,
    },
    /// The agent is neither asked nor told. If it prepares at that time, it does so for another
    /// freeze.
    Not,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Longest state of a generation, bytes.
pub const STATE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Longest prefault list, bytes.
pub const PREFAULT_LIST_MAX_BYTES: u64 = 1024 * 1024;

/// Longest list of free pages, bytes.
pub const FREE_PAGES_MAX_BYTES: u64 = 1024 * 1024;

/// The vmm's answer to an [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opened {
    /// Success. What follows depends on the connection's purpose.
    Ok,
    /// The answer to [`Open::Freeze`].
    Frozen(Frozen),
    /// The answer to [`Open::Start`]: the VM's first vCPU enters the guest.
    Started {
        /// When: [`crate::monotonic_ns`].
        entered_ns: u64,
    },
    /// The answer to [`Open::Freeze`] where the agent could not prepare: 16 (EBUSY), another clone
    /// is under way; 107 (ENOTCONN), the agent does not answer; 110 (ETIMEDOUT), the pause would
    /// have come when the agent may have released the programs that it holds; 125 (ECANCELED), the
    /// pre-clone hook failed.
    NotPrepared(CallError),
    /// The answer to [`Open::Freeze`] where the agent's ABI is below
    /// [`Prepare::Ask::agent_abi_min`].
    OldAgent {
        /// The agent's ABI.
        abi: u32,
    },
    /// The reason for a refusal. The vmm closes the connection.
    Error(String),
}

/// The cost of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// How long no vCPU ran, microseconds.
    pub pause_us: u64,
    /// Pages of RAM that were copied into the generation.
    pub copied_pages: u64,
    /// Pages of RAM that are being prefaulted for the VM itself, while it runs, because it is
    /// likely to write them again. Only at the first freeze. An older vmm does not send this.
    #[serde(default)]
    pub copied_beside_pages: u64,
    /// [`patina_abi::ABI`] of the VM's agent. 0: an older vmm does not send it, or no agent has
    /// said it yet.
    #[serde(default)]
    pub agent_abi: u32,
    /// For [`Open::FreePages`]: counts the freezes of this vmm. 0: an older vmm, or this generation
    /// cannot be looked at.
    #[serde(default)]
    pub number: u64,
}

/// What a vmm sends on its control connection. It is read from JSON text only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", remote = "Self")]
pub enum FromVmm {
    /// The first line of a control connection. A vmm that a `vmmd` of version 0 started leaves it
    /// out.
    Hello {
        /// [`crate::VERSION`] of the vmm.
        version: u32,
    },
    /// The VM's state. Sent when `vmmd` connects, and at every change.
    State(State),
    /// A call from the guest that `vmmd` must answer.
    GuestRequest {
        /// Chosen by the vmm, unique while unanswered.
        id: u64,
        /// The verb; see [`patina_abi::link::FromAgent::Request`].
        verb: String,
        /// Its arguments, unchecked; with the verb at most [`patina_abi::CALL_MAX_BYTES`].
        #[serde(skip_deserializing)]
        args: Args,
    },
    /// The guest cancels a call.
    GuestCancel {
        /// The request's id.
        id: u64,
    },
}

/// [`FromVmm::GuestRequest`] as it is read.
#[derive(Deserialize)]
struct GuestRequest {
    id: u64,
    verb: String,
    args: Args,
}

impl Serialize for FromVmm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for FromVmm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let line = Box::<RawValue>::deserialize(deserializer)?;
        if kind_of(line.get()).map_err(D::Error::custom)? == "guest_request" {
            let GuestRequest { id, verb, args } =
                serde_json::from_str(line.get()).map_err(D::Error::custom)?;
            return Ok(Self::GuestRequest { id, verb, args });
        }
        Self::deserialize(&mut serde_json::Deserializer::from_str(line.get())).map_err(D::Error::custom)
    }
}

/// The state of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The VM is made and waits for a generation.
    Warm,
    /// The vCPUs run, and the agent is not ready yet.
    Booting,
    /// The agent has applied the identity.
    Ready {
        /// From the start of the vmm process (of a warm one: from [`Open::Start`]) to here,
        /// microseconds.
        after_us: u64,
    },
    /// The VM has ended, and the process is about to end.
    Ended(End),
}

/// What `vmmd` sends on the control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ToVmm {
    /// The answer to a [`FromVmm::GuestRequest`].
    GuestReply {
        /// The request's id.
        id: u64,
        /// The outcome.
        #[serde(flatten)]
        answer: Answer,
    },
    /// End the VM now, with [`super::end::EndKind::Killed`].
    Kill {
        /// By whom and why, in words, for the record.
        reason: String,
    },
}
