//! What VMs of one snapshot read of its files.

use super::{RestoreError, place::Place, served::Served};
use crate::{daemon::Daemon, report::Metric};
use std::time::Duration;

/// The rows.
pub const ROWS: [&str; 5] = [
    "restored_1_read_kib",
    "restored_16_read_kib",
    "restored_16_read_ratio",
    "restored_16_calls_read_ratio",
    "restored_16_ready_ms",
];
const VMS: u32 = 16;
/// How long VMs that have just been removed may still be let go of.
const SETTLE: Duration = Duration::from_millis(300);
const KIB: f64 = 1024.0;

/// All rows. Each time the snapshot is read anew.
pub async fn measure(daemon: &Daemon, place: &Place, rounds: usize) -> Result<Vec<Metric>, RestoreError> {
    // There is a pager after this, with nothing in it.
    read_by(daemon, place, 1, 1).await.map(drop)?;
    let (mut one, mut many, mut calls, mut ready_ms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let alone = read_by(daemon, place, 1, 1).await?.0;
        let (together, all_ready_ms) = read_by(daemon, place, 1, VMS).await?;
        let apart = read_by(daemon, place, VMS, 1).await?.0;
        ready_ms.push(all_ready_ms);
        one.push(alone / KIB);
        many.push(together / KIB);
        calls.push(apart / KIB);
        ratios[0].push(together / alone);
        ratios[1].push(apart / alone);
        patina_daemon::say!(
            "1 VM reads {:.0} KiB, {VMS} read {:.0} KiB, of {VMS} calls {:.0} KiB",
            alone / KIB,
            together / KIB,
            apart / KIB
        );
    }
    let [together, apart] = ratios;
    let rows = [
        Metric::of("restored_1_read_kib", "KiB", one),
        Metric::of("restored_16_read_kib", "KiB", many),
        Metric::of("restored_16_read_ratio", "x", together).map(|metric| metric.limits(1.1, 1.02)),
        Metric::of("restored_16_calls_read_ratio", "x", apart).map(|metric| metric.limits(1.1, 1.02)),
        Metric::of("restored_16_ready_ms", "ms", ready_ms),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// So many calls at once for so many VMs each, until all memory has arrived: the bytes that the
/// pager has read, and the time until all were ready, milliseconds.
async fn read_by(daemon: &Daemon, place: &Place, calls: u32, vms: u32) -> Result<(f64, f64), RestoreError> {
    let before = Served::by(daemon.pid()).ok();
    let earlier = before.map_or(Ok(0), |pager| pager.read_bytes().map(|read| read.called))?;
    let all = futures::future::try_join_all((0..calls).map(|_| daemon.restore(place, vms))).await?;
    let names: Vec<String> = all.iter().flat_map(|restored| restored.names.clone()).collect();
    // Before it is waited for guests: a pager that nobody needs any longer ends after a while.
    let pager = Served::by(daemon.pid())?;
    pager.filled().await?;
    let now = pager.read_bytes()?.called;
    let read = if before == Some(pager) { now.saturating_sub(earlier) } else { now };
    daemon.all_ready(&names).await?;
    let ready_ms = all.first().map_or(0.0, super::calls::Restored::ms);
    daemon.remove(&names).await?;
    tokio::time::sleep(SETTLE).await;
    Ok((read as f64, ready_ms))
}
