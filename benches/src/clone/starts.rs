//! From the call to clones that run, are ready, have answered; several at once.

use super::Plan;
use crate::{
    daemon::{Daemon, DaemonError},
    floors::Floors,
    host::HostFacts,
    qemu::SQUARES,
    report::{Figures, Metric},
    smaps,
    talk::Console,
};
use std::{collections::BTreeMap, time::Instant};

/// Clones of the largest call; that many warm VMs are kept.
pub const FAMILY: u32 = 61;
/// Clones of the calls that are compared with QEMU's.
pub const COUNTS: [u32; 2] = [1, 8];
const MASTER: &str = "master";
const MEMORY_MIB: u32 = 256;

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
    floors: &Floors,
    host: &HostFacts,
    plan: Plan,
) -> Result<(Vec<Metric>, BTreeMap<u32, Ours>), DaemonError> {
    daemon.boot(MASTER, MEMORY_MIB).await?;
    let mut console = Console::attach(daemon, MASTER).await?;
    console.answer("\n", "# ").await?;
    console.answer(SQUARES, "done\r\n").await?;
    console.answer("12\n", "=144").await?;
    let mut ours = BTreeMap::new();
    for count in COUNTS {
        let (mut executing_ms, mut answered_ms) = (Vec::new(), Vec::new());
        for _ in 0..plan.many.max(2) {
            let (executing, answered) = answers(daemon, count).await?;
            executing_ms.push(executing);
            answered_ms.push(answered);
        }
        let figures = Figures::of("ms", executing_ms).zip(Figures::of("ms", answered_ms));
        ours.extend(figures.map(|(executing_ms, answered_ms)| (count, Ours { executing_ms, answered_ms })));
    }
    Ok((family(daemon, floors, host, plan.many).await?, ours))
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
    eprintln!("{count} clones: executing after {executing_ms:.1} ms, answered after {answered_ms:.0} ms");
    Ok((executing_ms, answered_ms))
}

async fn family(
    daemon: &Daemon,
    floors: &Floors,
    host: &HostFacts,
    rounds: usize,
) -> Result<Vec<Metric>, DaemonError> {
    let (mut executing_ms, mut ready_ms, mut private_kib) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        daemon.warm(FAMILY).await?;
        let cloned = daemon.clone_vm(MASTER, FAMILY).await?;
        let vms = daemon.all_ready(&cloned.names).await?;
        ready_ms.push(ms(cloned.called));
        executing_ms.push(cloned.all_executing_us() / 1e3);
        for vm in &vms {
            private_kib.push(smaps::private_kib(vm.pid)?);
        }
        eprintln!("{FAMILY} clones: ready after {:.0} ms", ms(cloned.called));
        daemon.remove(&cloned.names).await?;
    }
    let floor_ms = f64::from(FAMILY) * (floors.map_us.p50 + floors.first_run_us.p50) / host.cpus as f64 / 1e3;
    let rows = [
        Metric::of("executing_61_ms", "ms", executing_ms).map(|m| m.limits(1000.0, 300.0).floor(floor_ms)),
        Metric::of("ready_61_ms", "ms", ready_ms).map(|m| m.limits(9000.0, 3000.0).floor(floor_ms)),
        Metric::of("idle_private_kib", "KiB", private_kib).map(|m| m.limits(6144.0, 2048.0)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
