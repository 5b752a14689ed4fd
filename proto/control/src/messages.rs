//! The control socket of a `vmm` process: a Unix stream socket on which the first line of a connection,
//! an [`Open`] as JSON, says what the connection is for. The vmm answers with an [`Opened`] line; then:
//!
//! - `control`: JSON lines, [`FromVmm`] and [`ToVmm`], until either side closes. One at a time: a new one
//!   replaces the old, so that a restarted `vmmd` takes over. The first lines are a [`FromVmm::Hello`], except from a vmm that
//!   a `vmmd` of version 0 started, and a [`FromVmm::State`].
//! - `dial`: raw bytes to and from a port that the guest listens on over vsock.
//! - `freeze`, `start`, `touched`: nothing: what there is came with the answer, and the connection is closed.
//! - `console`: raw bytes to and from the serial console, from this moment on.
//!
//! Lines are at most [`patina_abi::LINE_MAX_BYTES`] long. What either side does with a line of a newer peer: [`crate::VERSION`].

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
    /// Freezes the VM and lets it go on. The answer, [`Opened::Frozen`], carries descriptors (SCM_RIGHTS): the
    /// generation's state, then 1 to [`super::config::LAYERS_MAX`] sealed memfds that its RAM is made of. Each of these is as
    /// long as the RAM, and sparse; which page is in which is part of the state.
    Freeze {
        /// What the agent does first. None: it has, because the guest itself asks to be cloned; it is told afterwards that the VM
        /// goes on.
        prepare: Option<Prepare>,
    },
    /// Starts a warm VM. The line comes with descriptors (SCM_RIGHTS): the generation's state, a prefault list (as
    /// [`Open::PrefaultList`] gives it, or empty), then the memfds of the RAM. The answer is [`Opened::Started`].
    Start {
        /// The ticket that the VM is made under; empty: none.
        #[serde(default)]
        ticket: String,
    },
    /// The pages that the VM wrote between its start from a generation and its agent's ready, as one sealed memfd: pairs of
    /// u64 LE, first byte and length in bytes of a range of RAM, ascending. What helps one clone to start helps the next.
    ///
    /// On the wire it is `touched`, as vmms know it that run since before it had this name.
    #[serde(rename = "touched")]
    PrefaultList,
}

/// What a VM's agent does before the VM is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepare {
    /// It is asked to, and told afterwards.
    Ask {
        /// Hold the guest's other processes until each clone has its identity.
        hold: bool,
    },
    /// Nothing, and it is told nothing: whatever it prepares for is not this freeze.
    Not,
}

/// Longest state of a generation, bytes.
pub const STATE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Longest prefault list, bytes.
pub const PREFAULT_LIST_MAX_BYTES: u64 = 1024 * 1024;

/// The vmm's answer to an [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opened {
    /// What follows is as the connection's kind says.
    Ok,
    /// The answer to [`Open::Freeze`].
    Frozen(Frozen),
    /// The answer to [`Open::Start`]: the VM's first vCPU enters the guest.
    Started {
        /// When: [`crate::monotonic_ns`].
        entered_ns: u64,
    },
    /// The answer to [`Open::Freeze`] where the agent could not prepare: 16 (EBUSY), another clone is under way;
    /// 107 (ENOTCONN), the agent does not answer; 125 (ECANCELED), the pre-clone hook failed.
    NotPrepared(CallError),
    /// Why not; the vmm closes.
    Error(String),
}

/// What a freeze has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// How long no vCPU ran, microseconds.
    pub pause_us: u64,
    /// Pages of RAM that were copied into the generation.
    pub copied_pages: u64,
    /// Pages of RAM that are being copied for the VM itself, beside it: it is likely to write them again. Only the first time. A vmm of
    /// before does not tell.
    #[serde(default)]
    pub copied_beside_pages: u64,
}

/// What a vmm tells on its control connection. It is read from JSON text only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", remote = "Self")]
pub enum FromVmm {
    /// The first line of a control connection. A vmm that a `vmmd` of version 0 started leaves it out.
    Hello {
        /// [`crate::VERSION`] of the vmm.
        version: u32,
    },
    /// Where the VM stands: on attaching and at every change.
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
    /// The guest wants no answer to a call any more.
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

/// Where a VM stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All is made; what is missing is the generation.
    Warm,
    /// The vCPUs run, the agent has not said ready.
    Booting,
    /// The agent has its identity in place.
    Ready {
        /// From the start of the vmm process (of a warm one: from [`Open::Start`]) to here, microseconds.
        after_us: u64,
    },
    /// The VM has ended; the process is about to.
    Ended(End),
}

/// What `vmmd` says on the control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ToVmm {
    /// The answer to a [`FromVmm::GuestRequest`].
    GuestReply {
        /// The request's id.
        id: u64,
        /// What came of it.
        #[serde(flatten)]
        answer: Answer,
    },
    /// End the VM now, with [`super::end::EndKind::Killed`].
    Kill {
        /// By whom and why, in words, for the record.
        reason: String,
    },
}
