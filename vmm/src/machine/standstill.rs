//! Pauses a VM: the order in which its parts stop and resume, and when they must not resume.
//!
//! ```text
//!  guest runs     the device loop stops, after one turn of one queue at most;
//!                 later notifications stay pending
//!  guest paused   vCPUs stop and save their state, the rest is captured;
//!                 devices and vCPUs resume
//! ```
//! The devices stop first. Otherwise the pause would include the time that the requests in the
//! guest's queues take.

use super::freeze_error::FreezeError;
use std::time::{Duration, Instant};

/// A machine that can be paused.
pub(super) trait Stoppable {
    /// The state that the vCPUs save as they stop.
    type Vcpus;
    /// Stops the devices.
    fn stop_devices(&mut self) -> Result<(), FreezeError>;
    /// Stops the vCPUs and saves their state.
    fn stop_vcpus(&mut self) -> Result<Self::Vcpus, FreezeError>;
    /// Starts the devices again.
    fn start_devices(&mut self) -> Result<(), FreezeError>;
    /// Resumes the vCPUs.
    fn resume_vcpus(&mut self);
}

/// Does `work` while the machine is paused, then resumes it. After a fatal error the machine stays
/// paused: neither its vCPUs nor its devices may run without its memory. Returns how long the vCPUs
/// were paused as well.
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
    // Without devices the VM cannot continue, so this error is reported before that of the work.
    started?;
    worked.map(|worked| (worked, stood))
}

#[cfg(test)]
#[path = "standstill_test.rs"]
mod tests;
