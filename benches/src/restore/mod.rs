//! The `restore` benchmark: how soon VMs that are restored from a snapshot run and are ready, what
//! they read, and VMs that start from a booted image.
//!
//! - [`starts`]: one VM from a snapshot, whose files the host's page cache has or has not, and
//!   whose memory the host has or has not; the floor.
//! - [`sources`]: the bytes that many VMs of one snapshot read, to those that one reads.
//! - [`filling`]: the pause of a VM that is cloned while its memory arrives.
//! - [`images`]: VMs of a booted image.
//! - [`peer`]: the same with QEMU.
//! - [`place`]: a snapshot's files; [`calls`]: the calls to `vmmd`; [`served`]: the pager's
//!   process.

mod calls;
mod filling;
mod images;
mod peer;
mod place;
pub mod served;
mod sources;
mod starts;

use crate::{
    clone::masters,
    daemon::{Daemon, DaemonError},
    floors::FloorError,
    host::HostFacts,
    only::Only,
    report::Metric,
    smaps::SmapsError,
};
use patina_tests::setup::Setup;
use place::{Place, PlaceError};
use served::ServedError;
use std::error::Error;
use tempfile::TempDir;

/// All rows, by the parts that are measured together.
pub const PARTS: [&[&str]; 7] = [
    &starts::ROWS,
    &starts::ROWS_4G,
    &sources::ROWS,
    &filling::ROWS,
    &images::ROWS,
    &images::ROWS_4G,
    &peer::ROWS,
];

/// vmmd's own default.
const WARM: u32 = 2;
const MEMORY_MIB: u32 = 256;
/// Its memory is that of a VM that holds a quarter of its RAM: restoring it takes no longer if it
/// need not arrive first.
const LARGE: masters::Kind =
    masters::Kind { memory_mib: 4096, pages: "--huge", touched_mib: 1024, again_mib: 1 };

/// It holds enough that its memory is still arriving when it is cloned.
const FILLING: masters::Kind =
    masters::Kind { memory_mib: 1024, pages: "--huge", touched_mib: 512, again_mib: 1 };

/// How often each thing is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Restores of one VM, of each kind.
    singles: usize,
    /// Restores of many VMs, and VMs that are cloned while they fill.
    many: usize,
    /// VMs of a booted image.
    images: usize,
    /// Starts of QEMU.
    qemu: usize,
}

impl Plan {
    /// All that the figures need; `quick` when somebody waits for them.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { singles: 7, many: 3, images: 2, qemu: 3 }
        } else {
            Self { singles: 21, many: 7, images: 5, qemu: 5 }
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// vmmd or a guest failed.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The kernel refused a floor.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// A process's memory cannot be read.
    #[error(transparent)]
    Smaps(#[from] SmapsError),
    /// The files of a snapshot cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A VM booted although there is an image of its kind.
    #[error("measure {0}: a VM booted although there is an image of its kind; vmmd's log says why")]
    Booted(&'static str),
    /// The pager's process cannot be observed.
    #[error(transparent)]
    Served(#[from] ServedError),
}

/// What somebody wants that needs a `vmmd`.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    starts: bool,
    starts_4g: bool,
    sources: bool,
    filling: bool,
}

impl Wanted {
    fn of(only: &Only) -> Self {
        Self {
            // QEMU's times are compared with those of starts.
            starts: only.wants(&starts::ROWS) || only.wants(&peer::ROWS),
            starts_4g: only.wants(&starts::ROWS_4G),
            sources: only.wants(&sources::ROWS),
            filling: only.wants(&filling::ROWS),
        }
    }
}

/// The figures, and what has to be known to read them.
pub async fn measure(
    setup: &Setup,
    host: &HostFacts,
    plan: Plan,
    only: &Only,
) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    // First, while nothing else runs.
    let qemu = only.wants(&peer::ROWS).then(|| peer::Qemus::measure(setup, host, plan)).transpose()?;
    let mut metrics = Vec::new();
    for (rows, size) in [(&images::ROWS[..], &images::SMALL), (&images::ROWS_4G, &images::LARGE)] {
        if only.wants(rows) {
            metrics.extend(images::measure(setup, size, plan.images).await?);
        }
    }
    let daemon = Daemon::start(setup, WARM).await?;
    let measured = ours(&daemon, plan, Wanted::of(only)).await;
    let stopped = daemon.stop();
    let (rows, mut notes) = measured?;
    stopped?;
    metrics.extend(rows);
    if let Some(qemu) = qemu {
        let (rows, about) = qemu.report(&metrics);
        metrics.extend(rows);
        notes.extend(about);
    }
    Ok((metrics, notes))
}

async fn ours(
    daemon: &Daemon,
    plan: Plan,
    wanted: Wanted,
) -> Result<(Vec<Metric>, Vec<String>), RestoreError> {
    let (mut metrics, mut notes) = (Vec::new(), Vec::new());
    let folder = place::folder()?;
    if wanted.starts || wanted.sources {
        let place = Place::in_folder(&folder, &format!("{MEMORY_MIB}m"));
        daemon.boot("kept", MEMORY_MIB).await?;
        daemon.keep("kept", &place).await?;
        daemon.remove(&["kept".to_owned()]).await?;
        if wanted.starts {
            let (rows, about) = starts::measure(daemon, &place, &starts::SMALL, plan.singles).await?;
            metrics.extend(rows);
            notes.extend(about);
        }
        if wanted.sources {
            metrics.extend(sources::measure(daemon, &place, plan.many).await?);
        }
    }
    if wanted.starts_4g {
        let place = kept(daemon, &folder, (0, LARGE)).await?;
        let (rows, about) = starts::measure(daemon, &place, &starts::LARGE, plan.singles).await?;
        metrics.extend(rows);
        notes.extend(about);
    }
    if wanted.filling {
        let place = kept(daemon, &folder, (1, FILLING)).await?;
        let (rows, about) = filling::measure(daemon, &place, plan.many).await?;
        metrics.extend(rows);
        notes.extend(about);
    }
    Ok((metrics, notes))
}

/// The snapshot of a VM that holds memory; the VM is removed.
async fn kept(
    daemon: &Daemon,
    folder: &TempDir,
    (index, kind): (usize, masters::Kind),
) -> Result<Place, RestoreError> {
    let place = Place::in_folder(folder, &format!("{}m", kind.memory_mib));
    let master = masters::Master::make(daemon, index, kind).await?;
    daemon.keep(master.name(), &place).await?;
    master.remove(daemon).await?;
    Ok(place)
}
