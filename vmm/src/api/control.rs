//! The control socket of a `vmm` process: a Unix stream socket on which the first line of a connection,
//! an [`Open`] as JSON, says what the connection is for. The vmm answers with an [`Opened`] line; then:
//!
//! - `control`: JSON lines, [`FromVmm`] and [`ToVmm`], until either side closes. One at a time: a new one
//!   replaces the old, so that a restarted `vmmd` takes over. The first line is a [`FromVmm::State`].
//! - `dial`: raw bytes to and from a port that the guest listens on over vsock.
//! - `freeze`: nothing: what there is came with the answer.
//! - `console`: raw bytes to and from the serial console, from this moment on.
//!
//! Lines are at most [`patina_abi::LINE_MAX_BYTES`] long.

use super::end::End;
use patina_abi::link::Answer;
use serde::{Deserialize, Serialize};

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
    /// Freezes the VM and lets it go on: the answer carries two descriptors (SCM_RIGHTS), the generation's state and
    /// its RAM, and the connection is closed.
    Freeze,
}

/// The vmm's answer to an [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opened {
    /// What follows is as the connection's kind says.
    Ok,
    /// Why not; the vmm closes.
    Error(String),
}

/// What a vmm tells on its control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromVmm {
    /// Where the VM stands: on attaching and at every change.
    State(State),
    /// A call from the guest that `vmmd` must answer.
    GuestRequest {
        /// Chosen by the vmm, unique while unanswered.
        id: u64,
        /// The verb; see [`patina_abi::link::FromAgent::Request`].
        verb: String,
        /// Its arguments, unchecked.
        args: serde_json::Value,
    },
}

/// Where a VM stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The vCPUs run, the agent has not said ready.
    Booting,
    /// The agent has its identity in place.
    Ready {
        /// From the start of the vmm process to here, microseconds.
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
