//! What is sent between the hosts, as the second one's interface counts it.

use super::{
    RemoteError,
    hosts::{Hosts, Parent, Ready},
    link,
};
use crate::{clone::masters::Master, daemon::Cloned, report::Metric, restore::served::Served};
use patina_proto::v1::Prepare;

/// The rows.
pub const ROWS: [&str; 5] = [
    "remote_1_moved_mib",
    "remote_16_moved_mib",
    "remote_16_moved_ratio",
    "remote_second_moved_mib",
    "remote_second_moved_ratio",
];
const HOST: usize = 1;
const CLONES: u32 = 16;
const MIB: f64 = (1 << 20) as f64;
const KIB: f64 = 1024.0;

/// All rows. Each time the host has nothing of the VM's memory, but for the second generation.
pub async fn measure(
    hosts: &Hosts,
    master: &mut Master,
    (written_mib, rounds): (u32, usize),
) -> Result<Vec<Metric>, RemoteError> {
    let parent = &hosts.parent(master.name()).await?;
    let (mut one, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut second, mut second_ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Both of the same layers: all of a layer is sent, also what has been written since.
        let (together, _, clones) = moved_by(hosts, parent, CLONES).await?;
        hosts.remove(clones).await?;
        hosts.until_empty(HOST).await?;
        let (alone, _, clones) = moved_by(hosts, parent, 1).await?;
        // The second generation, while the host has the first.
        master.touch(written_mib).await?;
        let (more, cloned, others) = moved_by(hosts, parent, 1).await?;
        let written = cloned.copied_kib * KIB;
        hosts.remove(clones).await?;
        hosts.remove(others).await?;
        hosts.until_empty(HOST).await?;
        let mib = [alone, together, more, written].map(|bytes| bytes / MIB);
        patina_daemon::say!(
            "moved for 1 clone {:.1} MiB, for {CLONES} {:.1} MiB, for a second generation {:.1} MiB of {:.1} MiB written",
            mib[0],
            mib[1],
            mib[2],
            mib[3]
        );
        one.push(mib[0]);
        many.push(mib[1]);
        ratios.push(together / alone);
        second.push(mib[2]);
        second_ratios.push(more / written);
    }
    let rows = [
        Metric::of("remote_1_moved_mib", "MiB", one),
        Metric::of("remote_16_moved_mib", "MiB", many),
        Metric::of("remote_16_moved_ratio", "x", ratios).map(|metric| metric.limits(1.1, 1.02)),
        Metric::of("remote_second_moved_mib", "MiB", second),
        Metric::of("remote_second_moved_ratio", "x", second_ratios).map(|metric| metric.limits(1.05, 1.02)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Has clones made on the host, and waits until they are ready and all memory has arrived: the
/// bytes that were moved for that.
async fn moved_by(
    hosts: &Hosts,
    parent: &Parent,
    count: u32,
) -> Result<(f64, Cloned, Vec<Ready>), RemoteError> {
    let before = link::moved(hosts.switch(), 1)?;
    let cloned = hosts.clone_on(&[HOST], parent, count, Prepare::Hold).await?;
    Served::by(hosts.daemon(HOST).pid())?.filled().await?;
    let ready = hosts.ready(&[HOST], &cloned).await?;
    Ok((link::moved(hosts.switch(), 1)? - before, cloned, ready))
}
