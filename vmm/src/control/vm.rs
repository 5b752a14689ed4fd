//! The traits of the VM that the control thread calls.

use patina_control::end::End;
use patina_control::messages::Opened;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Takes the connections that the control thread does not serve itself: to the guest's vsock ports
/// and to its console. Also opens the guest's network.
pub trait Connections {
    /// The guest has its identity: opens its network.
    fn ready(&self);
    /// Connects `stream` to a vsock port of the guest. Sends the [`Opened`] line itself, once the
    /// guest has answered and before the guest's first byte.
    fn dial(&self, port: u32, stream: UnixStream);
    /// Connects `stream`, whose client has its answer already, to the serial console.
    fn console(&self, stream: UnixStream);
}

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    /// The line.
    pub opened: Opened,
    /// The files that go with it.
    pub files: Vec<Arc<File>>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The request was refused, for this reason. The VM is unchanged.
    Refused(String),
    /// The VM cannot go on.
    Ended(End),
}

/// The VM that the control thread works on. Its functions return answers, and the control thread
/// sends them.
pub trait VmControl {
    /// Freezes the VM into a generation. `is_held` says whether the guest's other processes are
    /// held. In a clone they stay held until it is ready.
    ///
    /// # Errors
    /// The VM cannot be frozen.
    fn freeze(&mut self, is_held: bool) -> Result<Reply, Failure>;
    /// Starts a warm VM from the descriptors that came with the request. `filling` has the numbers
    /// of the layers that are still being filled.
    ///
    /// # Errors
    /// The VM is not warm, or can never run.
    fn start(&mut self, descriptors: Vec<OwnedFd>, filling: Vec<u8>) -> Result<Reply, Failure>;
    /// Another pager serves the VM, at the other end of this socket.
    ///
    /// # Errors
    /// All of the VM's memory has arrived, or the pager refuses.
    fn attach(&mut self, pager: OwnedFd) -> Result<Reply, Failure>;
    /// The connection to the pager. None: all memory has arrived, or no pager serves the VM now.
    fn pager(&self) -> Option<BorrowedFd<'_>>;
    /// The connection to the pager has something to hear.
    fn hear_pager(&mut self);
    /// The client that started the VM has its answer.
    fn started(&mut self);
    /// The agent is ready.
    fn ready(&mut self);
    /// The pages that the VM wrote until its agent was ready.
    ///
    /// # Errors
    /// There is no memory for the list.
    fn prefault_list(&mut self) -> Result<Reply, Failure>;
}
