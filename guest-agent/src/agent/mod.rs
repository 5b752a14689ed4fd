//! `gc-agent`: one thread around one poll(2).
//!
//! - [`link`]: the connection to the host; `host`: what it says, and becoming who it says that we
//!   are.
//! - [`local`]: programs in the guest; `programs`, `calls`: their calls; `rounds`: at which
//!   meetings they were.
//! - [`exec`]: programs that the host runs here.
//! - [`clone`]: this machine is cloned. [`time`]: its clock.
//! - [`lines`], [`outbox`]: what comes in and goes out, bounded.
//!
//! Memory is bounded by the limits in README.md: 64 programs with a call and an answer of 64 KiB
//! each, 4 MiB of calls on their way to the host, 32 sessions with three frames of 64 KiB each.
//! That is 20 MiB with every peer at its worst, and 50 KiB as a rule.

pub mod clone;
pub mod exec;
pub mod lines;
pub mod link;
pub mod local;
pub mod outbox;
pub mod time;

mod calls;
mod host;
mod programs;
mod rounds;

use crate::identity::IdentityFile;
use crate::machine::{ApplyError, Machine};
use calls::Calls;
use clone::Cloning;
use exec::Sessions;
use link::Link;
use local::Client;
use patina_abi::link::{Identity, Vmcoreinfo};
use rounds::Rounds;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use time::Time;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// poll failed.
    #[error("wait for events")]
    Wait(#[source] Errno),
    /// A listener failed.
    #[error("accept {what}")]
    Accept {
        /// What was to be accepted.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Files that the agent uses, and how long it waits for what.
#[derive(Debug, Clone)]
pub struct Settings {
    /// [`patina_abi::local::IDENTITY_FILE`].
    pub identity: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// Run before a clone, if it may be executed.
    pub pre_clone: PathBuf,
    /// Run after it, in all machines, if it may be executed.
    pub post_clone: PathBuf,
    /// How long a hook may run.
    pub hook_limit: Duration,
    /// How long it may take until all processes stand still.
    pub hold_limit: Duration,
    /// How long they do so for a host that does not clone the machine.
    pub host_limit: Duration,
}

impl Settings {
    /// Those of a guest.
    #[must_use]
    pub fn of_a_guest() -> Self {
        Self {
            identity: patina_abi::local::IDENTITY_FILE.into(),
            hosts: "/etc/hosts".into(),
            pre_clone: "/etc/gridcentric/pre-clone".into(),
            post_clone: "/etc/gridcentric/post-clone".into(),
            hook_limit: Duration::from_secs(60),
            hold_limit: Duration::from_secs(2),
            host_limit: Duration::from_secs(30),
        }
    }
}

/// Whose readiness poll reported.
#[derive(Debug, Clone, Copy)]
enum Token {
    Local,
    Exec,
    Link,
    Clock,
    Client(usize),
    Session(usize, exec::Part),
    Clone(clone::Part),
}

/// The agent.
#[derive(Debug)]
pub struct Agent<M> {
    machine: M,
    settings: Settings,
    local: OwnedFd,
    exec: OwnedFd,
    link: Link,
    identity: Option<Identity>,
    identity_file: IdentityFile,
    /// What of an identity did not work and was not told yet.
    failed: Vec<ApplyError>,
    clients: Vec<Client>,
    clients_so_far: u64,
    calls: Calls,
    rounds: Rounds,
    /// Programs whose calls were with the host when the link broke, not told yet.
    lost_calls: Vec<u64>,
    cloning: Cloning,
    sessions: Sessions,
    time: Time,
    /// Read once: it stays the same, in clones too.
    vmcoreinfo: Option<Vmcoreinfo>,
    /// A lost link is told once, not at every attempt.
    told_of_loss: bool,
}

impl<M: Machine> Agent<M> {
    /// Takes two non-blocking listeners: programs' calls on `local`, exec sessions on `exec`.
    /// What an agent before this one has held goes on.
    pub fn new(local: OwnedFd, exec: OwnedFd, machine: M, settings: Settings) -> Self {
        let mut agent = Self {
            vmcoreinfo: machine.vmcoreinfo(),
            machine,
            rounds: Rounds::beside(&settings.identity),
            identity_file: IdentityFile::new(settings.identity.clone()),
            settings,
            local,
            exec,
            link: Link::default(),
            identity: None,
            failed: Vec::new(),
            clients: Vec::new(),
            clients_so_far: 0,
            calls: Calls::default(),
            lost_calls: Vec::new(),
            cloning: Cloning::default(),
            sessions: Sessions::default(),
            time: Time::default(),
            told_of_loss: false,
        };
        agent.release();
        agent
    }

    /// Serves until something breaks that no restart of a connection mends.
    ///
    /// # Errors
    /// That thing.
    pub fn run(&mut self) -> Result<std::convert::Infallible, AgentError> {
        loop {
            self.turn()?;
        }
    }

    fn turn(&mut self) -> Result<(), AgentError> {
        if self.link.retry_at().is_some_and(|at| at <= Instant::now()) {
            let socket = self.machine.connect();
            if let Err(error) = self.link.connect(socket) {
                self.link_lost(&error);
            }
        }
        for (token, ready) in self.wait()? {
            match token {
                Token::Local => self.accept_client()?,
                Token::Exec => self.sessions.accept(&self.exec)?,
                Token::Link => self.drive_link(ready),
                Token::Clock => self.hear_of_clock(),
                Token::Client(index) => self.drive_client(index, ready),
                Token::Session(index, part) => {
                    self.sessions.ready(index, part, ready, self.machine.cgroup());
                }
                Token::Clone(part) => self.drive_clone(part),
            }
        }
        self.keep_time();
        self.ask_for_time();
        self.carry_out();
        self.sessions.settle();
        // What is done for the next in line may end another.
        while self.forget_clients() {
            self.carry_out();
        }
        Ok(())
    }

    /// Waits until something can be done; indices stay valid until the end of the turn.
    fn wait(&self) -> Result<Vec<(Token, PollFlags)>, AgentError> {
        let mut tokens = Vec::new();
        let mut fds = Vec::new();
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some((fd, flags)) = self.link.interest() {
            add(Token::Link, fd, flags);
        }
        // In a clone that is not somebody yet this makes poll a few times cheaper.
        if !self.cloning.plan.waits_for_link_only() {
            self.watch_others(&mut add);
        }
        let timeout = [self.link.retry_at(), self.cloning.deadline(), self.time.deadline()]
            .into_iter()
            .flatten()
            .min()
            .map(|at| {
                let wait = at.saturating_duration_since(Instant::now());
                Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() }
            });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(AgentError::Wait(e)),
        }
        let ready = tokens.into_iter().zip(fds.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, ready)| !ready.is_empty()).collect())
    }

    fn watch_others<'a>(&'a self, add: &mut impl FnMut(Token, BorrowedFd<'a>, PollFlags)) {
        add(Token::Local, self.local.as_fd(), PollFlags::IN);
        if let Some(clock) = self.machine.clock_events() {
            add(Token::Clock, clock, PollFlags::IN);
        }
        for (index, client) in self.clients.iter().enumerate() {
            let (fd, flags) = client.interest();
            add(Token::Client(index), fd, flags);
        }
        self.cloning.watch(self.machine.stopping(), |part, fd, flags| add(Token::Clone(part), fd, flags));
        if !self.cloning.plan.is_still() {
            add(Token::Exec, self.exec.as_fd(), PollFlags::IN);
            self.sessions.watch(|index, part, fd, flags| add(Token::Session(index, part), fd, flags));
        }
    }
}

/// Accepts a connection, if one is still there.
fn accept(listener: &OwnedFd, what: &'static str) -> Result<Option<OwnedFd>, AgentError> {
    match accept_with(listener.as_fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(source) => Err(AgentError::Accept { what, source }),
    }
}

/// Sends a few bytes to a peer that is closed anyway; if they do not fit, they are lost.
fn send_last_words(socket: &OwnedFd, bytes: &[u8]) {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if rustix::net::send(socket, bytes, flags).is_err() {
        // The peer sees the end of the connection either way.
    }
}
