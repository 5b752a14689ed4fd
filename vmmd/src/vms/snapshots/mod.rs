//! Snapshots: VMs as directories of the host's disk. `patina_snapshot` reads and writes them.
//!
//! - [`create`](mod@create): keeps a VM in a snapshot; `free`: without its free pages.
//! - [`restore`]: starts VMs from one.
//! - [`from_image`]: starts VMs from images of their kind, instead of booting them.
//! - [`shelf`]: lists, shows, verifies and removes snapshots.

pub mod create;
mod free;
pub mod from_image;
pub mod restore;
pub mod shelf;

use patina_snapshot::directory::Progress;
use std::ops::ControlFlow;
use tokio_util::sync::CancellationToken;

/// Goes on as long as somebody waits for what comes of it.
fn while_wanted(abandoned: &CancellationToken) -> impl Fn(Progress) -> ControlFlow<()> + Sync {
    |_| if abandoned.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
