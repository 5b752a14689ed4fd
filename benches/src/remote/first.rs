//! One clone on another host: until it runs, and until it is ready. Beside it, one on the host of
//! its parent.

use super::{
    RemoteError,
    hosts::{Hosts, Parent},
};
use crate::report::Metric;
use patina_proto::v1::Prepare;

/// The rows.
pub const ROWS: [&str; 6] = [
    "remote_first_clone_us",
    "remote_first_instruction_us",
    "remote_first_instruction_prepared_us",
    "remote_ready_us",
    "floor_local_first_instruction_us",
    "floor_local_first_instruction_prepared_us",
];
/// What the issue asks for, microseconds.
const MUST_US: f64 = 30_000.0;
const AIM_US: f64 = 10_000.0;

/// All rows, in turns. The VM has not been cloned for another host before: the first time, its
/// whole memory is digested.
pub async fn measure(hosts: &Hosts, parent: &Parent, rounds: usize) -> Result<Vec<Metric>, RemoteError> {
    let (mut first_us, mut prepared_us, mut ready_us) = (Vec::new(), Vec::new(), Vec::new());
    let (mut local_us, mut local_prepared_us) = (Vec::new(), Vec::new());
    let new_us = one(hosts, parent, 1, Prepare::None).await?.0;
    patina_daemon::say!("the first clone elsewhere: executing after {new_us:.0} us");
    for _ in 0..rounds {
        first_us.push(one(hosts, parent, 1, Prepare::None).await?.0);
        local_us.push(one(hosts, parent, 0, Prepare::None).await?.0);
        local_prepared_us.push(one(hosts, parent, 0, Prepare::Hold).await?.0);
        let (executing_us, ready) = one(hosts, parent, 1, Prepare::Hold).await?;
        prepared_us.push(executing_us);
        ready_us.push(ready);
        patina_daemon::say!(
            "a clone elsewhere: executing after {:.0} us, prepared {executing_us:.0} us, ready after {ready:.0} us",
            first_us.last().unwrap_or(&0.0)
        );
    }
    let local = Metric::of("floor_local_first_instruction_us", "us", local_us);
    let floor_us = local.as_ref().map_or(0.0, Metric::median);
    let local_prepared = Metric::of("floor_local_first_instruction_prepared_us", "us", local_prepared_us);
    let prepared_floor_us = local_prepared.as_ref().map_or(0.0, Metric::median);
    let prepared = Metric::of("remote_first_instruction_prepared_us", "us", prepared_us);
    let first = Metric::of("remote_first_instruction_us", "us", first_us);
    let rows = [
        Metric::of("remote_first_clone_us", "us", vec![new_us]),
        first.map(|metric| metric.limits(MUST_US, AIM_US).floor(floor_us)),
        prepared.map(|metric| metric.floor(prepared_floor_us)),
        Metric::of("remote_ready_us", "us", ready_us),
        local,
        local_prepared,
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Clones a VM once, and removes the clone when it is ready: microseconds until it ran and until it
/// was ready.
async fn one(hosts: &Hosts, parent: &Parent, on: usize, prepare: Prepare) -> Result<(f64, f64), RemoteError> {
    let cloned = hosts.clone_on(&[on], parent, 1, prepare).await?;
    let ready = hosts.ready(&[on], &cloned).await?;
    let ready_us = ready.iter().map(|ready| ready.ms * 1e3).fold(0.0, f64::max);
    hosts.remove(ready).await?;
    hosts.until_empty(on).await?;
    Ok((cloned.all_executing_us(), ready_us))
}
