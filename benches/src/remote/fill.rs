//! How fast the memory of a clone arrives that nobody waits for, beside a plain copy.

use super::{
    RemoteError,
    hosts::{Hosts, Parent},
    link, memory,
};
use crate::{report::Metric, restore::served::Served};
use patina_proto::v1::Prepare;
use std::time::Instant;

/// The rows.
pub const ROWS: [&str; 2] = ["remote_link_mib_per_s", "remote_fill_mib_per_s"];
const HOST: usize = 1;
const MIB: f64 = (1 << 20) as f64;
/// What the issue asks for: so much, or this part of what the link carries.
const MUST_MIB_PER_S: f64 = 1e9 / MIB;
const PART: f64 = 0.9;

/// Both rows, in turns.
pub async fn measure(hosts: &Hosts, parent: &Parent, rounds: usize) -> Result<Vec<Metric>, RemoteError> {
    let (mut link, mut fill) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        link.push(link::copied_mib_per_s(hosts.switch())?);
        let cloned = hosts.clone_on(&[HOST], parent, 1, Prepare::Hold).await?;
        let pager = Served::by(hosts.daemon(HOST).pid())?;
        let (begun, before) = (Instant::now(), memory::arrived(&pager.layers()?));
        pager.filled().await?;
        let (took, after) = (begun.elapsed(), memory::arrived(&pager.layers()?));
        let mib = after.saturating_sub(before) as f64 / MIB;
        fill.push(mib / took.as_secs_f64());
        patina_daemon::say!("{mib:.0} MiB arrived within {:.0} ms", took.as_secs_f64() * 1e3);
        let ready = hosts.ready(&[HOST], &cloned).await?;
        hosts.remove(ready).await?;
        hosts.until_empty(HOST).await?;
    }
    let link = Metric::of("remote_link_mib_per_s", "MiB/s", link);
    let carried = link.as_ref().map_or(0.0, Metric::median);
    let must = MUST_MIB_PER_S.min(PART * carried);
    let fill = Metric::of("remote_fill_mib_per_s", "MiB/s", fill);
    let fill = fill.map(|metric| metric.at_least(must, must).floor(carried));
    Ok([link, fill].into_iter().flatten().collect())
}
