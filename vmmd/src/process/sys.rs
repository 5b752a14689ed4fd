//! Between fork and exec: the descriptors that a child keeps, and its process group. Later, its
//! scheduling policy.
#![allow(unsafe_code, reason = "pre_exec is unsafe by signature, close_range has no safe wrapper")]

use patina_control::best_effort;
use rustix::{io::Errno, process::Pid};
use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// How readily the kernel's OOM killer takes a vmm (`/proc/PID/oom_score_adj`). A child has its
/// parent's: vmmd's own is not for VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispensable {
    /// As any program: a master.
    No,
    /// Before others: a clone can be made again.
    Yes,
    /// As vmmd itself: many VMs depend on it.
    AsVmmd,
}

impl Dispensable {
    /// None: it stays as it is.
    fn score(self) -> Option<&'static [u8]> {
        match self {
            Self::No => Some(b"0"),
            Self::Yes => Some(b"500"),
            Self::AsVmmd => None,
        }
    }
}

/// Makes `command` start its child in a process group of its own, with that nice value and so
/// dispensable, with `kept` open under the same numbers and every other descriptor above 2 closed.
/// The caller keeps `kept` open until it has spawned.
pub fn keep_only(command: &mut Command, kept: &[BorrowedFd<'_>], (nice, dispensable): (i32, Dispensable)) {
    let score = dispensable.score();
    let kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    let prepare = move || {
        // A process group of its own: what ends vmmd's, or its terminal, leaves the VM alone. Not a
        // session of its own: where the kernel shares the CPUs out among sessions
        // (CONFIG_SCHED_AUTOGROUP), nice values would count for nothing.
        rustix::process::setpgid(None, None)?;
        best_effort(
            rustix::process::setpriority_process(None, nice),
            "no reason not to run: only slower, or faster, than it should",
        );
        best_effort(
            score.map_or(Ok(()), set_oom_score),
            "neither a reason. It never takes rights to be taken sooner than vmmd is",
        );
        close_on_exec_from(3)?;
        kept.iter().try_for_each(|fd| inherit(*fd))
    };
    // SAFETY: the closure runs in the forked child. It makes only async-signal-safe system calls,
    // and neither allocates nor takes a lock: `kept` was collected before the fork.
    unsafe { command.pre_exec(prepare) };
}

/// Gives all threads of a process SCHED_IDLE, or SCHED_OTHER, and leaves them their nice values and
/// the length of their turns.
///
/// # Errors
/// No rights, or no such process.
pub(super) fn set_idle_policy(leader: Pid, is_idle: bool) -> rustix::io::Result<()> {
    let policy = if is_idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", leader.as_raw_nonzero()));
    let tasks = tasks.map_err(|_| Errno::SRCH)?;
    for task in tasks.flatten() {
        let Some(task) = task.file_name().to_str().and_then(|name| name.parse::<libc::pid_t>().ok()) else {
            continue;
        };
        // SAFETY: zeros are a valid value of this struct of integers.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::sched_attr>() as libc::c_uint;
        // SAFETY: the kernel writes at most `size` bytes to a live struct of that size.
        let read = unsafe { libc::syscall(libc::SYS_sched_getattr, task, &raw mut attributes, size, 0) };
        // A thread that has ended since needs none.
        if read == 0 && attributes.sched_policy != policy as u32 {
            attributes.sched_policy = policy as u32;
            // SAFETY: the kernel reads a live struct whose size is its first field.
            unsafe { libc::syscall(libc::SYS_sched_setattr, task, &raw const attributes, 0) };
        }
    }
    Ok(())
}

/// Makes a process that runs so dispensable.
///
/// # Errors
/// No rights, or no such process.
pub(super) fn set_dispensable(pid: u32, dispensable: Dispensable) -> io::Result<()> {
    let score = dispensable.score();
    score.map_or(Ok(()), |score| std::fs::write(format!("/proc/{pid}/oom_score_adj"), score))
}

fn set_oom_score(score: &[u8]) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score).map(drop)
}

fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC only sets flags; no descriptor that someone holds is closed under
    // them.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an int and changes a flag of the child's own table.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn a_child_has_what_it_was_given_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name| File::create(folder.path().join(name)).unwrap();
        let (given, withheld) = (make("given"), make("withheld"));
        // Even a descriptor that was left inheritable does not get through.
        rustix::io::fcntl_setfd(&withheld, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new("sh");
        let script = format!(
            "readlink /proc/$$/fd/*; readlink /proc/$$/fd/{}; cut -d' ' -f19 /proc/$$/stat; cut -d' ' -f5 /proc/$$/stat; echo $$; cat /proc/$$/oom_score_adj",
            given.as_raw_fd()
        );
        command.args(["-c", &script]);
        let nice = (rustix::process::getpriority_process(None).unwrap() + 10).min(19);
        keep_only(&mut command, &[given.as_fd()], (nice, Dispensable::Yes));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (files, rest) = lines.split_at(lines.len() - 4);
        assert!(files.last().unwrap().ends_with("/given"), "under its own number: {text}");
        assert!(!files.iter().any(|file| file.ends_with("/withheld")), "{text}");
        assert_eq!(rest[0], nice.to_string(), "it yields to others");
        assert_eq!(rest[1], rest[2], "it leads its own process group");
        assert_eq!(rest[3], "500", "it goes first when memory is short");
    }
}
