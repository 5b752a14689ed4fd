//! The `clone` benchmark: the cost of a clone for its parent, how soon clones run and are ready,
//! what they use, and the same with QEMU.
//!
//! - [`masters`]: the pause of a VM that is cloned, and the cost of its own memory afterwards.
//! - [`sizes`]: the pause at a later clone, by the size of the RAM.
//! - [`starts`]: from the call to clones that run, are ready, and have answered.
//! - [`compare`]: the same with QEMU, and the ratio of the times.
//!
//! Everything is measured in one run on one machine, with each figure's floor. QEMU and the floors
//! come first, while nothing else runs.

mod compare;
pub mod masters;
mod sizes;
mod starts;

use crate::{
    daemon::{Daemon, DaemonError},
    floors::Floors,
    host::HostFacts,
    only::Only,
    report::Metric,
};
use patina_tests::setup::Setup;
use std::{collections::BTreeMap, error::Error};

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
    /// Calls that make 250 clones.
    crowds: usize,
}

/// All rows, by the parts that are measured together.
pub const PARTS: [&[&str]; 9] = [
    &compare::ROWS,
    &masters::FIRST_ROWS,
    &masters::TOUCH_ROWS,
    &masters::AGAIN_ROWS,
    &masters::SINGLE_ROWS,
    &sizes::ROWS,
    &starts::ANSWER_ROWS,
    &starts::FAMILY_ROWS,
    &starts::CROWD_ROWS,
];

impl Plan {
    /// All that the figures need; `quick` when somebody waits for them.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { floors: 10, masters: 3, large: 1, again: 3, singles: 10, many: 1, crowds: 1 }
        } else {
            Self { floors: 30, masters: 5, large: 2, again: 5, singles: 30, many: 3, crowds: 2 }
        }
    }
}

/// The figures, and what has to be known to read them.
pub async fn measure(
    setup: &Setup,
    host: &HostFacts,
    plan: Plan,
    only: &Only,
) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let floors = Floors::measure(plan.floors)?;
    let mut metrics = floors.metrics();
    let qemu =
        if only.wants(&compare::ROWS) { Some(compare::Qemus::measure(setup, host, plan)?) } else { None };

    if only.wants(&masters::rows()) {
        let daemon = Daemon::start(setup, masters::WARM).await?;
        let measured = masters::measure(&daemon, &floors, plan, only).await;
        metrics.extend(finished(daemon, measured)?);
    }
    if only.wants(&sizes::ROWS) {
        let daemon = Daemon::start(setup, masters::WARM).await?;
        let measured = sizes::measure(&daemon, plan.again, |rows| only.wants(rows)).await;
        metrics.extend(finished(daemon, measured)?);
    }
    // QEMU's times are compared with those of the answers; the crowd's with those of the family.
    let answers = qemu.is_some() || only.wants(&starts::ANSWER_ROWS);
    let crowd = only.wants(&starts::CROWD_ROWS);
    let family = crowd || only.wants(&starts::FAMILY_ROWS);
    let mut ours = BTreeMap::new();
    if answers || family {
        let daemon = Daemon::start(setup, starts::FAMILY).await?;
        let measured = starts::measure(&daemon, (&floors, host), plan, (answers, family)).await;
        let (starts, answered) = finished(daemon, measured)?;
        metrics.extend(starts);
        ours = answered;
    }
    if crowd {
        let mut daemon = Daemon::start(setup, starts::CROWD).await?;
        let measured = starts::crowd(&mut daemon, plan.crowds).await;
        let crowd = finished(daemon, measured)?;
        metrics.extend(starts::crowd_rows(crowd, &metrics));
    }
    let mut notes = vec![floors_note(host)];
    if let Some(qemu) = qemu {
        let (rows, about_qemu) = qemu.report(&ours);
        metrics.extend(rows);
        notes.extend(about_qemu);
    } else {
        metrics.extend(compare::our_rows(&ours));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_chosen_by_their_rows() {
        let some =
            Only::new("clone", &["pause_again_4g".to_owned(), "ready_250".to_owned()], &PARTS).unwrap();
        assert!(some.wants(&sizes::ROWS) && some.wants(&starts::CROWD_ROWS));
        assert!(!some.wants(&masters::rows()) && !some.wants(&compare::ROWS));
    }
}
