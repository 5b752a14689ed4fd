//! What the agent changes in its machine. This is the boundary to the guest's kernel, and the only
//! part of the agent that tests replace.
//!
//! - [`rtnetlink`]: the network card's settings.
//! - [`clock`]: the time.
//! - [`marks`]: boot_id and machine-id.
//! - [`connections`]: TCP connections that belong to the parent.
//! - `vmcoreinfo`: where the kernel describes itself.

pub mod clock;
pub mod connections;
mod guest;
pub mod marks;
pub mod rtnetlink;
mod vmcoreinfo;

#[cfg(test)]
mod testing;

pub use guest::Guest;

use patina_abi::link::{Identity, Vmcoreinfo};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A step of an identity that did not work. The others are tried all the same.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct ApplyError {
    /// What was tried.
    pub step: &'static str,
    /// A clone without it must not be seen: it would be taken for its parent, or draw its numbers.
    pub is_vital: bool,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// The machine that the program runs in.
pub trait Machine {
    /// Starts to connect to the host: a non-blocking socket, writable once that is decided.
    ///
    /// # Errors
    /// There is no way to the host.
    fn connect(&mut self) -> io::Result<OwnedFd>;

    /// Does what it can of the next [`Self::connect`] and [`Self::apply`] beforehand: a clone then
    /// need not.
    fn prepare_to_connect(&mut self);

    /// Maps all pages of the agent for good, so that no clone has a page fault for one of them: a
    /// fault costs an emulated kernel thousands of instructions.
    ///
    /// # Errors
    /// The kernel's. Clones then map the pages that they use.
    fn keep_resident(&self) -> io::Result<()> {
        Ok(())
    }

    /// Where the kernel describes itself. None: it does not.
    fn vmcoreinfo(&self) -> Option<Vmcoreinfo> {
        None
    }

    /// Puts a checked identity in place: randomness, clock, name, MAC, address, route. `previous`
    /// is the one that is in place. In a clone whose other processes are not held the marks, too.
    /// Returns what did not work.
    fn apply(&mut self, identity: &Identity, previous: Option<&Identity>) -> Vec<ApplyError>;

    /// Does what has time until the host knows that the identity is in place. Returns what did not
    /// work here or there.
    fn settle(&mut self, is_clone: bool) -> Vec<ApplyError>;

    /// The directory of the cgroup that programs are started in; it can be held.
    fn cgroup(&self) -> Option<BorrowedFd<'_>>;

    /// Readable when somebody has set the clock; [`Self::clock_was_set`] is to be asked then. None:
    /// nobody tells.
    fn clock_events(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether somebody else has set the clock since this was asked last.
    fn clock_was_set(&mut self) -> bool {
        false
    }

    /// Sets the clock, if it is off.
    ///
    /// # Errors
    /// The kernel's.
    fn set_clock(&mut self, _clock_ns: u64) -> io::Result<()> {
        Ok(())
    }

    /// The directory of a cgroup below that one for a hook that is started now: nobody else was
    /// started in it, so that what the hook starts can be told from others. None: there is none.
    fn hook_cgroup(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Has all processes of the cgroup stop.
    ///
    /// # Errors
    /// Unsupported: the kernel cannot.
    fn hold(&mut self) -> io::Result<()>;

    /// Reports POLLPRI when [`Self::all_held`] has changed.
    fn stopping(&self) -> Option<BorrowedFd<'_>>;

    /// Whether all of them stand still.
    ///
    /// # Errors
    /// The kernel's.
    fn all_held(&mut self) -> io::Result<bool>;

    /// Lets them go on, whether they are held or not.
    ///
    /// # Errors
    /// The kernel's.
    fn release(&mut self) -> io::Result<()>;

    /// Tells people who watch the console.
    fn say(&mut self, text: &str);
}
