//! Holding real processes with the kernel's own means.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::cgroup::TempCgroup;
use common::{patience, wait_for_end};
use guest_agent::cgroup::Cgroup;
use guest_agent::sys::spawn::{Spawn, Stdio, spawn};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// A process of the cgroup that writes without end.
fn writer(cgroup: &Cgroup) -> (OwnedFd, std::io::PipeReader) {
    let (reader, pipe) = std::io::pipe().unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let argv = ["sh", "-c", "while :; do echo x; done"].map(|a| CString::new(a).unwrap());
    let stdio = Stdio::Fds([null.as_fd(), pipe.as_fd(), pipe.as_fd()]);
    let cgroup = Some(cgroup.directory());
    let (_, pidfd) =
        spawn(&Spawn { path: c"/bin/sh", argv: &argv, envp: &[], cwd: None, stdio, cgroup }).unwrap();
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

#[test]
fn a_machine_without_cgroup2_has_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Cgroup::make(&dir.path().join("guest")).is_err());
    assert!(Cgroup::make(std::path::Path::new("/no/such/guest")).is_err());
}
