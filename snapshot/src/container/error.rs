//! Why a state cannot be written or read.

use super::{FORMAT, SECTIONS_MAX, Tag};
use crate::layout::LayoutError;
use patina_control::messages::STATE_MAX_BYTES;

/// Why a state cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// The bytes are something else, for example the state of a release that had no containers.
    #[error(
        "read the VM's state: it does not begin as a state does; a VM that an older release started has another form \
         of state: boot it anew"
    )]
    Magic,
    /// The framing is of another release.
    #[error(
        "read the VM's state: its format is version {found}, and this release reads version {FORMAT}; use the release \
         that wrote it, or boot the VM anew"
    )]
    Format {
        /// The version in the state.
        found: u32,
    },
    /// The state is cut, or something follows it.
    #[error(
        "read the VM's state: it has {found} bytes, and its header says {expected}; it is damaged: use another copy"
    )]
    Length {
        /// How many bytes there are.
        found: usize,
        /// How many bytes there should be.
        expected: usize,
    },
    /// The state is too long.
    #[error("the VM's state has {found} bytes; the limit is {STATE_MAX_BYTES}")]
    TooLong {
        /// How many bytes there are.
        found: usize,
    },
    /// There are too many sections, or not even the facts of the host.
    #[error("the VM's state has {found} sections; 1 to {SECTIONS_MAX} are allowed")]
    Count {
        /// How many there are.
        found: usize,
    },
    /// The last section ends before the end of the state.
    #[error("read the VM's state: {more} bytes follow its last section; it is damaged: use another copy")]
    Trailing {
        /// How many bytes follow.
        more: usize,
    },
    /// The header of a section leads out of the state.
    #[error("read the VM's state: the section at byte {at} is cut; the state is damaged: use another copy")]
    Cut {
        /// Where the section begins.
        at: usize,
    },
    /// A checksum does not match.
    #[error(
        "read the VM's state: the section at byte {at} has checksum {found:#010x}, and should have {expected:#010x}; the \
         state is damaged: use another copy"
    )]
    Checksum {
        /// Where the section begins.
        at: usize,
        /// The checksum of what is there.
        found: u32,
        /// The checksum of what was written.
        expected: u32,
    },
    /// A section has flags of a later format.
    #[error(
        "read the VM's state: section {tag} has unknown flags {flags:#x}; use the release that wrote the state"
    )]
    Flags {
        /// The section.
        tag: Tag,
        /// All of its flags.
        flags: u32,
    },
    /// A section is there twice.
    #[error("read the VM's state: section {tag} {index} is there twice; the state was not written by Patina")]
    Twice {
        /// The section.
        tag: Tag,
        /// Which one with that tag.
        index: u16,
    },
    /// A section that cannot be left out is not known.
    #[error(
        "read the VM's state: this release does not know its section {tag}, which is required; use the release that \
         wrote the state, or a later one"
    )]
    Unknown {
        /// The section.
        tag: Tag,
    },
    /// A section is missing.
    #[error("read the VM's state: section {tag} {index} is missing; the state was not written by Patina")]
    Missing {
        /// The section.
        tag: Tag,
        /// Which one with that tag.
        index: u16,
    },
    /// There are more sections of a kind than the VM has parts.
    #[error(
        "read the VM's state: it has a section {tag} {index}, and should have {count} of that kind; the state was not \
         written by Patina"
    )]
    More {
        /// The section.
        tag: Tag,
        /// Which one with that tag.
        index: u16,
        /// How many there should be.
        count: u16,
    },
    /// The content of a section has another layout.
    #[error(
        "read the VM's state: section {tag} has version {found}, and this release reads version {known}; use the \
         release that wrote the state, or boot the VM anew"
    )]
    Version {
        /// The section.
        tag: Tag,
        /// The version in the state.
        found: u16,
        /// The version that this release reads.
        known: u16,
    },
    /// The content of a section is not what its layout says.
    #[error("read the VM's state: section {tag} {index}")]
    Content {
        /// The section.
        tag: Tag,
        /// Which one with that tag.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: LayoutError,
    },
}
