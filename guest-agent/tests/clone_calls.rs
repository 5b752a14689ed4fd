//! What a clone's agent asks of the kernel between its wait for the host and its answer to the
//! program, counted: README.md has the list with what a real machine adds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::trace::trace;
use common::{Host, Program, identity, said_ready};
use guest_agent::agent::{Agent, Settings};
use guest_agent::machine::{ApplyError, Machine};
use patina_abi::link::{FromAgent, FromHost, Identity};
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// Names the directory of the sockets for the agent's process.
const DIR: &str = "PATINA_TEST_DIR";

/// A machine that asks nothing of the kernel but a connection.
struct Quiet {
    dir: PathBuf,
    never: UnixStream,
}

impl Machine for Quiet {
    fn connect(&mut self) -> io::Result<OwnedFd> {
        let stream = UnixStream::connect(self.dir.join("host"))?;
        stream.set_nonblocking(true)?;
        Ok(stream.into())
    }
    fn prepare_to_connect(&mut self) {}
    fn apply(&mut self, _: &Identity, _: Option<&Identity>) -> Vec<ApplyError> {
        Vec::new()
    }
    fn settle(&mut self, _: bool) -> Vec<ApplyError> {
        Vec::new()
    }
    fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn hook_cgroup(&mut self) -> Option<BorrowedFd<'_>> {
        panic!("a cgroup for a hook, and there is no hook");
    }
    fn hold(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn stopping(&self) -> Option<BorrowedFd<'_>> {
        Some(self.never.as_fd())
    }
    fn all_held(&mut self) -> io::Result<bool> {
        Ok(true)
    }
    fn release(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn say(&mut self, _: &str) {}
}

#[test]
#[ignore = "is the agent's process of the other test"]
fn agent() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let listen = |name| {
        let listener = UnixListener::bind(dir.join(name)).unwrap();
        listener.set_nonblocking(true).unwrap();
        OwnedFd::from(listener)
    };
    let (local, exec) = (listen("local"), listen("exec"));
    let settings = Settings {
        identity: dir.join("identity"),
        hosts: dir.join("hosts"),
        pre_clone: dir.join("pre-clone"),
        post_clone: dir.join("post-clone"),
        ..Settings::of_a_guest()
    };
    let (never, _other) = UnixStream::pair().unwrap();
    let Err(error) = Agent::new(local, exec, Quiet { dir, never }, settings).run();
    panic!("{error}");
}

/// Waits until the agent waits.
fn settle(calls: &Mutex<Vec<(Pid, u64)>>) -> usize {
    loop {
        let calls = calls.lock().unwrap();
        if calls.last().is_some_and(|(_, call)| *call == libc::SYS_ppoll as u64) {
            return calls.len();
        }
        drop(calls);
        std::thread::yield_now();
    }
}

/// Makes the agent a clone; the calls that this takes.
fn clone_it(dir: &Path, host: &UnixListener, calls: &Mutex<Vec<(Pid, u64)>>) -> Vec<(Pid, u64)> {
    let mut link = Host::new(host.accept().unwrap().0);
    assert!(matches!(link.next(), FromAgent::Hello { .. }));
    link.say(&FromHost::Identity(identity(0)));
    assert_eq!(link.next(), said_ready(0));
    let mut program = Program::new(&dir.join("local"));
    program.send("{\"verb\":\"clone\",\"args\":{\"count\":1}}\n");
    link.clone_request();
    let before = settle(calls);
    link.say(&FromHost::Identity(identity(7)));
    assert_eq!(link.next(), said_ready(7));
    assert!(program.line().contains("\"vmid\":7"));
    settle(calls);
    // Now, as the closing of its connections is the next thing that it hears of.
    calls.lock().unwrap().split_off(before)
}

#[test]
fn a_clone_is_ready_after_few_system_calls() {
    let dir = tempfile::tempdir().unwrap();
    let host = UnixListener::bind(dir.path().join("host")).unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (path, seen) = (dir.path().to_owned(), Arc::clone(&calls));
    let player = std::thread::spawn(move || {
        let mut calls = clone_it(&path, &host, &seen);
        // The last is the agent's wait for what comes next.
        let (agent, _) = calls.pop().unwrap();
        // The harness has a thread of its own, and a debug build of the standard library looks at a
        // descriptor before it closes it.
        calls.retain(|(thread, call)| *thread == agent && *call != libc::SYS_fcntl as u64);
        calls.into_iter().map(|(_, call)| call).collect::<Vec<u64>>()
    });
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "agent", "--ignored", "--nocapture"]).env(DIR, dir.path());
    let agent = Arc::new(Mutex::new(None));
    let process = Arc::clone(&agent);
    let tracer = std::thread::spawn(move || {
        trace(command.stdout(Stdio::null()), |thread, call| {
            process.lock().unwrap().get_or_insert(thread);
            calls.lock().unwrap().push((thread, call));
        });
    });
    let got = player.join();
    let agent = agent.lock().unwrap().expect("it ran");
    kill_process(agent, Signal::KILL).unwrap();
    tracer.join().unwrap();
    let got = got.unwrap();
    let number = |call: libc::c_long| call as u64;
    // It waits for its host already.
    let ready = [libc::SYS_read, libc::SYS_pwrite64, libc::SYS_sendto];
    let hosts = [libc::SYS_open, libc::SYS_read, libc::SYS_pwrite64, libc::SYS_close];
    // The hook that is not there; the program's answer.
    let rest = [libc::SYS_access, libc::SYS_sendto];
    let wanted: Vec<u64> = [&ready[..], &hosts, &rest].concat().into_iter().map(number).collect();
    assert_eq!(got, wanted);
}
