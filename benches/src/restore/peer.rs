//! The same with QEMU: a saved guest of 256 MiB, started with `-incoming`.

use super::Plan;
use crate::{
    host::HostFacts,
    qemu::{self, QemuError, Saved, Way},
    report::{Figures, Metric},
};
use patina_tests::setup::Setup;

/// The rows.
pub const ROWS: [&str; 6] = [
    "qemu_restore_running_ms",
    "qemu_restore_answered_ms",
    "qemu_restore_ratio",
    "qemu_restore_template_running_ms",
    "qemu_restore_template_answered_ms",
    "qemu_restore_template_ratio",
];

/// What QEMU has done.
#[derive(Debug)]
pub struct Qemus {
    /// By the beginning of its rows' names: until running, until answered.
    times: Vec<(&'static str, Figures, Figures)>,
    notes: Vec<String>,
}

impl Qemus {
    /// Saves a guest in each way, and starts others from it. If QEMU cannot do that, the notes say
    /// why.
    pub fn measure(setup: &Setup, host: &HostFacts, plan: Plan) -> Result<Self, QemuError> {
        let mut all = Self { times: Vec::new(), notes: Vec::new() };
        for (way, name) in [(Way::File, "qemu_restore"), (Way::Template, "qemu_restore_template")] {
            match starts(setup, host, way, plan.qemu) {
                Ok(Some((running, answered))) => all.times.push((name, running, answered)),
                Ok(None) => {}
                Err(QemuError::Interrupted) => return Err(QemuError::Interrupted),
                Err(error) => all.notes.push(format!("{name}_*: skipped: {}", patina_daemon::chain(&error))),
            }
        }
        if !all.times.is_empty() {
            all.notes.push(format!(
                "{}; saved into a file in memory, 256 MiB; the ratio is that of running to restore_us",
                qemu::version()
            ));
        }
        Ok(all)
    }

    /// Its rows beside ours, and what to know about them.
    pub fn report(self, ours: &[Metric]) -> (Vec<Metric>, Vec<String>) {
        let restore = ours.iter().find(|metric| metric.name() == "restore_us").map(Metric::median);
        let mut rows = Vec::new();
        for (name, running, answered) in self.times {
            let ratio = restore.map(|us| running.p50 * 1e3 / us);
            rows.push(Metric::new(&format!("{name}_running_ms"), running));
            rows.push(Metric::new(&format!("{name}_answered_ms"), answered));
            rows.extend(ratio.and_then(|ratio| Metric::of(&format!("{name}_ratio"), "x", vec![ratio])));
        }
        (rows, self.notes)
    }
}

fn starts(
    setup: &Setup,
    host: &HostFacts,
    way: Way,
    rounds: usize,
) -> Result<Option<(Figures, Figures)>, QemuError> {
    let saved = Saved::make(setup, host.kvm == "software", way)?;
    let [running, answered, _] = saved.rounds(1, rounds)?;
    patina_daemon::say!("QEMU ({way:?}): measured");
    Ok(running.zip(answered))
}
