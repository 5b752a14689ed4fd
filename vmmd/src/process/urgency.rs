//! Priorities for the case that more threads want to run than there are CPUs (nice values, relative
//! to the one that `vmmd` was started with).
//!
//! A caller waits for a clone, and the clone's first steps are short; running guests use all the
//! time that they get. So `vmmd`, and a vmm from when it is warm until its VM runs, go before the
//! guests. VMs that are prepared in advance, for which no caller waits, come after them.
//! [`super::turns`] orders the clones that run and are not ready yet.

use super::sys::set_idle_policy;
use patina_daemon::chain;
use rustix::{
    io,
    process::{Pid, getpriority_process, setpriority_pgrp, setpriority_process},
};
use std::sync::OnceLock;

/// What `vmmd` was started with; known once it has changed its own.
static BASE: OnceLock<i32> = OnceLock::new();

/// How urgent a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for it, and not for long.
    Urgent,
    /// Before guests that are ready, but not before a clone that starts.
    First,
    /// As guests are.
    Normal,
    /// Nobody waits for it.
    Background,
    /// Runs where nobody else wants to (SCHED_IDLE).
    Last,
}

impl Urgency {
    /// As a nice value.
    #[must_use]
    pub fn nice(self) -> i32 {
        let base = BASE.get().copied().or_else(|| getpriority_process(None).ok()).unwrap_or(0);
        let by = match self {
            Self::Urgent => -10,
            Self::First => -5,
            Self::Normal => 0,
            Self::Background => 10,
            Self::Last => 19,
        };
        (base + by).clamp(-20, 19)
    }

    /// For this thread, and those that it starts: before there are others.
    ///
    /// # Errors
    /// No rights.
    pub fn take(self) -> io::Result<()> {
        let nice = self.nice();
        BASE.get_or_init(|| getpriority_process(None).unwrap_or(0));
        setpriority_process(None, nice)
    }

    /// The same as [`Self::give`] where a failure is no news: the process has just ended, or there
    /// are no rights. Then all are alike, and many clones at once are slower.
    pub fn give_if_possible(self, leader: u32) {
        if let Err(error) = self.give(leader) {
            tracing::debug!(pid = leader, urgency = ?self, error = %chain(&error), "set the priority of a vmm");
        }
    }

    /// For all threads that a process which leads a group of its own has now.
    ///
    /// # Errors
    /// No rights, or no such process.
    pub fn give(self, leader: u32) -> io::Result<()> {
        let group = i32::try_from(leader).ok().and_then(Pid::from_raw);
        // Without a group it would be this program's own.
        let group = group.ok_or(io::Errno::SRCH)?;
        setpriority_pgrp(Some(group), self.nice())?;
        set_idle_policy(group, self == Self::Last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::CommandExt, process::Command};

    /// Policy and nice value, from `/proc/PID/stat`; its second field may have spaces.
    fn scheduling(pid: u32) -> (u32, i32) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[38].parse().unwrap(), fields[16].parse().unwrap())
    }

    #[test]
    #[ignore = "needs root"]
    fn whoever_is_last_is_so_until_something_else_is_said() {
        const OTHER: u32 = libc::SCHED_OTHER as u32;
        const IDLE: u32 = libc::SCHED_IDLE as u32;
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let pid = child.id();
        let base = getpriority_process(None).unwrap();
        let seen = [Urgency::First, Urgency::Last, Urgency::Last, Urgency::Normal].map(|urgency| {
            urgency.give(pid).unwrap();
            scheduling(pid)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen[0], (OTHER, base - 5));
        assert_eq!([seen[1].0, seen[2].0], [IDLE, IDLE]);
        assert_eq!(seen[3], (OTHER, base));
        assert!(Urgency::Last.give(pid).is_err(), "it is gone");
    }
}
