//! A snapshot in a directory: the files `manifest`, `state`, and for each layer `layer-ID`.
//!
//! - `manifest`: see [`crate::manifest`]. It has the digests of all that follows.
//! - `state`: the state of the generation, opaque here.
//! - `demand-ID`, which may be missing: what VMs demanded of a layer, so that a later restore reads
//!   that first ([`load_demand`]). It is advice only: what is wrong with it harms nothing.
//! - `layer-ID`: the pages of one layer, each at its own offset, so that the file can be mapped. It
//!   is as long as the RAM, and sparse: a hole is zeros. ID is the layer's id in hexadecimal
//!   digits. Snapshots of one VM share the files of their layers by hard links.
//!
//! Nothing else of a snapshot changes once it is made. [`create()`] writes it beside its place,
//! under a name that begins with [`UNFINISHED_PREFIX`], and moves it when all of it is on the disk.
//! The directory is locked (`flock`) exclusively while it is made or removed, and shared while a
//! [`Snapshot`] is open. An unfinished directory without a lock was left by a process that was
//! killed: the next [`create()`] or [`remove`] in the same parent directory removes it.
//!
//! Nothing that is read is trusted. [`Snapshot::open`] checks the manifest and the size and kind of
//! each file. [`Snapshot::state`] and [`LayerFile::read_run`] check each content before they return
//! it. A file that is mapped is not checked: first call [`Snapshot::verify`].

mod copy;
mod create;
mod demand;
mod digest;
mod error;
mod folder;
mod layer;
mod load;
mod names;
mod parallel;
mod progress;
mod remove;
mod reuse;
mod snapshot;
mod steps;
mod unfinished;
mod write;

pub use create::{Created, create};
pub use demand::{DemandError, load_demand, save_demand};
pub use digest::{DigestError, digest_layer};
pub use error::{CreateError, FileError, LoadError, OpenError, RemoveError, RunError, VerifyError};
pub use layer::{LayerFile, Run};
pub use load::load_layer;
pub use names::UNFINISHED_PREFIX;
pub use progress::{Progress, Watch, unwatched};
pub use remove::{Listed, clean, list, remove};
pub use snapshot::{KnownLayer, Report, Snapshot, Usage};

#[cfg(test)]
mod tests;
