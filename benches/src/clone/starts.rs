//! From the call to clones that run, are ready, and have answered, for several clones at once.

use super::Plan;
use crate::{
    daemon::{Daemon, DaemonError},
    floors::Floors,
    host::HostFacts,
    qemu::SQUARES,
    report::{Figures, Metric},
    smaps,
    talk::Console,
    usage::{KINDS, Kind, Usage},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Clones of the largest call; that many warm VMs are kept.
pub const FAMILY: u32 = 61;
/// Clones of the calls that are compared with QEMU's.
pub const COUNTS: [u32; 2] = [1, 8];
/// Clones of one call that is larger than a pool is as a rule; that many warm VMs are kept.
pub const CROWD: u32 = 250;
/// Rows of clones that answer.
pub const ANSWER_ROWS: [&str; 4] = ["executing_1_ms", "answered_1_ms", "executing_8_ms", "answered_8_ms"];
/// Rows of [`FAMILY`] clones.
pub const FAMILY_ROWS: [&str; 11] = [
    "executing_61_ms",
    "ready_61_ms",
    "idle_private_kib",
    IDLE_CPU,
    "cpu_61_vcpu_ms",
    "cpu_61_devices_ms",
    "cpu_61_main_ms",
    "cpu_61_other_ms",
    "cpu_61_kernel_ms",
    "cpu_61_parent_ms",
    "cpu_61_vmmd_ms",
];
/// Rows of [`CROWD`] clones.
pub const CROWD_ROWS: [&str; 3] = [READY_CROWD, "ready_250_ratio", LIST];
const READY_FAMILY: &str = "ready_61_ms";
const IDLE_CPU: &str = "idle_clone_cpu_permille";
const READY_CROWD: &str = "ready_250_ms";
const LIST: &str = "list_while_adopting_ms";
const MASTER: &str = "master";
const MEMORY_MIB: u32 = 256;
/// How long idle clones are watched.
const IDLE: Duration = Duration::from_secs(10);
/// How often vmmd is started again beside a crowd.
const RESTARTS: usize = 3;

/// What is compared, for each of [`COUNTS`].
#[derive(Debug)]
pub struct Ours {
    /// The call to the last clone's first instruction.
    pub executing_ms: Figures,
    /// To the last clone's answer.
    pub answered_ms: Figures,
}

/// All figures of this kind, and those that are compared.
pub async fn measure(
    daemon: &Daemon,
    (floors, host): (&Floors, &HostFacts),
    plan: Plan,
    (answers, family): (bool, bool),
) -> Result<(Vec<Metric>, BTreeMap<u32, Ours>), DaemonError> {
    daemon.boot(MASTER, MEMORY_MIB).await?;
    let ours = if answers { all_answers(daemon, plan).await? } else { BTreeMap::new() };
    let rows = if family { self::family(daemon, floors, host, plan.many).await? } else { Vec::new() };
    Ok((rows, ours))
}

/// Calls of each count whose clones answer.
async fn all_answers(daemon: &Daemon, plan: Plan) -> Result<BTreeMap<u32, Ours>, DaemonError> {
    let mut console = Console::attach(daemon, MASTER).await?;
    console.answer("\n", "# ").await?;
    console.answer(SQUARES, "done\r\n").await?;
    console.answer("12\n", "=144").await?;
    let mut ours = BTreeMap::new();
    for count in COUNTS {
        let (mut executing_ms, mut answered_ms) = (Vec::new(), Vec::new());
        for _ in 0..plan.many.max(2) {
            let (executing, answered) = self::answers(daemon, count).await?;
            executing_ms.push(executing);
            answered_ms.push(answered);
        }
        let figures = Figures::of("ms", executing_ms).zip(Figures::of("ms", answered_ms));
        ours.extend(figures.map(|(executing_ms, answered_ms)| (count, Ours { executing_ms, answered_ms })));
    }
    Ok(ours)
}

/// Clones whose shells have answered: until the last one ran, and until the last one had answered.
async fn answers(daemon: &Daemon, count: u32) -> Result<(f64, f64), DaemonError> {
    daemon.warm(FAMILY).await?;
    let cloned = daemon.clone_vm(MASTER, count).await?;
    let answer = async |name: &String| Console::attach(daemon, name).await?.answer("13\n", "=169").await;
    futures::future::try_join_all(cloned.names.iter().map(answer)).await?;
    let answered_ms = ms(cloned.called);
    let executing_ms = cloned.all_executing_us() / 1e3;
    daemon.all_ready(&cloned.names).await?;
    daemon.remove(&cloned.names).await?;
    patina_daemon::say!(
        "{count} clones: executing after {executing_ms:.1} ms, answered after {answered_ms:.0} ms"
    );
    Ok((executing_ms, answered_ms))
}

async fn family(
    daemon: &Daemon,
    floors: &Floors,
    host: &HostFacts,
    rounds: usize,
) -> Result<Vec<Metric>, DaemonError> {
    let (mut executing_ms, mut ready_ms) = (Vec::new(), Vec::new());
    let (mut private_kib, mut idle_permille) = (Vec::new(), Vec::new());
    let mut cpu_ms: BTreeMap<Kind, Vec<f64>> = BTreeMap::new();
    let (parent, vmmd) = (daemon.ready(MASTER).await?.pid, daemon.pid().unwrap_or_default());
    for _ in 0..rounds {
        daemon.warm(FAMILY).await?;
        let before = Usage::now()?;
        let cloned = daemon.clone_vm(MASTER, FAMILY).await?;
        let vms = daemon.all_ready(&cloned.names).await?;
        ready_ms.push(ms(cloned.called));
        let pids: Vec<u32> = vms.iter().map(|vm| vm.pid).collect();
        for (kind, taken_ms) in before.since(&pids, parent, vmmd)? {
            cpu_ms.entry(kind).or_default().push(taken_ms);
        }
        executing_ms.push(cloned.all_executing_us() / 1e3);
        for vm in &vms {
            private_kib.push(smaps::private_kib(vm.pid)?);
        }
        patina_daemon::say!("{FAMILY} clones: ready after {:.0} ms", ready_ms.last().unwrap_or(&0.0));
        idle_permille.push(self::idle_permille(daemon, &pids, (parent, vmmd)).await?);
        daemon.remove(&cloned.names).await?;
    }
    let floor_ms = f64::from(FAMILY) * (floors.map_us.p50 + floors.first_run_us.p50) / host.cpus as f64 / 1e3;
    let rows = [
        Metric::of("executing_61_ms", "ms", executing_ms).map(|m| m.limits(1000.0, 300.0).floor(floor_ms)),
        Metric::of(READY_FAMILY, "ms", ready_ms).map(|m| m.limits(9000.0, 3000.0).floor(floor_ms)),
        Metric::of("idle_private_kib", "KiB", private_kib).map(|m| m.limits(6144.0, 2048.0)),
        Metric::of(IDLE_CPU, "permille", idle_permille),
    ];
    let cpu = KINDS.into_iter().filter_map(|(kind, name)| {
        Metric::of(&format!("cpu_61_{name}_ms"), "ms", cpu_ms.remove(&kind).unwrap_or_default())
    });
    Ok(rows.into_iter().flatten().chain(cpu).collect())
}

/// The CPU time that one of these clones takes while it does nothing, with vmmd's for it, in
/// thousandths of one CPU.
async fn idle_permille(
    daemon: &Daemon,
    clones: &[u32],
    (parent, vmmd): (u32, u32),
) -> Result<f64, DaemonError> {
    // Until vmmd has nothing to make any more.
    daemon.warm(FAMILY).await?;
    let (before, began) = (Usage::now()?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let taken = before.since(clones, parent, vmmd)?;
    let taken_ms: f64 = taken.iter().filter(|(kind, _)| **kind != Kind::Parent).map(|(_, ms)| ms).sum();
    let permille = 1e3 * taken_ms / ms(began) / clones.len() as f64;
    patina_daemon::say!("{} idle clones: {permille:.2} thousandths of a CPU each", clones.len());
    Ok(permille)
}

/// What is measured with a crowd, milliseconds.
#[derive(Debug, Default)]
pub struct Crowd {
    /// The call to the last clone ready.
    ready: Vec<f64>,
    /// The start of a vmmd that takes them all over to its list of them.
    list: Vec<f64>,
}

/// One call that makes a crowd, `rounds` times; vmmd is started again beside the last one.
pub async fn crowd(daemon: &mut Daemon, rounds: usize) -> Result<Crowd, DaemonError> {
    daemon.boot(MASTER, MEMORY_MIB).await?;
    let mut crowd = Crowd::default();
    for round in 1..=rounds {
        daemon.warm(CROWD).await?;
        let cloned = daemon.clone_vm(MASTER, CROWD).await?;
        daemon.all_ready(&cloned.names).await?;
        crowd.ready.push(ms(cloned.called));
        patina_daemon::say!("{CROWD} clones: ready after {:.0} ms", ms(cloned.called));
        let restarts = if round == rounds { RESTARTS } else { 0 };
        for _ in 0..restarts {
            let (list_ms, adopting) = daemon.list_after_restart(cloned.names.len() + 1).await?;
            patina_daemon::say!("listed {list_ms:.0} ms after vmmd's start, {adopting} not taken over yet");
            crowd.list.push(list_ms);
        }
        daemon.remove(&cloned.names).await?;
    }
    Ok(crowd)
}

/// The crowd's rows; its ratio is that of the times per clone, to the family's among `measured`.
pub fn crowd_rows(Crowd { ready, list }: Crowd, measured: &[Metric]) -> Vec<Metric> {
    let crowd = Metric::of(READY_CROWD, "ms", ready);
    let list = Metric::of(LIST, "ms", list).map(|m| m.limits(2000.0, 1000.0));
    let family = measured.iter().find(|metric| metric.name() == READY_FAMILY);
    let ratio = crowd.as_ref().zip(family).and_then(|(crowd, family)| {
        let times = (crowd.median() / f64::from(CROWD)) / (family.median() / f64::from(FAMILY));
        Metric::of("ready_250_ratio", "x", vec![times]).map(|m| m.limits(1.3, 1.0))
    });
    [crowd, ratio, list].into_iter().flatten().collect()
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
