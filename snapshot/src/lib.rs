//! A VM as files that are checked before they are used.
//!
//! - [`container`]: the state of a generation, without its memory: sections with versions and
//!   checksums, and the facts of the host that made it.
//! - [`facts`]: what a VM needs of a host, and whether a host has it. [`cpuid`]: the part of it
//!   that CPUID tells.
//!   [`baseline`]: what several hosts have in common.
//! - [`mod@layout`]: how the values in a section are written. [`sections`]: which there are.
//! - [`directory`]: a snapshot in a directory: a manifest, the state, and one file per layer.
//! - [`manifest`]: what a snapshot holds, with a digest of each run of its memory.
//!
//! The crate knows neither KVM nor a network. The vmm writes and reads the state, `vmmd` writes and
//! checks directories, and the pager reads runs.

pub mod baseline;
pub mod container;
pub mod cpuid;
pub mod directory;
pub mod facts;
pub mod layout;
pub mod manifest;
pub mod sections;
