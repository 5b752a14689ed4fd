//! What can be wrong with a manifest.

use super::{MANIFEST_MAX_BYTES, VERSION};

/// Why bytes are no manifest, or why a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes begin with something else.
    #[error("it is not the manifest of a snapshot: its first bytes are others")]
    Magic,
    /// Another release wrote it.
    #[error(
        "it has format version {found}, and this release reads version {VERSION}; use the release that made \
         the snapshot, or make a new one"
    )]
    Version {
        /// The version that it has.
        found: u32,
    },
    /// It has been cut, or something was added to it.
    #[error("it should have {expected} bytes and has {found}; get a whole copy of the snapshot")]
    Length {
        /// What its header says, bytes.
        expected: u64,
        /// The bytes that are there.
        found: u64,
    },
    /// It is longer than any manifest.
    #[error("it has {found} bytes, more than the {MANIFEST_MAX_BYTES} that a manifest may have")]
    TooLong {
        /// Its length, bytes.
        found: u64,
    },
    /// Some of its bytes have changed.
    #[error(
        "its bytes do not match their own digest: it was changed or damaged; get another copy of the snapshot"
    )]
    Digest,
    /// A part ends too early.
    #[error("it is damaged: its {part} ends too early")]
    Cut {
        /// The part.
        part: &'static str,
    },
    /// A part has more bytes than it should.
    #[error("it is damaged: its {part} has bytes that do not belong there")]
    Extra {
        /// The part.
        part: &'static str,
    },
    /// A newer release wrote it.
    #[error("it needs something that this release does not know (section {tag}); use a newer release")]
    Unknown {
        /// The section's tag.
        tag: u32,
    },
    /// A section has flags that it cannot have.
    #[error("it is damaged: section {tag} has the flags {flags:#x}")]
    Flags {
        /// The section's tag.
        tag: u32,
        /// Its flags.
        flags: u32,
    },
    /// A section comes twice or in the wrong place.
    #[error("it is damaged: section {tag} comes twice or in the wrong place")]
    Order {
        /// The section's tag.
        tag: u32,
    },
    /// A section is not there.
    #[error("it is damaged: section {tag} is missing")]
    Missing {
        /// The section's tag.
        tag: u32,
    },
    /// A part is out of its limits.
    #[error("its {field} is wrong: {found} instead of {expected}")]
    Field {
        /// The part.
        field: &'static str,
        /// What is there.
        found: String,
        /// What may be there.
        expected: String,
    },
}
