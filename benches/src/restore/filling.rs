//! The pause of a VM that is cloned while its memory arrives, beside that of one whose memory has
//! arrived.

use super::{RestoreError, place::Place, served::Served};
use crate::{daemon::Daemon, report::Metric};
use std::time::Duration;

/// The rows.
pub const ROWS: [&str; 3] = ["pause_filling_us", "pause_complete_us", "filling_pause_ratio"];
/// How long VMs that have just been removed may still be let go of.
const SETTLE: Duration = Duration::from_millis(300);

/// All rows, in turns: VMs restored from a snapshot, each cloned once.
pub async fn measure(
    daemon: &Daemon,
    place: &Place,
    rounds: usize,
) -> Result<(Vec<Metric>, Vec<String>), RestoreError> {
    let (mut filling_us, mut complete_us, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut too_late = 0;
    for _ in 0..rounds {
        place.bring_into_cache()?;
        let (filling, still) = pause_us(daemon, place, false).await?;
        let (complete, _) = pause_us(daemon, place, true).await?;
        patina_daemon::say!("paused for {filling:.0} us while it fills ({still}), {complete:.0} us complete");
        if still {
            filling_us.push(filling);
            complete_us.push(complete);
            ratios.push(filling / complete);
        } else {
            too_late += 1;
        }
    }
    let rows = [
        Metric::of("pause_filling_us", "us", filling_us),
        Metric::of("pause_complete_us", "us", complete_us),
        Metric::of("filling_pause_ratio", "x", ratios).map(|metric| metric.limits(1.5, 1.0)),
    ];
    let late = format!(
        "filling_pause_ratio: {too_late} of {rounds} VMs were complete before they were cloned, and do not count"
    );
    let notes = (too_late > 0).then_some(late).into_iter().collect();
    Ok((rows.into_iter().flatten().collect(), notes))
}

/// Restores a VM, waits until it is ready, and until its memory has arrived if `complete`; clones
/// it without preparation. How long it stood still, and whether memory was still arriving then.
async fn pause_us(daemon: &Daemon, place: &Place, complete: bool) -> Result<(f64, bool), RestoreError> {
    let vm = daemon.restore(place, 1).await?.names;
    let pager = Served::by(daemon.pid())?;
    if complete {
        pager.filled().await?;
    }
    daemon.all_ready(&vm).await?;
    let cloned = daemon.clone_unprepared(&vm[0]).await?;
    let still = pager.is_filling();
    daemon.all_ready(&cloned.names).await?;
    daemon.remove(&cloned.names).await?;
    daemon.remove(&vm).await?;
    tokio::time::sleep(SETTLE).await;
    Ok((cloned.pause_us, still))
}
