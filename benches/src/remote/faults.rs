//! What an access to memory costs that is on another host only.

use super::{
    RemoteError,
    hosts::{Hosts, Parent},
    link,
    memory::Memory,
};
use crate::report::{Figures, Metric};
use patina_proto::v1::Prepare;

/// The rows.
pub const ROWS: [&str; 4] =
    ["remote_round_trip_us", "floor_remote_run_us", "remote_fault_us", "remote_fault_over_rtt_us"];
const HOST: usize = 1;
/// Round trips of each round.
const TRIPS: usize = 1000;
/// Accesses of each round.
const FAULTS: usize = 300;
/// What the issue asks for, microseconds.
const MUST_US: f64 = 100.0;
const AIM_US: f64 = 50.0;

/// All rows. Each round has a new clone, of whose memory nothing is there.
pub async fn measure(hosts: &Hosts, parent: &Parent, rounds: usize) -> Result<Vec<Metric>, RemoteError> {
    let (mut trips, mut runs, mut faults, mut over) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let trip = link::round_trips(hosts.switch(), TRIPS)?;
        let run = link::runs(hosts.switch(), TRIPS)?;
        let cloned = hosts.clone_on(&[HOST], parent, 1, Prepare::Hold).await?;
        let pids = hosts.pids(HOST, &cloned).await?;
        let mut found = Vec::new();
        for pid in pids {
            found.extend(Memory::of(pid)?.faults(FAULTS)?);
        }
        let ready = hosts.ready(&[HOST], &cloned).await?;
        hosts.remove(ready).await?;
        hosts.until_empty(HOST).await?;
        let median = |samples: &Vec<f64>| Figures::of("us", samples.clone()).map_or(0.0, |f| f.p50);
        patina_daemon::say!(
            "{} faults: {:.0} us; round trip {:.0} us, a run {:.0} us",
            found.len(),
            median(&found),
            median(&trip),
            median(&run)
        );
        if !found.is_empty() {
            over.push(median(&found) - median(&trip));
        }
        trips.extend(trip);
        runs.extend(run);
        faults.extend(found);
    }
    let trip = Metric::of("remote_round_trip_us", "us", trips);
    let run = Metric::of("floor_remote_run_us", "us", runs);
    let least = run.as_ref().zip(trip.as_ref()).map_or(0.0, |(run, trip)| run.median() - trip.median());
    let over = Metric::of("remote_fault_over_rtt_us", "us", over);
    let over = over.map(|metric| metric.limits(MUST_US, AIM_US).floor(least));
    Ok([trip, run, Metric::of("remote_fault_us", "us", faults), over].into_iter().flatten().collect())
}
