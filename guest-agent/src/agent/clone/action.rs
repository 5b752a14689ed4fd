//! The actions of a clone that is under way, and their messages.

use patina_abi::link::{Answer, CloneArgs};

/// EBUSY, ECANCELED, EDEADLK, ETIMEDOUT as codes of an answer.
pub const BUSY: i32 = libc::EBUSY;
/// See [`BUSY`].
pub const CANCELED: i32 = libc::ECANCELED;
/// See [`BUSY`].
pub const DEADLOCK: i32 = libc::EDEADLK;
/// See [`BUSY`].
pub const TIMED_OUT: i32 = libc::ETIMEDOUT;

/// What a machine is in a clone that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It was cloned.
    Parent,
    /// It is the copy.
    Clone,
}

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the freeze, in the parent.
    Pre,
    /// Afterwards, in every machine.
    Post(Role),
}

/// What a program asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The program.
    pub client: u64,
    /// For the host.
    pub args: CloneArgs,
    /// Whether other processes are held.
    pub hold: bool,
}

/// What is to be done; in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run a hook, if it is there, for a clone under this ticket. Then
    /// [`super::plan::Plan::hook_ended`].
    Run(Hook, Option<String>),
    /// Start to hold the other processes. Then [`super::plan::Plan::held`],
    /// [`super::plan::Plan::cannot_hold`] or [`super::plan::Plan::hold_failed`].
    Hold,
    /// Let them go on.
    Release,
    /// Send the request. A failure is [`super::plan::Plan::reply`].
    Ask(CloneArgs),
    /// Tell the host that nobody wants the request any more. It answers all the same:
    /// [`super::plan::Plan::reply`].
    Cancel,
    /// Answer the host's `prepare`.
    Prepared(Answer),
    /// This is a clone: its sessions have lost their connections.
    Detach,
    /// Answer a program; a clone's answer is completed with its vmid.
    Answer(u64, Outcome),
    /// Tell people.
    Say(String),
}

/// The answer to a program.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// In a clone.
    IsClone,
    /// What the host or the agent says, in the machine that was to be cloned.
    Host(Answer),
}
