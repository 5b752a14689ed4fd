//! How a VM ended.

use serde::{Deserialize, Serialize};

/// How and why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The kind.
    pub kind: EndKind,
    /// In words, for people: what happened, and where an instruction is the cause, its bytes, text and address.
    pub reason: String,
}

/// The ways in which a VM ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// The guest halted or powered off.
    PoweredOff,
    /// The guest asked for a reset.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's CPU triple-faulted.
    TripleFaulted,
    /// `vmmd` said so.
    Killed,
    /// The guest said so (`gc join`; recorded by `vmmd`, never by the vmm).
    Joined,
    /// KVM, a device or the vmm itself could not go on.
    VmmError,
    /// The vmm process went away without a word (recorded by `vmmd`, never by the vmm).
    VmmDied,
    /// A kind that only a newer vmm knows; the reason says what happened.
    #[serde(other)]
    Other,
}
