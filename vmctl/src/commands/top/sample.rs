//! The resources that each VM used between two moments.

use crate::view::{VmView, has_ended};
use patina_proto::v1::{ListUsageResponse, Usage, Vm};
use serde::Serialize;
use std::collections::HashMap;

/// The header of [`Load::row`]. CPU: 100 is one CPU, all the time.
pub const HEADER: [&str; 8] = ["NAME", "STATE", "VCPUS", "CPU%", "PRIVATE", "SHARED", "FAULTS/S", "TICKET"];

/// What a VM takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Load {
    pub name: String,
    pub state: String,
    vcpus: u32,
    ticket: String,
    /// Of one CPU; none where there is no earlier moment of it.
    pub cpu_percent: Option<f64>,
    pub private_kib: u64,
    pub shared_kib: u64,
    pub faults_per_s: Option<f64>,
}

/// What the VMs of a host take, by name. Pages are read one after the other, so each has a time of
/// its own.
#[derive(Debug, Default)]
pub struct Moment(HashMap<String, Timed>);

/// What a VM takes, and when it was read, microseconds of the host's monotonic clock.
#[derive(Debug)]
struct Timed {
    monotonic_us: u64,
    usage: Usage,
}

impl Moment {
    /// Adds a page.
    pub fn add(&mut self, page: ListUsageResponse) {
        let monotonic_us = page.monotonic_us;
        let timed = |usage: Usage| (usage.name.clone(), Timed { monotonic_us, usage });
        self.0.extend(page.vms.into_iter().map(timed));
    }
}

/// A VM at two moments, and what lies between them.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a> {
    before: Option<&'a Usage>,
    after: &'a Usage,
    us: u64,
}

impl Load {
    /// Of a VM; nothing is known of one that has just begun or ended.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a rate for people: differences of counters within seconds"
    )]
    pub fn of(vm: Vm, between: Option<Between<'_>>) -> Self {
        let per_us = |counter: fn(&Usage) -> u64| {
            let Between { before, after, us } = between?;
            // A counter that went back is another process's.
            let took = counter(after).checked_sub(counter(before?))?;
            (us > 0).then(|| took as f64 / us as f64)
        };
        let faults = |usage: &Usage| usage.minor_faults.saturating_add(usage.major_faults);
        let (cpu_percent, faults_per_s) =
            (per_us(|usage| usage.cpu_us).map(|rate| rate * 100.0), per_us(faults).map(|rate| rate * 1e6));
        let now = between.map(|between| between.after);
        let (vcpus, ticket) = (vm.vcpus, vm.ticket.clone());
        let view = VmView::from(vm);
        Self {
            name: view.name,
            state: view.state,
            vcpus,
            ticket,
            cpu_percent,
            private_kib: now.map_or(0, |usage| usage.private_kib),
            shared_kib: now.map_or(0, |usage| usage.shared_kib),
            faults_per_s,
        }
    }

    /// The columns of the table.
    pub fn row(&self) -> Vec<String> {
        let rate = |rate: Option<f64>, digits| {
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.digits$}"))
        };
        vec![
            self.name.clone(),
            self.state.clone(),
            self.vcpus.to_string(),
            rate(self.cpu_percent, 1),
            mib(self.private_kib),
            mib(self.shared_kib),
            rate(self.faults_per_s, 0),
            self.ticket.clone(),
        ]
    }
}

/// What each VM that runs took, the busiest first.
pub fn compare(vms: Vec<Vm>, before: &Moment, after: &Moment) -> Vec<Load> {
    let load = |vm: Vm| {
        let between = after.0.get(&vm.name).map(|after| {
            let before = before.0.get(&vm.name);
            let us = before.map_or(0, |before| after.monotonic_us.saturating_sub(before.monotonic_us));
            Between { before: before.map(|before| &before.usage), after: &after.usage, us }
        });
        Load::of(vm, between)
    };
    let mut loads: Vec<Load> = vms.into_iter().filter(|vm| !has_ended(vm)).map(load).collect();
    let rate = |load: &Load| load.cpu_percent.unwrap_or(0.0);
    loads.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then_with(|| a.name.cmp(&b.name)));
    loads
}

/// All of them in one line.
pub fn summary(loads: &[Load]) -> String {
    let cpu: f64 = loads.iter().filter_map(|load| load.cpu_percent).sum();
    let faults: f64 = loads.iter().filter_map(|load| load.faults_per_s).sum();
    let private_kib: u64 = loads.iter().map(|load| load.private_kib).sum();
    let ready = loads.iter().filter(|load| load.state == "ready").count();
    format!(
        "{} VMs run, {ready} ready; CPU {cpu:.1}%, {} of their own, {faults:.0} faults/s",
        loads.len(),
        mib(private_kib)
    )
}

fn mib(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::VmState;

    fn vm(name: &str, state: VmState) -> Vm {
        Vm { name: name.into(), state: state.into(), vcpus: 2, ticket: "t".into(), ..Vm::default() }
    }

    fn moment(monotonic_us: u64, vms: &[(&str, u64, u64)]) -> Moment {
        let mut moment = Moment::default();
        moment.add(page(monotonic_us, vms));
        moment
    }

    fn page(monotonic_us: u64, vms: &[(&str, u64, u64)]) -> ListUsageResponse {
        let usage = |&(name, cpu_us, minor_faults): &(&str, u64, u64)| Usage {
            name: name.to_owned(),
            cpu_us,
            minor_faults,
            major_faults: 2,
            private_kib: 1536,
            shared_kib: 2048,
        };
        let vms = vms.iter().map(usage).collect();
        ListUsageResponse { monotonic_us, vms, next_page_token: String::new() }
    }

    #[test]
    fn rates_are_between_two_moments_and_the_busiest_is_first() {
        let vms = vec![
            vm("idle", VmState::Ready),
            vm("busy", VmState::Ready),
            vm("new", VmState::Booting),
            vm("gone", VmState::Ended),
        ];
        let before = moment(1_000_000, &[("idle", 100, 10), ("busy", 100, 10), ("gone", 7, 7)]);
        let after = moment(3_000_000, &[("idle", 100, 10), ("busy", 3_000_100, 1010), ("new", 900, 9)]);
        let loads = compare(vms, &before, &after);
        assert_eq!(loads.iter().map(|load| load.name.as_str()).collect::<Vec<_>>(), ["busy", "idle", "new"]);
        let row = |load: &Load| load.row().join(" ");
        assert_eq!(row(&loads[0]), "busy ready 2 150.0 1.5 MiB 2.0 MiB 500 t");
        assert_eq!(row(&loads[1]), "idle ready 2 0.0 1.5 MiB 2.0 MiB 0 t");
        assert_eq!(row(&loads[2]), "new booting 2 - 1.5 MiB 2.0 MiB - t");
        assert_eq!(summary(&loads), "3 VMs run, 2 ready; CPU 150.0%, 4.5 MiB of their own, 500 faults/s");
    }

    #[test]
    fn each_page_has_its_own_time() {
        let (mut before, mut after) = (moment(0, &[("a", 0, 0)]), moment(1_000_000, &[("a", 500_000, 0)]));
        before.add(page(400_000, &[("b", 0, 0)]));
        after.add(page(2_400_000, &[("b", 500_000, 0)]));
        let loads = compare(vec![vm("a", VmState::Ready), vm("b", VmState::Ready)], &before, &after);
        assert_eq!(loads.iter().map(|load| load.cpu_percent).collect::<Vec<_>>(), [Some(50.0), Some(25.0)]);
    }

    #[test]
    fn no_time_and_counters_that_go_back_are_no_rates() {
        let vms = || vec![vm("a", VmState::Ready)];
        let (early, late) = (moment(5, &[("a", 9, 9)]), moment(5, &[("a", 10, 10)]));
        assert_eq!(compare(vms(), &early, &late)[0].cpu_percent, None, "no time has passed");
        let early = moment(1, &[("a", 90, 9)]);
        assert_eq!(compare(vms(), &early, &late)[0].cpu_percent, None, "another process");
        let nothing = Moment::default();
        assert_eq!(compare(vms(), &nothing, &nothing)[0].private_kib, 0);
    }
}
