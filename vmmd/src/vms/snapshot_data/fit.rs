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
fn needs_of(place: &Path, state: &[u8]) -> Result<HostFacts, SnapshotError> {
    let read = Container::read(state).and_then(|container| {
        container.refuse_foreign(&KNOWN)?;
        Ok(container.facts().clone())
    });
    read.map_err(|source| SnapshotError::OtherState { place: place.to_owned(), source })
}

/// What a record says of a VM with these needs: None if it was offered the CPU features that this
/// host offers.
#[must_use]
pub fn of_record(needs: &HostFacts) -> Option<Box<HostFacts>> {
    if_others(host_check::facts()?, needs)
}

fn if_others(host: &HostFacts, needs: &HostFacts) -> Option<Box<HostFacts>> {
    (needs.features() != host.features()).then(|| Box::new(needs.offered()))
}

/// Checks that a VM with these needs can run here. Where nobody knows what this host has, the vmm
/// finds it out.
///
/// # Errors
/// It cannot. Both sides are named.
pub fn check(snapshot: &Snapshot, needs: &HostFacts) -> Result<(), SnapshotError> {
    check_needs(snapshot.place(), needs)
}

/// The same for the VM of a state from `place`: what it needs.
///
/// # Errors
/// It cannot; or the state is damaged, or another release wrote it.
pub fn check_state(place: &Path, state: &[u8]) -> Result<HostFacts, SnapshotError> {
    let needs = needs_of(place, state)?;
    check_needs(place, &needs)?;
    Ok(needs)
}

fn check_needs(place: &Path, needs: &HostFacts) -> Result<(), SnapshotError> {
    let Some(host) = host_check::facts() else { return Ok(()) };
    host.check(needs).map_err(|source| SnapshotError::OtherHost { place: place.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::config::KvmKind;
    use patina_snapshot::cpuid::CpuidEntry;

    #[test]
    fn a_record_has_needs_only_of_a_vm_with_other_features_and_all_that_it_was_offered() {
        let of = |ebx, cpus| {
            let entry = |function, ebx| CpuidEntry { function, ebx, ..CpuidEntry::default() };
            // Leaf 1 says how many CPUs there are.
            let state = CpuidEntry { eax: 7, ..entry(0xd, 0) };
            HostFacts::of_cpuid(KvmKind::Vmx, vec![entry(1, cpus), entry(7, ebx), state])
        };
        assert_eq!(if_others(&of(3, 1), &of(3, 2)), None);
        // The guest has not enabled all of the state that it may enable.
        let needs = HostFacts { xcr0: 3, tsc_khz: 9, kernel: "6.1".into(), ..of(3, 2) };
        assert_eq!(if_others(&of(3, 1), &needs), None);
        let needs = HostFacts { cpuid: of(1, 2).cpuid, ..needs };
        let recorded = if_others(&of(3, 1), &needs).unwrap();
        assert_eq!((recorded.xcr0, recorded.tsc_khz, recorded.cpuid.len()), (7, 9, 2), "{recorded:?}");
        assert_eq!(of(1, 1).check(&HostFacts { page_bytes: 0, tsc_khz: 0, ..*recorded }), Ok(()));
    }
}
