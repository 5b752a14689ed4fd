//! How long a VM waits for memory when the host that lends it dies or falls silent, and another
//! host has it, too.

use super::{
    RemoteError,
    hosts::{Hosts, Parent},
    memory::Memory,
};
use crate::{
    report::Metric,
    restore::served::{Served, ServedError},
};
use patina_proto::v1::Prepare;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// The rows.
pub const ROWS: [&str; 2] = ["remote_takeover_ms", "remote_takeover_silent_ms"];
/// What the issue asks for, milliseconds.
const MUST_MS: f64 = 1000.0;
const AIM_MS: f64 = 100.0;
/// The host with the parent, the one that takes its place, and the one whose clone waits.
const LENDER: usize = 0;
const HOLDER: usize = 1;
const WAITS: usize = 2;
const LOOK: Duration = Duration::from_millis(5);
/// How long the second host may take to get all of the memory.
const PATIENCE: Duration = Duration::from_secs(25);

/// A daemon that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: Option<u32>) -> Result<Self, RemoteError> {
        let pid = pid_of(pid)?;
        signal(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // If it has ended, what comes next says so.
        kill_process(self.0, Signal::CONT).ok();
    }
}

fn pid_of(pid: Option<u32>) -> Result<Pid, RemoteError> {
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    pid.ok_or(RemoteError::Served(ServedError::None))
}

fn signal(pid: Pid, signal: Signal) -> Result<(), RemoteError> {
    let failed = |source: rustix::io::Errno| RemoteError::Memory {
        what: format!("process {}", pid.as_raw_nonzero()),
        source: source.into(),
    };
    kill_process(pid, signal).map_err(failed)
}

/// Both rows, in turns. Each round, a call makes a clone on either host; the one that waits takes
/// the call only when the other one has all of the memory.
pub async fn measure(hosts: &Hosts, parent: &Parent, rounds: usize) -> Result<Vec<Metric>, RemoteError> {
    let (mut dead_ms, mut silent_ms) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        dead_ms.extend(one(hosts, parent, Signal::KILL).await?);
        silent_ms.extend(one(hosts, parent, Signal::STOP).await?);
        patina_daemon::say!(
            "another host takes over: {:.0} ms after a death, {:.0} ms after silence",
            dead_ms.last().unwrap_or(&f64::NAN),
            silent_ms.last().unwrap_or(&f64::NAN)
        );
    }
    let limits = |metric: Metric| metric.limits(MUST_MS, AIM_MS);
    let dead = Metric::of("remote_takeover_ms", "ms", dead_ms).map(limits);
    let silent = Metric::of("remote_takeover_silent_ms", "ms", silent_ms).map(limits);
    Ok([dead, silent].into_iter().flatten().collect())
}

/// How long an access to memory that had not arrived took, milliseconds. None: all had arrived.
async fn one(hosts: &Hosts, parent: &Parent, end: Signal) -> Result<Option<f64>, RemoteError> {
    let called = hosts.clone_on(&[HOLDER, WAITS], parent, 2, Prepare::Hold);
    let waits = Stopped::stop(hosts.daemon(WAITS).pid())?;
    let filled = async {
        until_filled(hosts).await?;
        drop(waits);
        Ok::<_, RemoteError>(())
    };
    let (cloned, filled) = tokio::join!(called, filled);
    let cloned = cloned?;
    filled?;
    let pids = hosts.pids_there(WAITS, &cloned).await;
    let memory = pids.first().map(|pid| Memory::of(*pid)).transpose()?;
    // Its daemon would start another pager in place of one that has ended.
    let lender = Stopped::stop(hosts.daemon(LENDER).pid())?;
    let pager = Served::by(hosts.daemon(LENDER).pid())?.pid();
    let begun = Instant::now();
    signal(pid_of(Some(pager))?, end)?;
    let accessed = tokio::task::spawn_blocking(move || match memory {
        Some(memory) => Ok(!memory.faults(1)?.is_empty()),
        None => Ok::<_, RemoteError>(false),
    });
    let accessed = accessed.await.unwrap_or(Ok(false));
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    // It is left as it was, whatever happened.
    let again = if end == Signal::STOP { signal(pid_of(Some(pager))?, Signal::CONT) } else { Ok(()) };
    drop(lender);
    again?;
    let accessed = accessed?;
    let ready = hosts.ready(&[HOLDER, WAITS], &cloned).await?;
    hosts.remove(ready).await?;
    for host in [HOLDER, WAITS] {
        hosts.until_empty(host).await?;
    }
    Ok(accessed.then_some(ms))
}

/// Waits until the second host has all of the memory.
async fn until_filled(hosts: &Hosts) -> Result<(), RemoteError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(pager) = Served::by(hosts.daemon(HOLDER).pid())
            && !pager.layers()?.is_empty()
            && !pager.is_filling()
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(RemoteError::Slow { host: HOLDER });
        }
        tokio::time::sleep(LOOK).await;
    }
}
