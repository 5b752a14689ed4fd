//! The same with QEMU instead of Patina.

use super::{
    Plan,
    starts::{COUNTS, Ours},
};
use crate::{
    host::HostFacts,
    qemu::{self, QemuError, Saved, Way},
    report::{Figures, Metric},
};
use patina_tests::setup::Setup;
use std::collections::BTreeMap;

/// Rows that only QEMU's part has.
pub const ROWS: [&str; 4] = ["qemu_save_ms", "qemu_private_kib", "qemu_ratio_1", "qemu_template_ratio_1"];

/// What QEMU has done.
#[derive(Debug)]
pub struct Qemus {
    rows: Vec<Metric>,
    times: Vec<Times>,
    notes: Vec<String>,
}

/// One way with one count.
#[derive(Debug)]
struct Times {
    way: Way,
    count: u32,
    save_ms: f64,
    /// From the start of the first process, until all run and until all have answered.
    running_ms: Figures,
    answered_ms: Figures,
}

/// How the rows of a way begin.
fn prefix(way: Way) -> &'static str {
    match way {
        Way::File => "qemu",
        Way::Template => "qemu_template",
    }
}

impl Qemus {
    /// Saves a guest in each way and starts others from it, as many at once as clones are.
    pub fn measure(setup: &Setup, host: &HostFacts, plan: Plan) -> Result<Self, QemuError> {
        let software = host.kvm == "software";
        let mut all = Self { rows: Vec::new(), times: Vec::new(), notes: Vec::new() };
        for way in [Way::File, Way::Template] {
            let saved = Saved::make(setup, software, way)?;
            let save_ms = saved.save_ms;
            all.rows.extend(Metric::of(&format!("{}_save_ms", prefix(way)), "ms", vec![save_ms]));
            if way == Way::File {
                all.notes.push(note(software, saved.state_mib));
            }
            for count in COUNTS {
                let rounds = if count == 1 { plan.again } else { plan.many.max(2) };
                let [running, answered, private] = saved.rounds(count as usize, rounds)?;
                let both = running.zip(answered);
                all.times.extend(both.map(|(running_ms, answered_ms)| Times {
                    way,
                    count,
                    save_ms,
                    running_ms,
                    answered_ms,
                }));
                if way == Way::File && count == 1 {
                    all.rows.extend(private.map(|figures| Metric::new("qemu_private_kib", figures)));
                }
            }
            patina_daemon::say!("QEMU ({way:?}): measured");
        }
        Ok(all)
    }

    /// Rows for ours, for QEMU's, and how many times longer QEMU takes; and what to know about
    /// them.
    pub fn report(self, ours: &BTreeMap<u32, Ours>) -> (Vec<Metric>, Vec<String>) {
        let mut rows = self.rows;
        rows.extend(our_rows(ours));
        for Times { way, count, save_ms, running_ms, answered_ms } in self.times {
            let qemu = prefix(way);
            if let Some(ours) = ours.get(&count) {
                // A clone's time has the freeze in it, so QEMU's has the saving.
                let times = [
                    ("ratio", (save_ms + running_ms.p50) / ours.executing_ms.p50),
                    ("answered_ratio", (save_ms + answered_ms.p50) / ours.answered_ms.p50),
                ];
                rows.extend(times.into_iter().filter_map(|(name, times)| {
                    Metric::of(&format!("{qemu}_{name}_{count}"), "x", vec![times])
                }));
            }
            rows.push(Metric::new(&format!("{qemu}_running_{count}_ms"), running_ms));
            rows.push(Metric::new(&format!("{qemu}_answered_{count}_ms"), answered_ms));
        }
        (rows, self.notes)
    }
}

/// Rows for ours alone.
pub fn our_rows(ours: &BTreeMap<u32, Ours>) -> Vec<Metric> {
    let rows = ours.iter().flat_map(|(count, Ours { executing_ms, answered_ms })| {
        [
            Metric::new(&format!("executing_{count}_ms"), executing_ms.clone()),
            Metric::new(&format!("answered_{count}_ms"), answered_ms.clone()),
        ]
    });
    rows.collect()
}

fn note(software: bool, state_mib: f64) -> String {
    let version = qemu::version();
    let made = if software {
        "booted by QEMU's translator (in its KVM the kernel stops at an int3 here), saved and started with KVM"
    } else {
        "booted, saved and started with KVM"
    };
    format!(
        "{version}: microvm, same kernel and root file system, a shell and no agent, {state_mib:.0} MiB saved, {made}; ratios: saving and \
         starting, over the whole clone; qemu_template_*: RAM is a file that QEMU maps privately (x-ignore-shared); answered: a shell on the serial port has squared a number, in clones \
         after their identity is in place"
    )
}
