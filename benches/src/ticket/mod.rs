//! The `ticket` benchmark: the cost of a grant. There are no guests: it runs a real `scheduler`
//! with its durable ledger, and a host that runs nothing.
//!
//! - [`daemon`]: that scheduler.
//! - [`load`]: grants over gRPC, one after another and from many callers at once.
//! - [`decision`]: the core alone, with a large cluster.

mod daemon;
mod decision;
mod load;

use crate::report::{Figures, Metric};
use daemon::Daemon;
use std::{
    error::Error,
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Grants one after another.
    pub grants: usize,
    /// How long many callers go on.
    pub load: Duration,
    /// Decisions of the core.
    pub decisions: usize,
}

impl Plan {
    /// Less of everything with `quick`.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { grants: 500, load: Duration::from_secs(3), decisions: 2_000 }
        } else {
            Self { grants: 5_000, load: Duration::from_secs(20), decisions: 20_000 }
        }
    }
}

/// The figures, with the `scheduler` of `bin_dir`.
pub async fn measure(bin_dir: &Path, plan: Plan) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let folder = tempfile::Builder::new().prefix("ledger-").tempdir_in(bin_dir)?;
    let floor = floor(folder.path(), plan.grants.min(1_000))?;
    let daemon = Daemon::start(&bin_dir.join("scheduler"), folder.path())?;
    let host = daemon.host().await?;
    let one = load::one_after_another(&daemon, plan.grants).await?;
    let many = load::many_at_once(&daemon, plan.load).await?;
    drop(host);
    daemon.stop()?;
    let decisions = decision::measure(plan.decisions);

    let fsync_us = floor.p50;
    let p99 = |figures: &Figures| Figures { p50: figures.p99, ..figures.clone() };
    let grant = Figures::of("us", one).ok_or("no grants")?;
    let loaded = Figures::of("us", many.grants_us).ok_or("no grants under load")?;
    let mut metrics = vec![
        Metric::new("floor_fsync_us", floor),
        Metric::new("grant_us", grant.clone()).limits(1_000.0, 300.0).floor(fsync_us),
        Metric::new("grant_p99_us", p99(&grant)).limits(5_000.0, 1_000.0).floor(fsync_us),
    ];
    let per_s = Figures::of("1/s", many.per_s).ok_or("no windows")?;
    metrics.push(Metric::new("grants_per_s", per_s).at_least(5_000.0, 20_000.0));
    metrics.push(Metric::new("loaded_grant_us", loaded));
    for (name, samples) in decisions.named() {
        let figures = Figures::of("us", samples).ok_or("no decisions")?;
        metrics.push(Metric::new(name, figures).limits(50.0, 10.0));
    }
    let notes = vec![
        "floor: an fsync after an append of 4 KiB, on the ledger's file system".into(),
        "grant_p99_us: the 99th percentile of grant_us, in the column of medians".into(),
        format!(
            "grants_per_s: grants and releases, in windows of {} ms, {} callers on {} connections",
            load::WINDOW.as_millis(),
            load::CALLERS,
            load::CONNECTIONS
        ),
        format!("decisions: {} hosts, {} live tickets", decision::HOSTS, decision::TICKETS),
    ];
    Ok((metrics, notes))
}

/// What the least that a durable ledger must do costs.
fn floor(folder: &Path, count: usize) -> Result<Figures, Box<dyn Error>> {
    let mut file = File::create(folder.join("floor"))?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_all()?;
        samples.push(us(started));
    }
    Ok(Figures::of("us", samples).ok_or("no fsync was measured")?)
}

fn us(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
