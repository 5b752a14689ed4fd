//! `vmm` processes: starting, recognising and calling them.
//!
//! - [`spawn`]: starts one with exactly the descriptors that it needs; [`sys`]: the part between
//!   fork and exec; [`kvm_module`]: the kind of KVM.
//! - [`Process`]: a running one, by pidfd, so that a reused pid is never mistaken for it.
//! - [`control_client`]: its control socket; [`rights`]: lines with descriptors on it;
//!   [`generation`]: the result of a freeze; [`filling`]: layers of it that the pager
//!   still fills; [`free_pages`]: what of it is free.
//! - [`host_check`]: what a vmm finds out about the kernel when `vmmd` starts.
//! - [`stray`]: processes whose record is lost; [`urgency`]: priorities; [`usage`]: resources in
//!   use; [`oom`]: whether the kernel ended it for lack of memory.

pub mod control_client;
mod control_error;
pub mod filling;
pub mod free_pages;
pub mod generation;
pub mod host_check;
pub mod kvm_module;
pub mod oom;
pub mod rights;
pub mod spawn;
pub mod stray;
pub mod sys;
pub mod turns;
pub mod urgency;
pub mod usage;

use crate::{
    plan::lifecycle::Exit,
    process_id::{ProcessId, boot},
};
use patina_daemon::chain;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::io::unix::AsyncFd;
use urgency::Urgency;

/// Why a process cannot be watched or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process's entry in `/proc` cannot be read.
    #[error("read /proc/{pid}/stat")]
    Stat {
        /// The process's pid.
        pid: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A pidfd of the process cannot be opened.
    #[error("open pidfd of process {pid}")]
    Pidfd {
        /// The process's pid.
        pid: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl ProcessError {
    /// There is no such process; a number that is a thread's now was another's before.
    fn is_gone(&self) -> bool {
        let (Self::Stat { source, .. } | Self::Pidfd { source, .. }) = self;
        matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
    }
}

/// A `vmm` process.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    // None when an earlier vmmd was its parent.
    child: Option<Child>,
    // Whether this vmmd has killed it; shared by all that watch it.
    is_killed: Arc<AtomicBool>,
}

impl Process {
    /// Takes a child over. On an error it is killed.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn of_child(mut child: Child) -> Result<Self, ProcessError> {
        let pid = child.id();
        match watch(pid).and_then(|pidfd| Ok((pidfd, identify(pid)?))) {
            Ok((pidfd, id)) => Ok(Self { id, pidfd, child: Some(child), is_killed: Arc::default() }),
            Err(error) => {
                if let Err(source) = child.kill().and_then(|()| child.wait()) {
                    tracing::error!(pid, error = %chain(&source), "kill a vmm that cannot be watched");
                }
                Err(error)
            }
        }
    }

    /// Finds the very process again; None when it is gone for certain.
    ///
    /// # Errors
    /// It may run or be gone: there are no descriptors or no memory to look at it.
    pub fn find(id: &ProcessId) -> Result<Option<Self>, ProcessError> {
        if id.boot != boot() && !boot().is_empty() {
            return Ok(None);
        }
        // The pidfd comes first: from then on the number cannot pass to another process unnoticed.
        let pidfd = match watch(id.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        };
        let now = match identify(id.pid) {
            Ok(now) => now,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        };
        // A dead process keeps its entry until its parent has reaped it.
        let failed = |source| ProcessError::Pidfd { pid: id.pid, source };
        let dead = has_exited(pidfd.get_ref()).map_err(failed)?;
        Ok((now == *id && !dead).then(|| Self { id: now, pidfd, child: None, is_killed: Arc::default() }))
    }

    /// Which process it is.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Waits until it is gone. May be dropped and called again.
    ///
    /// # Errors
    /// The reactor does not work.
    pub async fn gone(&self) -> io::Result<()> {
        self.pidfd.readable().await?.retain_ready();
        Ok(())
    }

    /// SIGKILL. That it is gone already is no error.
    ///
    /// # Errors
    /// No rights.
    pub fn kill(&self) -> io::Result<()> {
        // A process that was gone already was not killed by this call.
        if !has_exited(self.pidfd.get_ref()).unwrap_or(false) {
            self.is_killed.store(true, Ordering::Relaxed);
        }
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// One more to wait on, for somebody else; [`Self::exit`] stays with this one.
    ///
    /// # Errors
    /// There is no room for more descriptors.
    pub fn watcher(&self) -> io::Result<Self> {
        let pidfd = rustix::io::fcntl_dupfd_cloexec(self.pidfd.get_ref(), 0)?;
        Ok(Self {
            id: self.id.clone(),
            pidfd: crate::sys::readable(pidfd)?,
            child: None,
            is_killed: Arc::clone(&self.is_killed),
        })
    }

    /// Kills it and waits until nothing of it is left.
    pub async fn end(&mut self) {
        if let Err(error) = self.kill() {
            tracing::error!(pid = self.id.pid, error = %chain(&error), "kill a vmm process");
            return;
        }
        match self.gone().await {
            Ok(()) => drop(self.exit()),
            Err(error) => tracing::error!(pid = self.id.pid, error = %chain(&error), "watch a vmm process"),
        }
    }

    /// Makes it, with all the threads that it has now, so urgent.
    pub fn set_urgency(&self, urgency: Urgency) {
        urgency.give_if_possible(self.id.pid);
    }

    /// Makes it as dispensable as a master is.
    pub fn is_a_master(&self) {
        if let Err(error) = sys::set_dispensable(self.id.pid, sys::Dispensable::No) {
            tracing::debug!(pid = self.id.pid, error = %chain(&error), "tell the OOM killer of a master");
        }
    }

    /// Whether it is gone by now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        has_exited(self.pidfd.get_ref()).unwrap_or(false)
    }

    /// How it went; only after [`Self::gone`].
    pub fn exit(&mut self) -> Exit {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let exit = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => Exit::Code(code),
            Some((None, Some(signal))) => Exit::Signal(signal),
            Some((None, None)) | None => Exit::Unknown,
        };
        match exit {
            Exit::Signal(libc::SIGKILL) | Exit::Unknown if self.is_killed.load(Ordering::Relaxed) => {
                Exit::ByVmmd
            }
            Exit::Signal(libc::SIGKILL) | Exit::Unknown
                if oom::has_killed(self.id.pid, self.id.started_us()) =>
            {
                Exit::OutOfMemory
            }
            exit => exit,
        }
    }
}

fn watch(pid: u32) -> Result<AsyncFd<OwnedFd>, ProcessError> {
    let failed = |source| ProcessError::Pidfd { pid, source };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
    crate::sys::readable(pidfd).map_err(failed)
}

fn has_exited(pidfd: &OwnedFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now))? > 0)
}

fn identify(pid: u32) -> Result<ProcessId, ProcessError> {
    let failed = |source| ProcessError::Stat { pid, source };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(failed)?;
    let start_ticks = start_ticks(&stat).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    Ok(ProcessId { pid, start_ticks, boot: boot().to_owned() })
}

/// Field 22. The second field is the program's name in brackets and may hold anything, brackets
/// included.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper() -> Process {
        Process::of_child(Command::new("sleep").arg("1000").spawn().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_its_end_seen_by_all() {
        let mut process = sleeper();
        let (found, watcher) = (Process::find(process.id()).unwrap().unwrap(), process.watcher().unwrap());
        found.kill().unwrap();
        process.gone().await.unwrap();
        process.gone().await.unwrap();
        found.gone().await.unwrap();
        assert!(Process::find(process.id()).unwrap().is_none(), "dead, though nobody has waited for it");
        watcher.gone().await.unwrap();
        assert_eq!(process.exit(), Exit::Signal(9));
        assert!(Process::find(process.id()).unwrap().is_none());
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn a_number_used_again_is_not_the_process() {
        let process = sleeper();
        let id = process.id().clone();
        assert!(
            Process::find(&ProcessId { start_ticks: id.start_ticks + 1, ..id.clone() }).unwrap().is_none()
        );
        assert!(Process::find(&ProcessId { boot: "another".into(), ..id.clone() }).unwrap().is_none());
        assert!(Process::find(&ProcessId { pid: i32::MAX.cast_unsigned(), ..id }).unwrap().is_none());
        process.kill().unwrap();
        process.gone().await.unwrap();
    }

    #[tokio::test]
    async fn without_descriptors_a_process_is_neither_found_nor_gone() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let mut process = sleeper();
        let before = getrlimit(Resource::Nofile);
        // nextest runs each test in a process of its own: nobody else is short of descriptors.
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let found = Process::find(process.id());
        setrlimit(Resource::Nofile, before).unwrap();
        let error = found.unwrap_err();
        assert!(chain(&error).contains("Too many open files"), "{error}");
        assert!(Process::find(process.id()).unwrap().is_some());
        process.end().await;
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 18446744073709551615";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("7 (a"), None);
    }
}
