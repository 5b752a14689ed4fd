//! VMs that are created, not restored: the first one of a kind boots; later ones start from an
//! image of it.

use super::{RestoreError, WARM};
use crate::{daemon::Daemon, report::Metric, smaps};
use patina_tests::setup::Setup;
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
const NAME: &str = "run";
/// Another VM of the image, which runs beside.
const BESIDE: &str = "beside";

/// All rows of a size, by a `vmmd` that has no image before.
pub async fn measure(setup: &Setup, size: &Size, count: usize) -> Result<Vec<Metric>, RestoreError> {
    let images = super::place::folder()?;
    let daemon = Daemon::start_with_images(setup, WARM, images.path()).await?;
    let measured = of_daemon(&daemon, size, count).await;
    daemon.stop()?;
    measured
}

async fn of_daemon(daemon: &Daemon, size: &Size, count: usize) -> Result<Vec<Metric>, RestoreError> {
    let first_ms = run_ms(daemon, NAME, size).await?;
    // It is written after the VM is ready.
    daemon.images(1).await?;
    daemon.remove(&[NAME.to_owned()]).await?;
    if size.private.is_some() {
        // Without another VM of the image, what is there once for all of them counts as private.
        run_ms(daemon, BESIDE, size).await?;
    }
    let (mut cached_ms, mut private_kib) = (Vec::new(), Vec::new());
    for _ in 0..count {
        cached_ms.push(run_ms(daemon, NAME, size).await?);
        if size.private.is_some() {
            tokio::time::sleep(IDLE).await;
        }
        let vm = daemon.ready(NAME).await?;
        if vm.image.is_empty() {
            return Err(RestoreError::Booted(size.cached));
        }
        private_kib.push(smaps::private_kib(vm.pid)?);
        daemon.remove(&[NAME.to_owned()]).await?;
    }
    let rows = [
        Metric::of(size.first, "ms", vec![first_ms]),
        Metric::of(size.cached, "ms", cached_ms).map(|metric| metric.limits(1000.0, 250.0)),
        size.private
            .and_then(|name| Metric::of(name, "KiB", private_kib))
            .map(|metric| metric.limits(4096.0, 1536.0)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// From the call for a VM to its ready agent, milliseconds.
async fn run_ms(daemon: &Daemon, name: &str, size: &Size) -> Result<f64, RestoreError> {
    let called = Instant::now();
    daemon.boot(name, size.memory_mib).await?;
    let ready_ms = called.elapsed().as_secs_f64() * 1e3;
    patina_daemon::say!("a VM of {} MiB: ready after {ready_ms:.0} ms", size.memory_mib);
    Ok(ready_ms)
}
