//! One VM from a snapshot: until it runs, and until it is ready.

use super::{
    RestoreError,
    place::Place,
    served::{ReadBytes, Served},
};
use crate::{daemon::Daemon, floors, report::Metric};
use std::time::Duration;

/// Rows of a VM of 256 MiB. All others are named after the first.
pub const ROWS: [&str; 7] = [
    "restore_us",
    "restore_ready_ms",
    "restore_dropped_us",
    "restore_dropped_ready_ms",
    "restore_complete_us",
    "restore_complete_ready_ms",
    "floor_mapped_us",
];
/// Rows of a VM of 4 GiB.
pub const ROWS_4G: [&str; 7] = [
    "restore_4g_us",
    "restore_4g_ready_ms",
    "restore_4g_dropped_us",
    "restore_4g_dropped_ready_ms",
    "restore_4g_complete_us",
    "restore_4g_complete_ready_ms",
    "floor_mapped_4g_us",
];
/// What the issue asks for, microseconds.
const MUST_US: f64 = 20_000.0;
const AIM_US: f64 = 5_000.0;
/// How long a VM that has just been removed may still be let go of.
const SETTLE: Duration = Duration::from_millis(300);

/// The names of a size in rows.
#[derive(Debug)]
pub struct Size {
    restore: &'static str,
    floor: &'static str,
}

/// 256 MiB.
pub const SMALL: Size = Size { restore: "restore", floor: "floor_mapped_us" };
/// 4 GiB.
pub const LARGE: Size = Size { restore: "restore_4g", floor: "floor_mapped_4g_us" };

/// Times of one kind of start.
#[derive(Debug, Default)]
struct Times {
    executing_us: Vec<f64>,
    ready_ms: Vec<f64>,
    /// What the pager read from the disk.
    disk: u64,
}

/// All rows of a size, and what to know about them.
pub async fn measure(
    daemon: &Daemon,
    place: &Place,
    size: &Size,
    count: usize,
) -> Result<(Vec<Metric>, Vec<String>), RestoreError> {
    let layer = place.largest_file()?;
    place.bring_into_cache()?;
    let floors = (0..count).map(|_| floors::start_on(&layer)).collect::<Result<Vec<_>, _>>()?;
    let floor = Metric::of(size.floor, "us", floors);
    let floor_us = floor.as_ref().map_or(0.0, Metric::median);
    // This one starts the pager, too, if no earlier VM has.
    start(daemon, place, &mut Times::default()).await?;

    let (mut cached, mut dropped, mut complete) = (Times::default(), Times::default(), Times::default());
    for _ in 0..count {
        place.bring_into_cache()?;
        start(daemon, place, &mut cached).await?;
        place.drop_from_cache()?;
        start(daemon, place, &mut dropped).await?;
    }
    // As long as one VM has the snapshot's layers, the others find them complete.
    place.bring_into_cache()?;
    let holder = daemon.restore(place, 1).await?.names;
    Served::by(daemon.pid())?.filled().await?;
    daemon.all_ready(&holder).await?;
    tokio::time::sleep(SETTLE).await;
    for _ in 0..count {
        start(daemon, place, &mut complete).await?;
    }
    daemon.remove(&holder).await?;

    let mut notes = Vec::new();
    if dropped.disk == 0 {
        notes.push(format!(
            "{}_dropped_*: nothing was read from a disk: the files are on a file system in memory",
            size.restore
        ));
    }
    let mut rows: Vec<Metric> = floor.into_iter().collect();
    rows.extend(cached.rows(size.restore, floor_us));
    rows.extend(dropped.rows(&format!("{}_dropped", size.restore), floor_us));
    rows.extend(complete.rows(&format!("{}_complete", size.restore), floor_us));
    Ok((rows, notes))
}

impl Times {
    /// Rows whose names begin so.
    fn rows(self, name: &str, floor_us: f64) -> impl Iterator<Item = Metric> {
        let executing = Metric::of(&format!("{name}_us"), "us", self.executing_us)
            .map(|metric| metric.limits(MUST_US, AIM_US).floor(floor_us));
        let ready = Metric::of(&format!("{name}_ready_ms"), "ms", self.ready_ms);
        [executing, ready].into_iter().flatten()
    }
}

/// Restores a VM, waits until it is ready, and removes it.
async fn start(daemon: &Daemon, place: &Place, times: &mut Times) -> Result<(), RestoreError> {
    let before = disk(daemon);
    let restored = daemon.restore(place, 1).await?;
    daemon.all_ready(&restored.names).await?;
    let ready_ms = restored.ms();
    patina_daemon::say!(
        "{place}: executing after {:.0} us, ready after {ready_ms:.1} ms",
        restored.all_executing_us()
    );
    times.executing_us.push(restored.all_executing_us());
    times.ready_ms.push(ready_ms);
    times.disk += disk(daemon).saturating_sub(before);
    daemon.remove(&restored.names).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// What the pager has read from disks so far; there is none before the first VM.
fn disk(daemon: &Daemon) -> u64 {
    let read = Served::by(daemon.pid()).and_then(Served::read_bytes);
    read.map_or(0, |ReadBytes { disk, .. }| disk)
}
