//! Many clones of one call, on one host and on several.

use super::{
    RemoteError,
    hosts::{HOSTS, Hosts, Parent},
};
use crate::report::Metric;
use patina_proto::v1::Prepare;

/// The rows of 60 clones.
pub const CROWD_ROWS: [&str; 3] = ["ready_60_on_1_ms", "ready_60_on_3_ms", "remote_ready_60_ratio"];
/// The rows of N clones on H hosts, for a plot.
pub const PLOT_ROWS: [&str; 3] = ["plot_N_on_H_executing_ms", "plot_N_on_H_ready_ms", "plot_N_on_H_pause_us"];

/// What came of a call.
struct Times {
    executing_ms: Vec<f64>,
    ready_ms: Vec<f64>,
    pause_us: f64,
}

impl Times {
    fn last_ready_ms(&self) -> f64 {
        self.ready_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// Calls for `count` clones, on one host and on three in turns: the time until the last one is
/// ready.
pub async fn crowd(
    hosts: &Hosts,
    parent: &Parent,
    (count, rounds): (u32, usize),
) -> Result<Vec<Metric>, RemoteError> {
    let (mut on_one, mut on_all, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let one = call(hosts, parent, count, 1).await?.last_ready_ms();
        let all = call(hosts, parent, count, HOSTS).await?.last_ready_ms();
        patina_daemon::say!("{count} clones are ready after {one:.0} ms on one host, {all:.0} ms on {HOSTS}");
        on_one.push(one);
        on_all.push(all);
        ratios.push(all / one);
    }
    let rows = [
        Metric::of(&format!("ready_{count}_on_1_ms"), "ms", on_one),
        Metric::of(&format!("ready_{count}_on_{HOSTS}_ms"), "ms", on_all),
        Metric::of(&format!("remote_ready_{count}_ratio"), "x", ratios).map(|metric| metric.limits(1.2, 1.0)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Calls for as many clones as each count says, on one, two and three hosts, where there is a clone
/// for each.
pub async fn plot(
    hosts: &Hosts,
    parent: &Parent,
    (counts, rounds): (&[u32], usize),
) -> Result<Vec<Metric>, RemoteError> {
    let mut rows = Vec::new();
    for on in 1..=HOSTS {
        for count in counts.iter().copied().filter(|count| *count >= u32::from(on)) {
            let (mut executing_ms, mut ready_ms, mut pause_us) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                let times = call(hosts, parent, count, on).await?;
                patina_daemon::say!(
                    "{count} clones on {on} hosts: ready after {:.0} ms",
                    times.last_ready_ms()
                );
                executing_ms.extend(times.executing_ms);
                ready_ms.extend(times.ready_ms);
                pause_us.push(times.pause_us);
            }
            let row = |what: &str, unit, samples| {
                Metric::of(&format!("plot_{count}_on_{on}_{what}_{unit}"), unit, samples)
            };
            let new = [
                row("executing", "ms", executing_ms),
                row("ready", "ms", ready_ms),
                row("pause", "us", pause_us),
            ];
            rows.extend(new.into_iter().flatten());
        }
    }
    Ok(rows)
}

/// One call for clones on the first hosts; they are removed when all are ready.
async fn call(hosts: &Hosts, parent: &Parent, count: u32, on: u8) -> Result<Times, RemoteError> {
    let on: Vec<usize> = (0..usize::from(on)).collect();
    let cloned = hosts.clone_on(&on, parent, count, Prepare::Hold).await?;
    let ready = hosts.ready(&on, &cloned).await?;
    let times = Times {
        executing_ms: cloned.executing_us.iter().map(|us| us / 1e3).collect(),
        ready_ms: ready.iter().map(|ready| ready.ms).collect(),
        pause_us: cloned.pause_us,
    };
    hosts.remove(ready).await?;
    for host in on {
        hosts.until_empty(host).await?;
    }
    Ok(times)
}
