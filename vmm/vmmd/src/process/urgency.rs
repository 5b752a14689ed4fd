//! Who runs first where there are fewer processors than threads that want one (nice values, all relative to the one that
//! `vmmd` was started with).
//!
//! A clone is asked for by somebody who waits, and its first steps are short; the guests that run already take whatever
//! they get. So `vmmd`, and a vmm from when it is warm until its VM runs, go before the guests, and what is made ahead,
//! which nobody waits for, after them.

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
    /// As guests are.
    Normal,
    /// Nobody waits for it.
    Background,
}

impl Urgency {
    /// As a nice value.
    #[must_use]
    pub fn nice(self) -> i32 {
        let base = BASE.get().copied().or_else(|| getpriority_process(None).ok()).unwrap_or(0);
        let by = match self {
            Self::Urgent => -10,
            Self::Normal => 0,
            Self::Background => 10,
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

    /// For all threads that a process which leads a group of its own has now.
    ///
    /// # Errors
    /// No rights, or no such process.
    pub fn give(self, leader: u32) -> io::Result<()> {
        let group = i32::try_from(leader).ok().and_then(Pid::from_raw);
        // Without a group it would be this program's own.
        setpriority_pgrp(Some(group.ok_or(io::Errno::SRCH)?), self.nice())
    }
}
