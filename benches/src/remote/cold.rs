//! What a host without the VM's memory would do otherwise: boot one.

use super::{RemoteError, hosts::Hosts};
use crate::report::Metric;
use patina_tests::host::succeeded;

/// The rows. The second one needs `remote_ready_us`.
pub const ROWS: [&str; 2] = ["remote_cold_ms", "remote_ready_ratio"];
const HOST: usize = 1;
const NAME: &str = "cold";

/// Boots VMs on the other host; the ratio is that of the medians.
pub async fn measure(
    hosts: &Hosts,
    (measured, memory_mib): (&[Metric], u32),
    rounds: usize,
) -> Result<Vec<Metric>, RemoteError> {
    let memory = format!("{memory_mib}M");
    let run = ["run", "--cold", "--name", NAME, "--memory", &memory];
    let mut cold_ms = Vec::new();
    for _ in 0..rounds {
        let output = hosts.daemon(HOST).host().vmctl(&run)?;
        succeeded(&run, &output)?;
        cold_ms.push(output.elapsed.as_secs_f64() * 1e3);
        hosts.daemon(HOST).remove(&[NAME.to_owned()]).await?;
    }
    let cold = Metric::of("remote_cold_ms", "ms", cold_ms);
    let ready = measured.iter().find(|metric| metric.name() == "remote_ready_us").map(Metric::median);
    let ratio = cold.as_ref().zip(ready).map(|(cold, ready_us)| cold.median() * 1e3 / ready_us);
    let ratio = ratio.and_then(|ratio| Metric::of("remote_ready_ratio", "x", vec![ratio]));
    Ok([cold, ratio.map(|metric| metric.at_least(10.0, 50.0))].into_iter().flatten().collect())
}
