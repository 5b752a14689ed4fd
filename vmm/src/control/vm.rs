//! What the control thread needs of the VM around it.

use patina_control::end::End;
use patina_control::messages::Opened;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Takes the connections that are not for the control thread itself: to the guest's vsock ports and its console. And
/// connects the guest to its network.
pub trait Connections {
    /// The guest has its identity: its network may be used from now on.
    fn ready(&self);
    /// To a vsock port of the guest. It answers with an [`Opened`] line itself: the answer is known later, and goes before the first byte
    /// from the guest.
    fn dial(&self, port: u32, stream: UnixStream);
    /// To the serial console, for whoever has been answered.
    fn console(&self, stream: UnixStream);
}

/// What was asked for, for whoever asked.
#[derive(Debug)]
pub struct Reply {
    /// The line.
    pub opened: Opened,
    /// The files that go with it.
    pub files: Vec<Arc<File>>,
}

/// Why it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// For this reason. The VM is as it was before.
    Refused(String),
    /// The VM cannot go on.
    Ended(End),
}

/// What the control thread works on. It returns its answers; the control thread sends them.
pub trait VmControl {
    /// Freezes the VM into a generation. `is_held` says whether the guest's other processes are held, in clones until they are ready.
    ///
    /// # Errors
    /// There is no generation.
    fn freeze(&mut self, is_held: bool) -> Result<Reply, Failure>;
    /// Starts a warm VM from what came with the call.
    ///
    /// # Errors
    /// It is not warm, or can never run.
    fn start(&mut self, descriptors: Vec<OwnedFd>) -> Result<Reply, Failure>;
    /// Whoever started it has the answer.
    fn started(&mut self);
    /// The agent is ready.
    fn ready(&mut self);
    /// The pages that the VM wrote until then.
    ///
    /// # Errors
    /// There is no memory for them.
    fn prefault_list(&mut self) -> Result<Reply, Failure>;
}
