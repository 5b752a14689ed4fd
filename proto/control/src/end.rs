//! How a VM ended.

use serde::{Deserialize, Serialize};

/// How and why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The kind.
    pub kind: EndKind,
    /// In words: what happened. If an instruction is the cause, also its bytes, text and address.
    pub reason: String,
}

/// The ways in which a VM ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// The guest halted or powered off.
    PoweredOff,
    /// The guest requested a reset.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's CPU triple-faulted.
    TripleFaulted,
    /// `vmmd` killed it.
    Killed,
    /// The guest requested it (`gc join`; recorded by `vmmd`, never by the vmm).
    Joined,
    /// KVM, a device or the vmm itself failed.
    VmmError,
    /// The vmm process ended without a record (recorded by `vmmd`, never by the vmm).
    VmmDied,
    /// Memory that it needed cannot be had any longer, or is not what it was (recorded by `vmmd`,
    /// never by the vmm).
    DataLoss,
    /// A kind that only a newer vmm knows. The reason says what happened.
    #[serde(other)]
    Other,
}
