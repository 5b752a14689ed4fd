//! The pause of a VM at a later clone, by the size of its RAM: half of it is resident, and 1 MiB
//! was written since the last clone.

use super::masters::{Kind, Master};
use crate::{
    daemon::{Daemon, DaemonError},
    report::Metric,
};

/// The rows.
pub const ROWS: [&str; 6] = [
    "pause_again_256m_us",
    "pause_again_1g_us",
    "pause_again_4g_us",
    "pause_second_256m_us",
    "pause_second_1g_us",
    "pause_second_4g_us",
];

/// Names in rows and sizes of RAM.
const SIZES: [(&str, u32); 3] = [("256m", 256), ("1g", 1024), ("4g", 4096)];
/// Written before each clone.
const WRITTEN_MIB: u32 = 1;

/// The rows of the sizes that `wants` says yes to.
pub async fn measure(
    daemon: &Daemon,
    rounds: usize,
    wants: impl Fn(&[&str]) -> bool,
) -> Result<Vec<Metric>, DaemonError> {
    let mut rows = Vec::new();
    for (index, (name, memory_mib)) in SIZES.into_iter().enumerate() {
        let names = [format!("pause_again_{name}_us"), format!("pause_second_{name}_us")];
        if wants(&[&names[0], &names[1]]) {
            let kind =
                Kind { memory_mib, pages: "--huge", touched_mib: memory_mib / 2, again_mib: WRITTEN_MIB };
            let mut master = Master::make(daemon, index, kind).await?;
            // With its first clone a VM gets a view of its own; at the second, tracking of what it
            // writes begins.
            master.pause_us(daemon, WRITTEN_MIB).await?;
            let second_us = master.pause_us(daemon, WRITTEN_MIB).await?;
            let mut pause_us = Vec::new();
            for _ in 0..rounds {
                pause_us.push(master.pause_us(daemon, WRITTEN_MIB).await?);
            }
            let [again, second] = names;
            rows.extend(Metric::of(&again, "us", pause_us).map(|m| m.limits(5000.0, 2000.0)));
            rows.extend(Metric::of(&second, "us", vec![second_us]));
            master.remove(daemon).await?;
        }
    }
    Ok(rows)
}
