//! Why a vmm does not do what was asked on its control socket.

use super::{filling::LAZY_VERSION, generation::GenerationError};
use crate::{plan::lifecycle::Exit, store::StoreError};
use patina_abi::{lines::TooLong, link::CallError};
use patina_control::VERSION;
use patina_control::messages::Opened;
use std::{io, time::Duration};

/// Why a vmm does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The VM's folder is gone.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody listens.
    #[error("connect to the vmm")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("talk to the vmm")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("wait for the vmm's answer: timeout after {0:?}")]
    Timeout(Duration),
    /// It closed instead of answering.
    #[error("wait for the vmm's answer: it closed the connection")]
    Closed,
    /// It is gone.
    #[error("the vmm {0}")]
    Died(Exit),
    /// Its VM has ended; why.
    #[error("it has ended: {0}")]
    Ended(String),
    /// A line is too long.
    #[error("read from the vmm")]
    Long(#[from] TooLong),
    /// A line is not what it should be.
    #[error("parse the vmm's line")]
    Parse(#[source] serde_json::Error),
    /// The vmm says no.
    #[error("the vmm refused: {0}")]
    Refused(String),
    /// It speaks a newer version than this `vmmd`.
    #[error(
        "talk to the vmm: it speaks version {0} of the control protocol, this vmmd only version {VERSION}; its program \
         has been replaced by a newer one: restart vmmd with the release that it is of"
    )]
    Newer(u32),
    /// It is too old to start while its memory arrives.
    #[error(
        "start the VM while its memory arrives: its vmm speaks version {0} of the control protocol, version {LAZY_VERSION} \
         is needed; the program has been replaced by an older one: install that of this release"
    )]
    Older(u32),
    /// Its memory cannot be served.
    #[error("serve its memory: {0}")]
    Memory(String),
    /// Memory that it needs is lost.
    #[error("{0}")]
    Lost(String),
    /// Its guest was not prepared.
    #[error("the guest did not prepare: {0}")]
    NotPrepared(CallError),
    /// Its guest's agent is too old for what the VM is frozen for.
    #[error("the guest's agent speaks ABI {0}")]
    OldAgent(u32),
    /// It answers another question.
    #[error("parse the vmm's line: {0:?} does not answer the request")]
    Answer(Opened),
    /// It says yes and sends nothing, or too much.
    #[error("read the vmm's answer: it has {0} descriptors instead of {1}")]
    Descriptors(usize, usize),
    /// What it sends cannot be used.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

impl ControlError {
    /// That of a connection whose other end may have gone.
    #[must_use]
    pub fn may_be_death(&self) -> bool {
        matches!(self, Self::Closed | Self::Io(_) | Self::Connect(_))
    }
}
