//! The `remote` benchmark: clones on other hosts. The hosts are network namespaces of one machine,
//! each with its own `vmmd` and state folder, connected by veth. They share its CPUs.
//!
//! - [`hosts`]: the hosts, and clones on them.
//! - [`first`]: one clone on another host. [`cold`]: a VM that boots there instead.
//! - [`faults`]: an access to memory that is on the other host only. [`fill`]: how fast the rest
//!   arrives.
//! - [`takeover`]: an access to memory whose lender dies.
//! - [`moved`]: the bytes between the hosts.
//! - [`many`]: many clones of one call, on one host and on several.
//! - [`link`]: the link itself. [`memory`]: a VM's memory, seen from outside. [`sys`]: an access
//!   to it.

mod cold;
mod faults;
mod fill;
mod first;
mod hosts;
mod link;
mod many;
mod memory;
mod moved;
mod sys;
mod takeover;

use crate::{
    clone::masters::{Kind, Master},
    daemon::DaemonError,
    only::Only,
    report::Metric,
    restore::served::ServedError,
};
use hosts::Hosts;
use patina_tests::{host::HostError, setup::Setup};
use std::{error::Error, io};

/// All rows, by the parts that are measured together.
pub const PARTS: [&[&str]; 8] = [
    &first::ROWS,
    &cold::ROWS,
    &moved::ROWS,
    &many::CROWD_ROWS,
    &many::PLOT_ROWS,
    &faults::ROWS,
    &fill::ROWS,
    &takeover::ROWS,
];

const SMALL: Kind = Kind { memory_mib: 256, pages: "--huge", touched_mib: 64, again_mib: 32 };
/// It holds enough that its memory is still arriving while it is accessed.
const LARGE: Kind = Kind { memory_mib: 1024, pages: "--huge", touched_mib: 512, again_mib: 1 };

/// How often each thing is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Clones one at a time.
    singles: usize,
    /// VMs that boot.
    cold: usize,
    /// Rounds in which all memory arrives.
    fills: usize,
    /// Calls for each number of clones.
    many: usize,
    /// The numbers of clones.
    counts: &'static [u32],
    /// Clones of the largest call.
    crowd: u32,
}

impl Plan {
    /// All that the figures need; `quick` when somebody waits for them.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { singles: 7, cold: 1, fills: 3, many: 1, counts: &[1, 2, 4, 8], crowd: 15 }
        } else {
            Self { singles: 21, cold: 3, fills: 5, many: 3, counts: &[1, 2, 4, 8, 16, 32], crowd: 60 }
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// vmmd or a guest failed.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A host or its network failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A pager's process cannot be observed.
    #[error(transparent)]
    Served(#[from] ServedError),
    /// The link between hosts failed.
    #[error("use the link between two hosts: {0}")]
    Link(io::Error),
    /// It does not count.
    #[error("`ip` shows no bytes of the link: {0}")]
    Counters(String),
    /// A VM's memory cannot be observed.
    #[error("look at {what}: {source}")]
    Memory {
        /// What of it.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A host keeps what nobody uses.
    #[error("wait until host {host} has no memory of removed VMs: its pager still has a layer after {} s", hosts::EMPTY_PATIENCE.as_secs())]
    Full {
        /// The host.
        host: usize,
    },
    /// A host does not get the memory of a clone.
    #[error("wait until host {host} has all of a clone's memory: it takes too long")]
    Slow {
        /// The host.
        host: usize,
    },
}

/// The figures, and what has to be known to read them.
pub async fn measure(
    setup: &Setup,
    plan: Plan,
    only: &Only,
) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let hosts = Hosts::start(setup).await?;
    let measured = all(&hosts, plan, only).await;
    let stopped = hosts.stop();
    let measured = measured?;
    stopped?;
    Ok(measured)
}

async fn all(hosts: &Hosts, plan: Plan, only: &Only) -> Result<(Vec<Metric>, Vec<String>), RemoteError> {
    let mut metrics = Vec::new();
    let notes = vec![
        "hosts are network namespaces of this machine: their vmmds, pagers and VMs share its CPUs".into(),
    ];
    let daemon = hosts.daemon(0);
    if only.wants(&small_rows()) {
        let mut master = Master::make(daemon, 0, SMALL).await?;
        metrics.extend(small(hosts, &mut master, plan, only).await?);
        master.remove(daemon).await?;
    }
    if [&faults::ROWS[..], &fill::ROWS, &takeover::ROWS].iter().any(|rows| only.wants(rows)) {
        let master = Master::make(daemon, 1, LARGE).await?;
        let parent = hosts.parent(master.name()).await?;
        if only.wants(&faults::ROWS) {
            metrics.extend(faults::measure(hosts, &parent, plan.fills).await?);
        }
        if only.wants(&fill::ROWS) {
            metrics.extend(fill::measure(hosts, &parent, plan.fills).await?);
        }
        if only.wants(&takeover::ROWS) {
            metrics.extend(takeover::measure(hosts, &parent, plan.fills).await?);
        }
        master.remove(daemon).await?;
    }
    Ok((metrics, notes))
}

fn small_rows() -> Vec<&'static str> {
    [&first::ROWS[..], &cold::ROWS, &moved::ROWS, &many::CROWD_ROWS, &many::PLOT_ROWS].concat()
}

/// What is measured with a VM of 256 MiB.
async fn small(
    hosts: &Hosts,
    master: &mut Master,
    plan: Plan,
    only: &Only,
) -> Result<Vec<Metric>, RemoteError> {
    let mut metrics = Vec::new();
    let parent = hosts.parent(master.name()).await?;
    // What boots is compared with what is cloned.
    if only.wants(&first::ROWS) || only.wants(&cold::ROWS) {
        metrics.extend(first::measure(hosts, &parent, plan.singles).await?);
    }
    if only.wants(&cold::ROWS) {
        metrics.extend(cold::measure(hosts, (&metrics, SMALL.memory_mib), plan.cold).await?);
    }
    if only.wants(&moved::ROWS) {
        metrics.extend(moved::measure(hosts, master, (SMALL.again_mib, plan.fills)).await?);
    }
    if only.wants(&many::CROWD_ROWS) {
        metrics.extend(many::crowd(hosts, &parent, (plan.crowd, plan.many)).await?);
    }
    if only.wants(&many::PLOT_ROWS) {
        metrics.extend(many::plot(hosts, &parent, (plan.counts, plan.many)).await?);
    }
    Ok(metrics)
}
