//! The states of a VM and their transitions.
//!
//! ```text
//!            vmm reports ready        process has ended
//!  booting ─────────────────▶ ready ─────────────────▶ ended
//!     └─────────────────── process has ended ────────────▲
//! ```
//!
//! A VM has ended when its process has, not when the vmm reports it: when a caller sees `ended`, no
//! part of the VM runs any more. `ended` is final and is reached once.

use patina_control::{
    end::{End, EndKind},
    messages::State,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a VM stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The process runs, the agent has not answered.
    Booting,
    /// The agent has its identity.
    Ready,
    /// The process is gone.
    Ended(Ended),
}

impl Phase {
    /// One word, as operators and guests read it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Ended(_) => "ended",
        }
    }
}

/// How and when a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How the VM ended.
    #[serde(flatten)]
    pub end: End,
    /// When it ended, milliseconds since 1970.
    pub unix_ms: u64,
}

/// How the vmm process went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With an exit code.
    Code(i32),
    /// By a signal, which `vmmd` did not send.
    Signal(i32),
    /// By the kernel's OOM killer.
    OutOfMemory,
    /// By SIGKILL of `vmmd`.
    ByVmmd,
    /// Another process was its parent: nobody told.
    Unknown,
}

impl Exit {
    /// Whether others ended it, so that nothing is known to be wrong with the vmm itself.
    #[must_use]
    pub fn is_kill(self) -> bool {
        matches!(self, Self::Signal(libc::SIGKILL | libc::SIGTERM) | Self::OutOfMemory | Self::ByVmmd)
    }
}

/// What follows "the vmm".
impl fmt::Display for Exit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(to, "exited with code {code}"),
            Self::Signal(signal) => match SIGNALS.iter().find(|(number, ..)| *number == signal) {
                Some((_, name, meaning)) => write!(to, "was killed by {name} ({meaning})"),
                None => write!(to, "was killed by signal {signal}"),
            },
            Self::OutOfMemory => {
                to.write_str("was killed by the kernel's OOM killer: the host, or the cgroup that it runs in, has no memory left")
            }
            Self::ByVmmd => to.write_str("was killed by vmmd"),
            Self::Unknown => to.write_str("has gone, and was not this vmmd's own process, so that its exit code is not known"),
        }
    }
}

/// What ends a vmm, by number, name, and what it means.
const SIGNALS: [(i32, &str, &str); 10] = [
    (libc::SIGSYS, "SIGSYS", "a system call that its jail does not allow"),
    (libc::SIGABRT, "SIGABRT", "it found a fault of its own"),
    (libc::SIGSEGV, "SIGSEGV", "it used memory that it does not have"),
    (libc::SIGBUS, "SIGBUS", "the host has no memory left for it, or its memory is broken"),
    (libc::SIGILL, "SIGILL", "an instruction that this CPU does not have"),
    (libc::SIGFPE, "SIGFPE", "an arithmetic fault"),
    (libc::SIGTRAP, "SIGTRAP", "a trap"),
    (libc::SIGXCPU, "SIGXCPU", "a limit on CPU time"),
    (libc::SIGTERM, "SIGTERM", "sent by somebody; vmmd did not"),
    (
        libc::SIGKILL,
        "SIGKILL",
        "sent by somebody, or by the kernel's OOM killer; vmmd did not: the host's kernel log may tell",
    ),
];

/// What moves a VM.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The vmm said where the VM stands.
    Said(State),
    /// An operator wants it ended.
    KillAsked {
        /// By whom and why.
        reason: String,
    },
    /// The guest has left its result and wants to end.
    Joined {
        /// What it left, in words.
        reason: String,
    },
    /// Its memory cannot be served any longer, and so `vmmd` kills it.
    Lost(End),
    /// The process is gone.
    Gone {
        /// What the vmm left in its end file.
        left: Option<End>,
        /// How it went.
        exit: Exit,
        /// The last lines of the process's own log.
        log_tail: String,
        /// Now, milliseconds since 1970.
        unix_ms: u64,
    },
}

/// A VM's state with what is remembered until its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifecycle {
    /// Where it stands.
    pub phase: Phase,
    /// From the start of the vmm process, or in a clone from the arrival of the generation, until
    /// the agent was ready, microseconds.
    pub ready_after_us: Option<u64>,
    said_end: Option<End>,
    kill_reason: Option<String>,
    joined: Option<String>,
    lost: Option<End>,
}

impl Lifecycle {
    /// A VM whose process has just been started or found.
    #[must_use]
    pub fn running(ready_after_us: Option<u64>) -> Self {
        let phase = if ready_after_us.is_some() { Phase::Ready } else { Phase::Booting };
        Self { phase, ready_after_us, said_end: None, kill_reason: None, joined: None, lost: None }
    }

    /// Takes an event; true when the phase changed.
    pub fn on(&mut self, event: Event) -> bool {
        if matches!(self.phase, Phase::Ended(_)) {
            return false;
        }
        match event {
            Event::Said(State::Warm | State::Booting) => false,
            Event::Said(State::Ready { after_us }) => {
                let changed = self.phase == Phase::Booting;
                self.ready_after_us.get_or_insert(after_us);
                self.phase = Phase::Ready;
                changed
            }
            Event::Said(State::Ended(end)) => {
                self.said_end.get_or_insert(end);
                false
            }
            Event::KillAsked { reason } => {
                self.kill_reason.get_or_insert(reason);
                false
            }
            Event::Joined { reason } => {
                self.joined.get_or_insert(reason);
                false
            }
            Event::Lost(end) => {
                self.lost.get_or_insert(end);
                false
            }
            Event::Gone { left, exit, log_tail, unix_ms } => {
                let end = self.end_of(left, exit, &log_tail);
                self.phase = Phase::Ended(Ended { end, unix_ms });
                true
            }
        }
    }

    /// The end's account: what the guest said first, then that its memory is lost, then the vmm's
    /// own word, then the operator's, then what can be seen from outside.
    fn end_of(&mut self, left: Option<End>, exit: Exit, log_tail: &str) -> End {
        // However the process went after that: the VM had done what it was for.
        if let Some(reason) = self.joined.take() {
            return End { kind: EndKind::Joined, reason };
        }
        // All that follows from lost memory has that as its cause: what the vmm then says, and
        // SIGBUS. One that has gone by itself before it was killed had its own reason, unless it
        // needed a page that is lost.
        if let Some(end) = self.lost.take_if(|end| end.kind == EndKind::DataLoss || exit == Exit::ByVmmd) {
            return end;
        }
        // Only vmmd may say that a process died; a vmm that claims it is heard as an error of its
        // own.
        let own_word = left.or_else(|| self.said_end.take()).map(|end| match end.kind {
            EndKind::VmmDied => End { kind: EndKind::VmmError, ..end },
            _ => end,
        });
        if let Some(end) = own_word {
            return end;
        }
        if let Some(reason) = self.kill_reason.take() {
            return End { kind: EndKind::Killed, reason };
        }
        let how = format!("the vmm {exit}");
        let tail = log_tail.trim();
        let reason = if tail.is_empty() { how } else { format!("{how}; its last lines: {tail}") };
        End { kind: EndKind::VmmDied, reason }
    }
}

#[cfg(test)]
#[path = "lifecycle_test.rs"]
mod tests;
