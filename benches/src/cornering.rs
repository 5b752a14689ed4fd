//! The `cornering` benchmark: a family's 100 clones are killed and 100 others are created. Programs
//! do this when they discard a set of machines and continue with a fresh one.

use crate::{
    clone::finished,
    daemon::{Daemon, DaemonError},
    floors::Floors,
    host::HostFacts,
    report::Metric,
};
use patina_tests::setup::Setup;
use std::{error::Error, time::Instant};

const CLONES: u32 = 100;
const MASTER: &str = "master";
const MEMORY_MIB: u32 = 256;
/// Copper's figure, and a better one.
const MUST_MS: f64 = 20_000.0;
const AIM_MS: f64 = 8_000.0;

/// The figures, `rounds` times.
pub async fn measure(
    setup: &Setup,
    host: &HostFacts,
    rounds: usize,
) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let floors = Floors::measure(10)?;
    let floor_ms = f64::from(CLONES) * floors.create_us.p50 / host.cpus as f64 / 1e3;
    let daemon = Daemon::start(setup, CLONES).await?;
    let measured = corners(&daemon, rounds).await;
    let (cornering_ms, killed_ms) = finished(daemon, measured)?;
    let mut metrics = floors.metrics();
    metrics.extend(Metric::of("killed_100_ms", "ms", killed_ms));
    let cornering = Metric::of("cornering_ms", "ms", cornering_ms);
    metrics.extend(cornering.map(|m| m.limits(MUST_MS, AIM_MS).floor(floor_ms)));
    let note = format!("floor: making a VM with one vCPU {CLONES} times on {} CPUs", host.cpus);
    Ok((metrics, vec![note]))
}

/// The first kill to the last clone ready; and to the last of the others ended.
async fn corners(daemon: &Daemon, rounds: usize) -> Result<(Vec<f64>, Vec<f64>), DaemonError> {
    daemon.boot(MASTER, MEMORY_MIB).await?;
    daemon.warm(CLONES).await?;
    let mut running = daemon.clone_vm(MASTER, CLONES).await?.names;
    daemon.all_ready(&running).await?;
    let (mut cornering_ms, mut killed_ms) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        daemon.warm(CLONES).await?;
        let started = Instant::now();
        daemon.kill(&running).await?;
        killed_ms.push(ms(started));
        let others = daemon.clone_vm(MASTER, CLONES).await?.names;
        daemon.all_ready(&others).await?;
        cornering_ms.push(ms(started));
        patina_daemon::say!("round {round} of {rounds}: {:.0} ms", ms(started));
        daemon.remove(&running).await?;
        running = others;
    }
    Ok((cornering_ms, killed_ms))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
