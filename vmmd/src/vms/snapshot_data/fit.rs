//! Whether this host can run the VM of a snapshot: looked at before anything is made of it.

use super::error::SnapshotError;
use crate::process::host_check;
use patina_snapshot::{
    container::{Container, ContainerError},
    directory::Snapshot,
    facts::HostFacts,
};

/// What the VM of a snapshot needs of a host. May block.
///
/// # Errors
/// The state cannot be read, or another release wrote it.
pub fn needs(snapshot: &Snapshot) -> Result<HostFacts, SnapshotError> {
    // Whole, as its digest is over all of it.
    let state = snapshot.state()?;
    let other =
        |source: ContainerError| SnapshotError::OtherState { place: snapshot.place().to_owned(), source };
    Ok(Container::read(&state).map_err(other)?.facts().clone())
}

/// Checks that a VM with these needs can run here. Where nobody knows what this host has, the vmm
/// finds it out.
///
/// # Errors
/// It cannot. Both sides are named.
pub fn check(snapshot: &Snapshot, needs: &HostFacts) -> Result<(), SnapshotError> {
    let Some(host) = host_check::facts() else { return Ok(()) };
    let place = || snapshot.place().to_owned();
    host.check(needs).map_err(|source| SnapshotError::OtherHost { place: place(), source })
}
