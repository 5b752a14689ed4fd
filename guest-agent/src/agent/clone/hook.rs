//! A running hook: a program with a time limit, whose output is kept.

use super::kin;
use crate::agent::exec::program::{Program, StartError};
use crate::sys::input::append;
use patina_abi::exec::{Exit, Start};
use rustix::event::PollFlags;
use rustix::fs::Access;
use rustix::process::{Pid, Signal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How much of a hook's output is kept, bytes: the end of it, where what went wrong is said.
pub const OUTPUT_MAX_BYTES: usize = 4096;
/// How much is still read after the hook itself has ended; somebody in the background may write
/// without end.
const DRAIN_MAX_BYTES: usize = 64 * 1024;

/// Why a hook counts as failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The hook could not be run.
    #[error("{name}")]
    Start {
        /// The hook's file name.
        name: String,
        /// The error of starting its program.
        #[source]
        source: StartError,
    },
    /// The hook ended otherwise than with exit code 0.
    #[error("{name}: {how}{output}")]
    Failed {
        /// The hook's file name.
        name: String,
        /// The hook's exit code or signal, in words.
        how: String,
        /// The end of the hook's output.
        output: String,
    },
    /// The hook did not end in time and was killed.
    #[error("{name}: killed, because it did not end within {} s{output}", limit.as_secs())]
    TooLong {
        /// The hook's file name.
        name: String,
        /// How long the hook may run.
        limit: Duration,
        /// The end of the hook's output.
        output: String,
    },
}

/// A hook that runs.
#[derive(Debug)]
pub struct Running {
    name: String,
    program: Program,
    /// The end of what it wrote.
    output: Vec<u8>,
    until: Instant,
    limit: Duration,
    killed: bool,
    in_own_cgroup: bool,
}

/// Which part of a hook to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The end of its process.
    Process,
    /// Something to read from its output or error output, by its number.
    Output(usize),
}

impl Running {
    /// Whether there is a hook at `path`: a file that may be executed.
    #[must_use]
    pub fn can_start(path: &Path) -> bool {
        rustix::fs::access(path, Access::EXEC_OK).is_ok()
    }

    /// Starts the hook at `path` in a cgroup that is not frozen, and which nobody else is in if
    /// `in_own_cgroup` says so.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(
        path: &Path,
        env: Vec<String>,
        limit: Duration,
        cgroup: Option<BorrowedFd<'_>>,
        in_own_cgroup: bool,
    ) -> Result<Self, HookError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let argv = vec![path.to_string_lossy().into_owned()];
        let start = Start { argv, env, cwd: "/".to_owned(), tty: None };
        match Program::start(&start, cgroup) {
            Ok(mut program) => {
                program.stdin = None;
                let until = Instant::now() + limit;
                let output = Vec::new();
                Ok(Self { name, program, output, until, limit, killed: false, in_own_cgroup })
            }
            Err(source) => Err(HookError::Start { name, source }),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a process is the hook, or was started by it.
    #[must_use]
    pub fn has(&self, process: Pid) -> bool {
        kin::is_of(self.program.pid(), process, self.in_own_cgroup)
    }

    /// The outputs that somebody has open still, once it has ended.
    #[must_use]
    pub fn into_outputs(mut self) -> [Option<OwnedFd>; 2] {
        self.program.take_outputs()
    }

    /// When [`Self::expire`] wants to be called.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        Some(self.until).filter(|_| !self.killed)
    }

    /// Its time is over: kills it and all that is in its process group. Its end follows.
    pub fn expire(&mut self) {
        if !self.killed {
            self.killed = true;
            self.program.signal(Signal::KILL);
        }
    }

    /// What to wait for.
    pub fn watch<'a>(&'a self, mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags)) {
        add(Part::Process, self.program.pidfd(), PollFlags::IN);
        for (index, output) in self.program.outputs.iter().enumerate() {
            if let Some(output) = output {
                add(Part::Output(index), output.as_fd(), PollFlags::IN);
            }
        }
    }

    /// Goes on with a part that is ready; how it ended, when it has.
    pub fn ready(&mut self, part: Part) -> Option<Result<(), HookError>> {
        match part {
            Part::Output(index) => {
                self.read(index);
                None
            }
            Part::Process => self.program.reap().map(|exit| self.ended(&exit)),
        }
    }

    /// Reads once. Whether the output goes on.
    fn read(&mut self, index: usize) -> bool {
        let Some(slot) = self.program.outputs.get_mut(index) else { return false };
        match slot.as_ref().map(|output| append(output, &mut self.output, OUTPUT_MAX_BYTES)) {
            Some(Ok(count)) if count > 0 => {
                let excess = self.output.len().saturating_sub(OUTPUT_MAX_BYTES);
                self.output.drain(..excess);
                true
            }
            Some(Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) | None => false,
            Some(_) => {
                *slot = None;
                false
            }
        }
    }

    fn ended(&mut self, exit: &Exit) -> Result<(), HookError> {
        for index in 0..self.program.outputs.len() {
            let mut reads = DRAIN_MAX_BYTES / OUTPUT_MAX_BYTES;
            while reads > 0 && self.read(index) {
                reads -= 1;
            }
        }
        if exit.code == Some(0) && !self.killed {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.output);
        let output = match text.trim_end() {
            "" => String::new(),
            text => format!(": {text}"),
        };
        let name = self.name.clone();
        if self.killed {
            return Err(HookError::TooLong { name, limit: self.limit, output });
        }
        let how = match (exit.code, exit.signal, &exit.error) {
            (Some(code), ..) => format!("exit code {code}"),
            (_, Some(signal), _) => format!("signal {signal}"),
            (.., error) => error.clone().unwrap_or_default(),
        };
        Err(HookError::Failed { name, how, output })
    }
}
