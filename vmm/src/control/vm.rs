//! What the control thread needs of the VM around it.

use patina_control::end::End;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Where connections go that are not for the control thread itself. Each answers with an [`Opened`](patina_control::messages::Opened) line.
pub trait Doors {
    /// The guest has its identity: its network may be used from now on.
    fn ready(&self);
    /// To a vsock port of the guest.
    fn dial(&self, port: u32, stream: UnixStream);
    /// To the serial console.
    fn console(&self, stream: UnixStream);
}

/// What became of a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreezeOutcome {
    /// The generation is with whoever asked, and the VM goes on.
    Frozen,
    /// There is no generation, and the VM goes on; whoever asked was told why.
    Refused,
    /// The VM cannot go on.
    Ended(End),
}

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// The VM runs; whoever asked was told.
    Started,
    /// It is not warm; whoever asked was told.
    Refused,
    /// It can never run.
    Ended(End),
}

/// What the control thread works on.
pub trait Freezer {
    /// Freezes the VM and sends the generation with the answer on `stream`. `is_held` says whether the guest's other processes are
    /// held, in clones until they are ready.
    fn freeze(&mut self, stream: UnixStream, is_held: bool) -> FreezeOutcome;
    /// Starts a warm VM from what came with the call, and answers on `stream`.
    fn start(&mut self, descriptors: Vec<OwnedFd>, stream: UnixStream) -> StartOutcome;
    /// The agent is ready.
    fn ready(&mut self);
    /// Sends the pages that the VM wrote until then, with the answer on `stream`.
    fn touched(&mut self, stream: UnixStream);
}
