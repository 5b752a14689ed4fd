//! In which order a VM stops, so that its state and memory can be taken, and whether it goes on afterwards.
//!
//! ```text
//!  guest runs     the device loop stops: for one turn of one queue at most, and what comes meanwhile stays pending
//!  guest stands   vCPUs stop and give their state, the rest is taken; devices and vCPUs go on
//! ```
//! The devices stop first: otherwise the guest would stand still as long as the requests take that it has put into its queues.

use super::freeze_error::FreezeError;
use std::time::{Duration, Instant};

/// What can stand still.
pub(super) trait Stoppable {
    /// What its vCPUs give as they stop.
    type Vcpus;
    /// Stops the devices.
    fn stop_devices(&mut self) -> Result<(), FreezeError>;
    /// Stops the vCPUs and takes their state.
    fn stop_vcpus(&mut self) -> Result<Self::Vcpus, FreezeError>;
    /// Lets the devices go on.
    fn start_devices(&mut self) -> Result<(), FreezeError>;
    /// Lets the vCPUs go on.
    fn resume_vcpus(&mut self);
}

/// Does `work` while the machine stands still, and lets it go on unless the work has failed for good: a VM without its memory
/// must not run another instruction, nor may its devices. Returns how long the vCPUs stood as well.
pub(super) fn stand_still<M: Stoppable, T>(
    machine: &mut M,
    work: impl FnOnce(&mut M, M::Vcpus) -> Result<T, FreezeError>,
) -> Result<(T, Duration), FreezeError> {
    machine.stop_devices()?;
    let before = Instant::now();
    let worked = machine.stop_vcpus().and_then(|vcpus| work(machine, vcpus));
    if worked.as_ref().err().is_some_and(FreezeError::is_fatal) {
        return worked.map(|worked| (worked, before.elapsed()));
    }
    let started = machine.start_devices();
    if started.is_ok() {
        machine.resume_vcpus();
    }
    let stood = before.elapsed();
    // Without devices it cannot go on: that is worse than what went wrong before.
    started?;
    worked.map(|worked| (worked, stood))
}

#[cfg(test)]
#[path = "standstill_test.rs"]
mod tests;
