//! VMs that are created, not restored: the first one of a kind boots; later ones start from an
//! image of it that has booted, if this revision keeps such.

use super::RestoreError;
use crate::{daemon::Daemon, report::Metric, smaps};
use std::time::{Duration, Instant};

/// Rows of a VM of 256 MiB.
pub const ROWS: [&str; 3] = ["run_first_ms", "run_ms", "run_private_kib"];
/// Rows of a VM of 4 GiB.
pub const ROWS_4G: [&str; 2] = ["run_4g_first_ms", "run_4g_ms"];

/// The names of a size in rows.
#[derive(Debug)]
pub struct Size {
    memory_mib: u32,
    first: &'static str,
    cached: &'static str,
    private: Option<&'static str>,
}

/// 256 MiB.
pub const SMALL: Size = Size {
    memory_mib: super::MEMORY_MIB,
    first: "run_first_ms",
    cached: "run_ms",
    private: Some("run_private_kib"),
};
/// 4 GiB.
pub const LARGE: Size =
    Size { memory_mib: 4096, first: "run_4g_first_ms", cached: "run_4g_ms", private: None };

/// How long a VM that is ready is left alone before its memory is counted.
const IDLE: Duration = Duration::from_secs(2);

/// All rows of a size, and what to know about them.
pub async fn measure(
    daemon: &Daemon,
    size: &Size,
    count: usize,
) -> Result<(Vec<Metric>, Vec<String>), RestoreError> {
    let first_ms = run_ms(daemon, size, None).await?;
    let (mut cached_ms, mut private_kib) = (Vec::new(), Vec::new());
    for _ in 0..count {
        cached_ms.push(run_ms(daemon, size, Some(&mut private_kib)).await?);
    }
    let rows = [
        Metric::of(size.first, "ms", vec![first_ms]),
        Metric::of(size.cached, "ms", cached_ms).map(|metric| metric.limits(1000.0, 250.0)),
        size.private
            .and_then(|name| Metric::of(name, "KiB", private_kib))
            .map(|metric| metric.limits(4096.0, 1536.0)),
    ];
    let rows: Vec<Metric> = rows.into_iter().flatten().collect();
    let cached_ms = rows.iter().find(|row| row.name() == size.cached).map(Metric::median);
    Ok((rows, cold_note(size, first_ms, cached_ms).into_iter().collect()))
}

/// What to say if later VMs take about as long as the first: then they booted, too.
fn cold_note(size: &Size, first_ms: f64, cached_ms: Option<f64>) -> Option<String> {
    let booted = cached_ms.is_some_and(|cached_ms| cached_ms > first_ms / 2.0);
    booted.then(|| {
        format!("{}: cold: it takes as long as {}, so these VMs booted, too", size.cached, size.first)
    })
}

/// From the call for a VM to its ready agent, milliseconds. Adds what the VM has to itself once it
/// has been idle, KiB.
async fn run_ms(
    daemon: &Daemon,
    size: &Size,
    private_kib: Option<&mut Vec<f64>>,
) -> Result<f64, RestoreError> {
    let name = "run";
    let called = Instant::now();
    daemon.boot(name, size.memory_mib).await?;
    let ready_ms = called.elapsed().as_secs_f64() * 1e3;
    patina_daemon::say!("a VM of {} MiB: ready after {ready_ms:.0} ms", size.memory_mib);
    if let (Some(private_kib), Some(_)) = (private_kib, size.private) {
        tokio::time::sleep(IDLE).await;
        private_kib.push(smaps::private_kib(daemon.ready(name).await?.pid)?);
    }
    daemon.remove(&[name.to_owned()]).await?;
    Ok(ready_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_that_take_as_long_as_the_first_are_said_to_be_cold() {
        let said = cold_note(&SMALL, 12_000.0, Some(11_000.0)).unwrap();
        assert!(said.contains("run_ms: cold"), "{said}");
        assert_eq!(cold_note(&SMALL, 12_000.0, Some(300.0)), None);
        assert_eq!(cold_note(&SMALL, 12_000.0, None), None);
    }
}
