//! The `clone` benchmark: what a clone costs its parent, how soon clones run and are ready, what they take, and what a
//! user would have with QEMU instead.
//!
//! - [`masters`]: how long a VM stands still while it is cloned, and what its own memory costs it afterwards.
//! - [`starts`]: from the call to clones that run, are ready, have answered.
//! - [`compare`]: the same with QEMU, and how many times longer it takes.
//!
//! All of it in one run on one machine, each figure beside its floor. QEMU and the floors come first, while nothing else runs.

mod compare;
mod masters;
mod starts;

use crate::{
    daemon::{Daemon, DaemonError},
    floors::Floors,
    host::HostFacts,
    report::Metric,
};
use patina_tests::setup::Setup;
use std::error::Error;

/// How often each thing is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// For floors.
    floors: usize,
    /// VMs of 256 MiB that are cloned for the first time.
    masters: usize,
    /// VMs of 1 GiB.
    large: usize,
    /// Further clones of a VM with much that is new.
    again: usize,
    /// Clones one at a time.
    singles: usize,
    /// Several clones at once: calls of each count.
    many: usize,
}

impl Plan {
    /// All that the figures need; `quick` when somebody waits for them.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { floors: 10, masters: 3, large: 1, again: 3, singles: 10, many: 1 }
        } else {
            Self { floors: 30, masters: 5, large: 2, again: 5, singles: 30, many: 3 }
        }
    }
}

/// The figures, and what has to be known to read them.
pub async fn measure(
    setup: &Setup,
    host: &HostFacts,
    plan: Plan,
) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let floors = Floors::measure(plan.floors)?;
    let mut metrics = floors.metrics();
    let qemu = compare::Qemus::measure(setup, host, plan)?;

    let daemon = Daemon::start(setup, masters::WARM).await?;
    let measured = masters::measure(&daemon, &floors, plan).await;
    metrics.extend(finished(daemon, measured)?);

    let daemon = Daemon::start(setup, starts::FAMILY).await?;
    let measured = starts::measure(&daemon, &floors, host, plan).await;
    let (starts, ours) = finished(daemon, measured)?;
    metrics.extend(starts);

    let (rows, mut notes) = qemu.report(&ours);
    metrics.extend(rows);
    notes.insert(0, floors_note(host));
    Ok((metrics, notes))
}

/// Ends the daemon whatever came of the measurement, whose error comes first.
pub fn finished<T>(daemon: Daemon, measured: Result<T, DaemonError>) -> Result<T, DaemonError> {
    let stopped = daemon.stop();
    let measured = measured?;
    stopped.map(|()| measured)
}

fn floors_note(host: &HostFacts) -> String {
    format!(
        "floors: of a pause, mapping 256 MiB; of a further clone's, that and its copied pages in bulk; of a clone's first instruction, \
         mapping and a first KVM_RUN; of {family} clones, {family} times that on {} CPUs; of a parent's page, the same write before the clone",
        host.cpus,
        family = starts::FAMILY,
    )
}
