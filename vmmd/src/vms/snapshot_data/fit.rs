//! Whether this host can run the VM of a snapshot: looked at before anything is made of it.

use super::error::SnapshotError;
use crate::process::host_check;
use patina_snapshot::{container::Container, directory::Snapshot, facts::HostFacts, sections::KNOWN};
use std::path::Path;

/// What the VM of a snapshot needs of a host. May block.
///
/// # Errors
/// The state is damaged, or another release wrote it: all of its sections are looked at.
pub fn needs(snapshot: &Snapshot) -> Result<HostFacts, SnapshotError> {
    // Whole, as its digest is over all of it.
    needs_of(snapshot.place(), &snapshot.state()?)
}

/// What the VM of a state needs of a host. `place` is where the state is from, for errors.
///
/// # Errors
/// The state is damaged, or another release wrote it: all of its sections are looked at.
pub fn needs_of(place: &Path, state: &[u8]) -> Result<HostFacts, SnapshotError> {
    let read = Container::read(state).and_then(|container| {
        container.refuse_foreign(&KNOWN)?;
        Ok(container.facts().clone())
    });
    read.map_err(|source| SnapshotError::OtherState { place: place.to_owned(), source })
}

/// Checks that a VM with these needs can run here. Where nobody knows what this host has, the vmm
/// finds it out.
///
/// # Errors
/// It cannot. Both sides are named.
pub fn check(snapshot: &Snapshot, needs: &HostFacts) -> Result<(), SnapshotError> {
    check_needs(snapshot.place(), needs)
}

/// The same for a VM of `place`.
///
/// # Errors
/// It cannot. Both sides are named.
pub fn check_needs(place: &Path, needs: &HostFacts) -> Result<(), SnapshotError> {
    let Some(host) = host_check::facts() else { return Ok(()) };
    host.check(needs).map_err(|source| SnapshotError::OtherHost { place: place.to_owned(), source })
}
