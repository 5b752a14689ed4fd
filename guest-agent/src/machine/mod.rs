//! What the agent changes in its machine: the edge to the guest's kernel, and the one part of the agent
//! that tests on another machine replace.

mod guest;

pub use guest::Guest;

use patina_abi::link::Identity;
use std::io;
use std::os::fd::OwnedFd;

/// A step of an identity that did not work. The others are done all the same.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct ApplyError {
    /// What was tried.
    pub step: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// The machine that the agent runs in.
pub trait Machine {
    /// Starts to connect to the host: a non-blocking socket, writable once that is decided.
    ///
    /// # Errors
    /// There is no way to the host.
    fn connect(&mut self) -> io::Result<OwnedFd>;

    /// Puts a checked identity in place: name, MAC, address, route, clock. `previous` is the one that is
    /// in place. Returns what did not work.
    fn apply(&mut self, identity: &Identity, previous: Option<&Identity>) -> Vec<ApplyError>;

    /// Tells people who watch the console.
    fn say(&mut self, text: &str);
}
