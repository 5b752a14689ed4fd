//! `gc-agent`: one thread around one poll(2).
//!
//! - [`link`]: the connection to the host.
//! - [`local`]: programs in the guest and their calls.
//! - [`exec`]: programs that the host runs here.
//! - [`lines`], [`outbox`]: what comes in and goes out, bounded.
//!
//! Memory is bounded by the limits in README.md: 64 programs with a call and an answer of 64 KiB each, 64 calls
//! on their way to the host, 32 sessions with three frames of 64 KiB each. That is 20 MiB with every peer at its
//! worst, and 50 KiB as a rule.

pub mod exec;
pub mod lines;
pub mod link;
pub mod local;
pub mod outbox;

mod calls;

use crate::identity::{self, IdentityError};
use crate::machine::Machine;
use calls::Calls;
use exec::Sessions;
use link::{Link, LinkError};
use local::{CLIENTS_MAX, Client};
use patina_abi::link::{FromAgent, FromHost, Identity};
use patina_abi::local::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// poll failed.
    #[error("wait for something to do: {0}")]
    Wait(#[source] Errno),
    /// A listener failed.
    #[error("accept {what}: {source}")]
    Accept {
        /// What was to be accepted.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Files that the agent writes.
#[derive(Debug, Clone)]
pub struct Paths {
    /// [`patina_abi::local::IDENTITY_FILE`].
    pub identity: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
}

impl Paths {
    /// Those of a guest.
    #[must_use]
    pub fn of_a_guest() -> Self {
        Self { identity: patina_abi::local::IDENTITY_FILE.into(), hosts: "/etc/hosts".into() }
    }
}

/// Whose readiness poll reported.
#[derive(Debug, Clone, Copy)]
enum Token {
    Local,
    Exec,
    Link,
    Client(usize),
    Session(usize, exec::Part),
}

/// The agent.
#[derive(Debug)]
pub struct Agent<M> {
    machine: M,
    paths: Paths,
    local: OwnedFd,
    exec: OwnedFd,
    link: Link,
    identity: Option<Identity>,
    clients: Vec<Client>,
    clients_so_far: u64,
    calls: Calls,
    sessions: Sessions,
    /// A lost link is told once, not at every attempt.
    told_of_loss: bool,
}

impl<M: Machine> Agent<M> {
    /// Takes two non-blocking listeners: programs' calls on `local`, exec sessions on `exec`.
    pub fn new(local: OwnedFd, exec: OwnedFd, machine: M, paths: Paths) -> Self {
        Self {
            machine,
            paths,
            local,
            exec,
            link: Link::default(),
            identity: None,
            clients: Vec::new(),
            clients_so_far: 0,
            calls: Calls::default(),
            sessions: Sessions::default(),
            told_of_loss: false,
        }
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
                Token::Client(index) => self.drive_client(index, ready),
                Token::Session(index, part) => self.sessions.ready(index, part, ready),
            }
        }
        self.sessions.settle();
        self.clients.retain(|client| !client.is_done());
        Ok(())
    }

    /// Waits until something can be done; indices stay valid until the end of the turn.
    fn wait(&self) -> Result<Vec<(Token, PollFlags)>, AgentError> {
        let mut tokens = vec![Token::Local, Token::Exec];
        let mut fds = vec![PollFd::new(&self.local, PollFlags::IN), PollFd::new(&self.exec, PollFlags::IN)];
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some((fd, flags)) = self.link.interest() {
            add(Token::Link, fd, flags);
        }
        for (index, client) in self.clients.iter().enumerate() {
            let (fd, flags) = client.interest();
            add(Token::Client(index), fd, flags);
        }
        self.sessions.watch(|index, part, fd, flags| add(Token::Session(index, part), fd, flags));
        let timeout = self.link.retry_at().map(|at| {
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

    fn accept_client(&mut self) -> Result<(), AgentError> {
        let Some(socket) = accept(&self.local, "a program")? else { return Ok(()) };
        self.clients_so_far += 1;
        let mut client = Client::new(self.clients_so_far, socket);
        if self.clients.len() >= CLIENTS_MAX {
            let text = format!("connect: {CLIENTS_MAX} programs are connected already; try again later");
            client.answer(&local::refuse(local::AGAIN, text));
            return Ok(());
        }
        self.clients.push(client);
        Ok(())
    }

    fn drive_client(&mut self, index: usize, ready: PollFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        client.drive(ready);
        self.serve(index);
    }

    /// Answers the client's calls until one has to wait.
    fn serve(&mut self, index: usize) {
        while let Some((id, call)) = self.clients.get_mut(index).and_then(|c| Some((c.id, c.next_call()?))) {
            let answer = match calls::answer_here(&call.verb, self.identity.as_ref()) {
                Some(answer) => answer,
                None => match self.forward(id, call) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                },
            };
            if let Some(client) = self.clients.get_mut(index) {
                client.answer(&answer);
            }
        }
    }

    /// Sends a call on to the host, or says why not.
    fn forward(&mut self, client: u64, call: Request) -> Result<(), patina_abi::link::Answer> {
        if !self.link.is_up() {
            return Err(calls::link_down(&call.verb));
        }
        let line = self.calls.open(client, call)?;
        // On a failure every call that waits is answered, this one included.
        if let Err(error) = self.link.send_line(&line) {
            self.link_lost(&error);
        }
        Ok(())
    }

    fn drive_link(&mut self, ready: PollFlags) {
        match self.link.drive(ready) {
            Ok(messages) => messages.into_iter().for_each(|message| self.take(message)),
            Err(error) => self.link_lost(&error),
        }
    }

    fn take(&mut self, message: FromHost) {
        match message {
            FromHost::Identity(identity) => match self.become_(identity) {
                Ok(()) => {
                    self.link.proven();
                    self.told_of_loss = false;
                    if let Err(error) = self.link.send(&FromAgent::Ready) {
                        self.link_lost(&error);
                    }
                }
                Err(error) => self.link_lost(&LinkError::Identity(error)),
            },
            FromHost::Reply { id, result } => {
                let Some(client) = self.calls.close(id) else { return };
                // A program that did not wait for its answer is not there any more.
                if let Some(index) = self.clients.iter().position(|c| c.id == client) {
                    if let Some(client) = self.clients.get_mut(index) {
                        client.answer(&result);
                    }
                    self.serve(index);
                }
            }
        }
    }

    /// Puts an identity in place. What the kernel refuses is told and left: a machine without a network
    /// still answers.
    fn become_(&mut self, identity: Identity) -> Result<(), IdentityError> {
        let text = identity::render(&identity)?;
        let changed = self.identity.as_ref().is_none_or(|old| {
            identity != Identity { clock_ns: identity.clock_ns, seed: identity.seed.clone(), ..old.clone() }
        });
        for error in self.machine.apply(&identity, self.identity.as_ref()) {
            self.machine.say(&format!("identity: {error}"));
        }
        if changed {
            let hosts = identity::read_small(&self.paths.hosts, identity::HOSTS_MAX_BYTES);
            let edited = match hosts {
                Ok(old) => identity::replace(&self.paths.hosts, &identity::render_hosts(&old, &identity)),
                Err(source) => Err(IdentityError::Replace { path: self.paths.hosts.clone(), source }),
            };
            if let Err(error) = edited {
                self.machine.say(&format!("identity: {error}"));
            }
            // Last: whoever reads it finds everything else in place.
            identity::replace(&self.paths.identity, &text)?;
            self.machine.say(&format!("vmid {} {} ready", identity.vmid, identity.ip));
        }
        self.identity = Some(identity);
        Ok(())
    }

    fn link_lost(&mut self, error: &LinkError) {
        self.link.close();
        if !self.told_of_loss && self.link.retry_at().is_some_and(|at| at > Instant::now()) {
            self.told_of_loss = true;
            self.machine.say(&format!("{error}; trying again"));
        }
        for client in self.calls.close_all() {
            if let Some(index) = self.clients.iter().position(|c| c.id == client) {
                if let Some(client) = self.clients.get_mut(index) {
                    client.answer(&calls::link_lost());
                }
                self.serve(index);
            }
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
