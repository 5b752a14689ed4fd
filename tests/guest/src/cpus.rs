//! Two busy threads: with two CPUs they get twice as much CPU time as the elapsed time.

use rustix::time::{ClockId, clock_gettime};
use std::{
    error::Error,
    thread,
    time::{Duration, Instant},
};

/// Keeps two threads busy for `ms`, prints the CPU time that both got together.
pub fn busy(ms: u32) -> Result<(), Box<dyn Error>> {
    let (span, started) = (Duration::from_millis(ms.into()), Instant::now());
    let spin = move || {
        let (mut rounds, mut cpus) = (0_u64, std::collections::BTreeSet::new());
        while started.elapsed() < span {
            rounds = rounds.wrapping_mul(31).wrapping_add(7);
            if std::hint::black_box(rounds) % 4096 == 0 {
                cpus.insert(rustix::thread::sched_getcpu());
            }
        }
        cpus.insert(rustix::thread::sched_getcpu());
        cpus
    };
    let other = thread::spawn(spin);
    let mut cpus = spin();
    cpus.extend(other.join().map_err(|_| "a thread panicked")?);
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used_ms = Duration::try_from(used)?.as_millis();
    println!("wall_ms {} cpu_ms {used_ms} cpus {}", started.elapsed().as_millis(), cpus.len());
    Ok(())
}
