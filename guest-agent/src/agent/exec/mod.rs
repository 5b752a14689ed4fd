//! Programs that the host runs here ([`patina_abi::exec`]).
//!
//! - [`frames`]: the host's bytes cut into frames.
//! - [`program`]: a child process with its pipes or terminal.
//! - [`session`]: one connection and its program, with back-pressure both ways.

pub mod frames;
pub mod program;
pub mod session;

use super::{AgentError, accept, send_last_words};
use patina_abi::exec::{Exit, SESSIONS_MAX};
use rustix::event::PollFlags;
pub use session::Part;
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
}

impl Sessions {
    /// Takes a connection from the host; one too many is answered with an EXIT.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn accept(&mut self, listener: &OwnedFd) -> Result<(), AgentError> {
        let Some(socket) = accept(listener, "an exec session")? else { return Ok(()) };
        if self.open.len() >= SESSIONS_MAX {
            let error = format!("exec: {SESSIONS_MAX} programs run already; wait for one to end");
            let exit = Exit { code: Some(CODE_NOT_EXECUTABLE), error: Some(error), signal: None };
            send_last_words(&socket, &session::exit_frame(&exit));
            return Ok(());
        }
        self.open.push(Session::new(socket));
        Ok(())
    }

    /// What to wait for.
    pub fn watch<'a>(&'a self, mut add: impl FnMut(usize, Part, BorrowedFd<'a>, PollFlags)) {
        for (index, session) in self.open.iter().enumerate() {
            session.watch(|part, fd, flags| add(index, part, fd, flags));
        }
    }

    /// Goes on with a part of a session that is ready.
    pub fn ready(&mut self, index: usize, part: Part, ready: PollFlags) {
        if let Some(session) = self.open.get_mut(index) {
            session.ready(part, ready);
        }
    }

    /// Ends what has ended.
    pub fn settle(&mut self) {
        self.open.retain(|session| !session.is_done());
    }
}
