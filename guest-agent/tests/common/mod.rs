//! The real agent on a thread, over Unix sockets instead of vsock, and its host played by the test.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stderr, reason = "a test")]

pub mod cgroup;
pub mod gc;
pub mod trace;

use guest_agent::agent::{Agent, Settings};
use guest_agent::machine::{ApplyError, Machine};
use patina_abi::exec::{Exit, FrameType, HEADER_BYTES, Start, header, parse_header};
use patina_abi::link::{FromAgent, FromHost, Identity};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How processes are held in a [`TestMachine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    AtOnce,
    /// When the test says so: [`Fixture::all_stand_still`].
    Later,
    Unsupported,
}

/// A machine without a kernel to change: it remembers what it was told. What is done to processes
/// it writes to the file `log`, where hooks write too.
struct TestMachine {
    dir: PathBuf,
    applied: Arc<Mutex<Vec<Identity>>>,
    said: Arc<Mutex<Vec<String>>>,
    hold: Hold,
    /// At its end when all processes have stopped.
    stopped: UnixStream,
    /// A byte for each time that somebody sets the clock.
    clock: UnixStream,
}

impl TestMachine {
    fn log(&self, line: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(self.dir.join("log")).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Machine for TestMachine {
    fn connect(&mut self) -> io::Result<OwnedFd> {
        let stream = UnixStream::connect(self.dir.join("host"))?;
        stream.set_nonblocking(true)?;
        Ok(stream.into())
    }

    fn prepare_to_connect(&mut self) {}

    fn apply(&mut self, identity: &Identity, _: Option<&Identity>) -> Vec<ApplyError> {
        self.applied.lock().unwrap().push(identity.clone());
        self.log(&format!("apply {}", identity.vmid));
        let refused = std::fs::read_to_string(self.dir.join("refused")).unwrap_or_default();
        let refuse = |line: &str| ApplyError {
            step: "set it",
            is_vital: line == "vital",
            source: io::Error::other(line.to_owned()),
        };
        refused.lines().map(refuse).collect()
    }

    fn settle(&mut self, _: bool) -> Vec<ApplyError> {
        Vec::new()
    }

    fn clock_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.clock.as_fd())
    }

    fn clock_was_set(&mut self) -> bool {
        self.clock.read(&mut [0]).is_ok_and(|count| count == 1)
    }

    fn set_clock(&mut self, clock_ns: u64) -> io::Result<()> {
        self.log(&format!("clock {clock_ns}"));
        Ok(())
    }

    fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn hold(&mut self) -> io::Result<()> {
        if self.hold == Hold::Unsupported {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.log("hold");
        Ok(())
    }

    fn stopping(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stopped.as_fd())
    }

    fn all_held(&mut self) -> io::Result<bool> {
        match self.stopped.read(&mut [0]) {
            Ok(count) => Ok(count == 0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(self.hold == Hold::AtOnce),
            Err(e) => Err(e),
        }
    }

    fn release(&mut self) -> io::Result<()> {
        self.log("release");
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.said.lock().unwrap().push(text.to_owned());
    }
}

pub struct Fixture {
    pub dir: TempDir,
    pub host: UnixListener,
    pub applied: Arc<Mutex<Vec<Identity>>>,
    pub said: Arc<Mutex<Vec<String>>>,
    stopped: Mutex<Option<UnixStream>>,
    sets_clock: UnixStream,
    known: AtomicBool,
}

pub fn identity(vmid: u32) -> Identity {
    Identity {
        vmid,
        family: "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11".into(),
        ip: Ipv4Addr::new(100, 64, 0, u8::try_from(vmid + 1).unwrap()),
        prefix: 20,
        gateway: Ipv4Addr::new(100, 64, 15, 254),
        mac: format!("02:00:00:00:00:{vmid:02x}"),
        hostname: format!("vm-{vmid}"),
        clock_ns: 1,
        seed: String::new(),
        ticket: String::new(),
    }
}

/// What an agent says when that identity is in place.
pub fn said_ready(vmid: u32) -> FromAgent {
    FromAgent::Ready { vmid, family: identity(vmid).family, abi: patina_abi::ABI, vmcoreinfo: None }
}

impl Fixture {
    /// Starts an agent whose host listens and has accepted nothing yet.
    pub fn new() -> Self {
        Self::with(Hold::AtOnce, |_| {})
    }

    /// The same with processes that are held like this, and other settings.
    pub fn with(hold: Hold, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = UnixListener::bind(dir.path().join("host")).unwrap();
        let (applied, said) = (Arc::default(), Arc::default());
        let listen = |name| {
            let listener = UnixListener::bind(dir.path().join(name)).unwrap();
            listener.set_nonblocking(true).unwrap();
            OwnedFd::from(listener)
        };
        let (local, exec) = (listen("local"), listen("exec"));
        let (stopped, stop) = UnixStream::pair().unwrap();
        stopped.set_nonblocking(true).unwrap();
        let (clock, sets_clock) = UnixStream::pair().unwrap();
        clock.set_nonblocking(true).unwrap();
        let machine = TestMachine {
            dir: dir.path().to_owned(),
            applied: Arc::clone(&applied),
            said: Arc::clone(&said),
            hold,
            stopped,
            clock,
        };
        let mut settings = Settings {
            identity: dir.path().join("identity"),
            hosts: dir.path().join("hosts"),
            pre_clone: dir.path().join("pre-clone"),
            post_clone: dir.path().join("post-clone"),
            hook_limit: PATIENCE,
            hold_limit: PATIENCE,
            host_limit: PATIENCE,
        };
        change(&mut settings);
        std::thread::spawn(move || {
            let Err(error) = Agent::new(local, exec, machine, settings).run();
            // The test would only see a socket that is silent.
            eprintln!("the agent ended: {}", patina_daemon::chain(&error));
            std::process::abort();
        });
        Self {
            dir,
            host,
            applied,
            said,
            stopped: Mutex::new(Some(stop)),
            sets_clock,
            known: AtomicBool::new(false),
        }
    }

    /// With [`Hold::Later`]: all processes have stopped.
    pub fn all_stand_still(&self) {
        *self.stopped.lock().unwrap() = None;
    }

    /// Somebody sets the clock.
    pub fn set_clock(&self) {
        (&self.sets_clock).write_all(&[1]).unwrap();
    }

    /// Writes a shell script as a hook.
    pub fn hook(&self, name: &str, script: &str) {
        let path = self.path(name);
        // Under its own name only when it is whole.
        std::fs::write(
            self.path("hook.new"),
            format!("#!/bin/sh\ncd {}\n{script}\n", self.dir.path().display()),
        )
        .unwrap();
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.path("hook.new"), everyone).unwrap();
        std::fs::rename(self.path("hook.new"), path).unwrap();
    }

    /// What was done, in order, from the first identity on.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().skip_while(|line| !line.starts_with("apply ")).skip(1).map(str::to_owned).collect()
    }

    pub fn accept(&self) -> Host {
        let mut fds = [PollFd::new(&self.host, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&patience())), Ok(1), "the agent does not connect");
        let (stream, _) = self.host.accept().unwrap();
        Host::new(stream)
    }

    /// The link with an identity in place. An agent that has had one before is told unasked.
    pub fn ready(&self, vmid: u32) -> Host {
        let mut host = self.accept();
        if !self.known.swap(true, Ordering::Relaxed) {
            assert!(matches!(host.next(), FromAgent::Hello { abi: patina_abi::ABI, .. }));
        }
        host.say(&FromHost::Identity(identity(vmid)));
        assert_eq!(host.next(), said_ready(vmid));
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn program(&self) -> Program {
        Program::new(&self.path("local"))
    }

    pub fn exec(&self) -> Exec {
        let stream = UnixStream::connect(self.path("exec")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Exec { stream }
    }

    pub fn start(&self, argv: &[&str]) -> Exec {
        let mut exec = self.exec();
        exec.start(&start(argv));
        exec
    }
}

pub fn patience() -> Timespec {
    Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 }
}

pub fn start(argv: &[&str]) -> Start {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    Start { argv, env: Vec::new(), cwd: String::new(), tty: None }
}

/// The host's end of the link.
pub struct Host {
    pub stream: BufReader<UnixStream>,
}

impl Host {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn next(&mut self) -> FromAgent {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next message must be a request: its id and verb.
    pub fn request(&mut self) -> (u64, String) {
        match self.next() {
            FromAgent::Request { id, verb, .. } => (id, verb),
            other => panic!("{other:?}"),
        }
    }

    /// The next message must be the request `clone`: its id and arguments.
    pub fn clone_request(&mut self) -> (u64, serde_json::Value) {
        match self.next() {
            FromAgent::Request { id, verb, args } if verb == "clone" => (id, args.read().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub fn say(&mut self, message: &FromHost) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).unwrap();
    }

    /// Says a line as it stands here.
    pub fn say_line(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok([]))
    }
}

/// A program on the agent's socket.
pub struct Program {
    pub stream: BufReader<UnixStream>,
}

impl Program {
    pub fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next answer; empty at the end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn call(&mut self, verb: &str) -> String {
        self.send(&format!("{{\"verb\":\"{verb}\"}}\n"));
        self.line()
    }
}

/// The host's end of an exec session.
pub struct Exec {
    pub stream: UnixStream,
}

/// All that a program said.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
}

impl Exec {
    pub fn send(&mut self, kind: FrameType, payload: &[u8]) {
        let head = header(kind, u32::try_from(payload.len()).unwrap());
        self.stream.write_all(&[&head[..], payload].concat()).unwrap();
    }

    pub fn start(&mut self, start: &Start) {
        self.send(FrameType::Start, &serde_json::to_vec(start).unwrap());
    }

    pub fn frame(&mut self) -> (FrameType, Vec<u8>) {
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head).unwrap();
        let (kind, length) = parse_header(head).unwrap();
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        (kind, payload)
    }

    /// Reads output until it holds `wanted`.
    pub fn read_until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        while !text.contains(wanted) {
            let (kind, payload) = self.frame();
            assert_eq!(kind, FrameType::Stdout, "after {text:?}: {}", String::from_utf8_lossy(&payload));
            text.push_str(&String::from_utf8_lossy(&payload));
        }
        text
    }

    /// Reads to the EXIT and the end of the connection.
    pub fn finish(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.frame() {
                (FrameType::Stdout, payload) => outcome.stdout.extend(payload),
                (FrameType::Stderr, payload) => outcome.stderr.extend(payload),
                (FrameType::Exit, payload) => {
                    outcome.exit = serde_json::from_slice(&payload).unwrap();
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        match self.stream.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0, "the agent goes on after EXIT"),
            // The agent closed with some of our bytes unread.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        }
        outcome
    }
}

/// A process that the test only knows by number; taken while it certainly runs.
pub fn watch_process(number: &str) -> OwnedFd {
    let pid = Pid::from_raw(number.trim().parse().unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Waits for the end of a process.
pub fn wait_for_end(pidfd: &OwnedFd) {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience())), Ok(1), "the process goes on");
}
