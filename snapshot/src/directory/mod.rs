//! A snapshot in a directory: the files `manifest`, `state`, and `layer-ID` for each layer.
//!
//! - `manifest`: see [`crate::manifest`]. It has the digests of all that follows.
//! - `state`: the state of the generation, opaque here.
//! - `layer-ID`: the pages of one layer, each at its own offset, so that the file can be mapped. It
//!   is as long as the RAM, and sparse: a hole is zeros. ID is the layer's id in hexadecimal
//!   digits. Snapshots of one VM share the files of their layers by hard links.
//!
//! A snapshot never changes. [`create()`] writes it beside its place, under a name that begins with
//! [`UNFINISHED_PREFIX`], and moves it when all of it is on the disk. The directory is locked
//! (`flock`) exclusively while it is made or removed, and shared while a [`Snapshot`] is open. An
//! unfinished directory without a lock was left by a process that was killed: the next
//! [`create()`] or [`remove`] in the same parent directory removes it.
//!
//! Nothing that is read is trusted. [`Snapshot::open`] checks the manifest and the size and kind of
//! each file. [`Snapshot::state`] and [`LayerFile::read_run`] check each content before they return
//! it. A file that is mapped is not checked: first call [`Snapshot::verify`].

mod copy;
mod create;
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
pub use error::{CreateError, FileError, LoadError, OpenError, RemoveError, RunError, VerifyError};
pub use layer::{LayerFile, Run};
pub use load::load_layer;
pub use names::UNFINISHED_PREFIX;
pub use progress::{Progress, Watch, unwatched};
pub use remove::{Listed, list, remove};
pub use snapshot::{KnownLayer, Report, Snapshot, Usage};

#[cfg(test)]
mod tests;
