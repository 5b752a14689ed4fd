//! Holding real processes with the kernel's own means.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::cgroup::TempCgroup;
use common::{patience, wait_for_end};
use guest_agent::agent::clone::kin;
use guest_agent::cgroup::{Cgroup, HookCgroup};
use guest_agent::sys::spawn::{Spawn, Stdio, spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open};
use std::ffi::CString;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A process of the cgroup that writes without end.
fn writer(cgroup: &Cgroup) -> (OwnedFd, std::io::PipeReader) {
    let (reader, pipe) = std::io::pipe().unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let argv = ["sh", "-c", "while :; do echo x; done"].map(|a| CString::new(a).unwrap());
    let stdio = Stdio::Fds([null.as_fd(), pipe.as_fd(), pipe.as_fd()]);
    let cgroup = Some(cgroup.directory());
    let (_, pidfd) = spawn(&Spawn {
        path: c"/bin/sh",
        argv: &argv,
        envp: &[],
        cwd: None,
        stdio,
        cgroup,
        is_protected: false,
    })
    .unwrap();
    (pidfd, reader)
}

fn wait_until(cgroup: &Cgroup, frozen: bool) {
    while cgroup.is_frozen().unwrap() != frozen {
        let mut fds = [PollFd::from_borrowed_fd(cgroup.events(), PollFlags::PRI)];
        assert_eq!(poll(&mut fds, Some(&patience())), Ok(1), "nothing changes");
    }
}

#[test]
fn processes_stand_still_and_go_on() {
    let own = TempCgroup::new("hold");
    let cgroup = Cgroup::make(&own.0.join("guest")).unwrap();
    // Nobody is held at once.
    cgroup.freeze(true).unwrap();
    assert!(cgroup.is_frozen().unwrap());
    cgroup.freeze(false).unwrap();

    let mut writers = [writer(&cgroup), writer(&cgroup)];
    for (_, reader) in &mut writers {
        reader.read_exact(&mut [0; 100]).unwrap();
    }
    cgroup.freeze(true).unwrap();
    wait_until(&cgroup, true);
    for (_, reader) in &mut writers {
        // What it had written, and no more.
        rustix::io::ioctl_fionbio(&*reader, true).unwrap();
        while reader.read(&mut [0; 100_000]).is_ok() {}
        let mut fds = [PollFd::new(&*reader, PollFlags::IN)];
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        assert_eq!(poll(&mut fds, Some(&moment)), Ok(0), "it writes while it is held");
    }
    // An agent that begins makes it anew and finds it there.
    Cgroup::make(&own.0.join("guest")).unwrap().freeze(false).unwrap();
    wait_until(&cgroup, false);
    for (pidfd, reader) in &mut writers {
        rustix::io::ioctl_fionbio(&*reader, false).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        rustix::process::pidfd_send_signal(&*pidfd, rustix::process::Signal::KILL).unwrap();
        wait_for_end(pidfd);
    }
}

/// A process of a cgroup that starts another, which leaves session and parent, and says its number.
fn orphan(directory: BorrowedFd<'_>) -> (Pid, Pid, OwnedFd) {
    let (reader, pipe) = std::io::pipe().unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let script = "(setsid sh -c 'echo $$; exec sleep 1000' &) ; exec sleep 1000";
    let argv = ["sh", "-c", script].map(|a| CString::new(a).unwrap());
    let envp = [CString::new("PATH=/usr/bin:/bin").unwrap()];
    let stdio = Stdio::Fds([null.as_fd(), pipe.as_fd(), null.as_fd()]);
    let (path, cwd, cgroup) = (c"/bin/sh", None, Some(directory));
    let what = Spawn { path, argv: &argv, envp: &envp, cwd, stdio, cgroup, is_protected: false };
    let (leader, pidfd) = spawn(&what).unwrap();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    (leader, Pid::from_raw(line.trim().parse().unwrap()).unwrap(), pidfd)
}

fn kill(process: Pid) {
    let pidfd = pidfd_open(process, PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    wait_for_end(&pidfd);
}

#[test]
fn what_a_hook_starts_is_told_from_others_wherever_it_goes() {
    let own = TempCgroup::new("kin");
    let cgroup = Cgroup::make(&own.0.join("guest")).unwrap();
    let mut hooks = HookCgroup::default();
    let made = |number: u32| own.0.join(format!("guest/hook.{number}")).exists();
    let (other, others, _other) = orphan(cgroup.directory());
    let (first, daemon, _first) = orphan(hooks.fresh(&cgroup).unwrap());
    assert!(kin::is_of(first, daemon, true), "by its cgroup");
    assert!(!kin::is_of(first, other, true) && !kin::is_of(first, others, true));
    kill(first);
    rustix::process::waitpid(Some(first), WaitOptions::empty()).unwrap();
    // What a hook left behind is not of the next one.
    let (second, seconds, _second) = orphan(hooks.fresh(&cgroup).unwrap());
    assert!(kin::is_of(second, seconds, true) && !kin::is_of(second, daemon, true));
    assert!(made(1) && made(2));
    [second, seconds, daemon].into_iter().for_each(kill);
    rustix::process::waitpid(Some(second), WaitOptions::empty()).unwrap();
    // A cgroup that all have left is used again, or removed.
    while made(1) {
        hooks.fresh(&cgroup).unwrap();
    }
    assert!(made(2) && !made(3));
    [other, others].into_iter().for_each(kill);
    rustix::process::waitpid(Some(other), WaitOptions::empty()).unwrap();
}

#[test]
fn a_machine_without_cgroup2_has_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Cgroup::make(&dir.path().join("guest")).is_err());
    assert!(Cgroup::make(std::path::Path::new("/no/such/guest")).is_err());
}
