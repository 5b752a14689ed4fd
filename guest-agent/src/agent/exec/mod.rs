//! Programs that the host runs here ([`patina_abi::exec`]).
//!
//! - [`frames`]: splits the host's bytes into frames.
//! - [`program`]: a child process with its pipes or terminal.
//! - `part`: what the agent waits for on behalf of a session.
//! - [`session`]: one connection and its program, with back-pressure in both directions.
//! - [`terminal`]: sends a terminal the end of input.
//! - [`detached`]: a program that lost its connection because it is in a clone.
//! - [`drains`]: outputs that other programs hold after their program has ended.

pub mod detached;
pub mod drains;
pub mod frames;
mod part;
pub mod program;
pub mod session;
pub mod terminal;

use super::{AgentError, accept, send_last_words};
use detached::Detached;
use drains::Drains;
pub use part::Part;
use patina_abi::exec::{Exit, SESSIONS_MAX};
use rustix::event::PollFlags;
use session::Session;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The exit code of a shell for a program that cannot be executed.
pub const CODE_NOT_EXECUTABLE: i32 = 126;
/// The exit code of a shell for a program that is not there.
pub const CODE_NOT_FOUND: i32 = 127;

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Vec<Session>,
    detached: Vec<Detached>,
    drains: Drains,
    /// What is read only to be gone; it keeps its room.
    scratch: Vec<u8>,
}

impl Sessions {
    /// Takes a connection from the host; one too many is answered with an EXIT.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn accept(&mut self, listener: &OwnedFd) -> Result<(), AgentError> {
        let Some(socket) = accept(listener, "an exec session")? else { return Ok(()) };
        if self.open.len() + self.detached.len() >= SESSIONS_MAX {
            let error = format!("exec: {SESSIONS_MAX} programs run already; wait for one to end");
            let exit = Exit { code: Some(CODE_NOT_EXECUTABLE), error: Some(error), signal: None };
            send_last_words(&socket, &session::exit_frame(&exit));
            return Ok(());
        }
        self.open.push(Session::new(socket));
        Ok(())
    }

    /// What to wait for. Numbers stay valid until [`Self::settle`] or [`Self::detach`].
    pub fn watch<'a>(&'a self, mut add: impl FnMut(usize, Part, BorrowedFd<'a>, PollFlags)) {
        for (number, session) in self.open.iter().enumerate() {
            session.watch(|part, fd, flags| add(number, part, fd, flags));
        }
        for (number, program) in (self.open.len()..).zip(&self.detached) {
            program.watch(|part, fd, flags| add(number, part, fd, flags));
        }
        let programs = self.open.len() + self.detached.len();
        self.drains.watch(|number, fd, flags| add(programs + number, Part::Output(0), fd, flags));
    }

    /// Goes on with a part of a session that is ready; a program is started in `cgroup`.
    pub fn ready(&mut self, number: usize, part: Part, ready: PollFlags, cgroup: Option<BorrowedFd<'_>>) {
        let programs = self.open.len() + self.detached.len();
        if let Some(session) = self.open.get_mut(number) {
            session.ready(part, ready, cgroup);
        } else if let Some(program) = self.detached.get_mut(number - self.open.len()) {
            program.ready(part, &mut self.scratch);
        } else {
            self.drains.ready(number - programs);
        }
    }

    /// This machine is a clone: the connections are its parent's, the programs are its own.
    pub fn detach(&mut self) {
        for mut session in self.open.drain(..) {
            self.detached.extend(session.detach());
            self.drains.take(session.take_left());
        }
    }

    /// Reads on, and drops, what others write to the outputs of a program that has ended.
    pub fn drain(&mut self, outputs: [Option<OwnedFd>; 2]) {
        self.drains.take(outputs);
    }

    /// Ends what has ended.
    pub fn settle(&mut self) {
        self.drains.settle();
        for session in &mut self.open {
            self.drains.take(session.take_left());
        }
        for program in &mut self.detached {
            self.drains.take(program.take_left());
        }
        self.open.retain(|session| !session.is_done());
        self.detached.retain(|program| !program.is_done());
    }
}
