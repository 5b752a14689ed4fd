//! The traits of the VM that the control thread calls.

use patina_abi::link::{CallError, Vmcoreinfo};
use patina_control::config::Member;
use patina_control::end::End;
use patina_control::messages::Opened;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

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
    /// Another pager serves the VM, at the other end of `pager`. Sends the [`Opened`] line itself,
    /// when that pager serves the VM or has refused.
    fn attach(&self, pager: OwnedFd, stream: UnixStream);
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
    /// The agent is no longer prepared. The VM is unchanged.
    NotPrepared(CallError),
    /// The VM cannot go on.
    Ended(End),
}

/// The VM. A thread of its own carries out what the control thread orders of it
/// ([`super::orders`]): these functions may wait, for the guest's memory too. They return answers,
/// and the control thread sends them.
pub trait VmControl: Send + 'static {
    /// Freezes the VM into a generation. `is_held` says whether the guest's other processes are
    /// held. In a clone they stay held until it is ready. The pause must come before `until`.
    ///
    /// # Errors
    /// The VM cannot be frozen, or not in time.
    fn freeze(&mut self, is_held: bool, until: Option<Instant>) -> Result<Reply, Failure>;
    /// Starts a warm VM from the descriptors that came with the request. `filling` has the numbers
    /// of the layers that are still being filled; `member`, of a spare vmm, who its VM is.
    ///
    /// # Errors
    /// The VM is not warm, it is not known who it is, or it can never run.
    fn start(
        &mut self,
        descriptors: Vec<OwnedFd>,
        filling: Vec<u8>,
        member: Option<Box<Member>>,
    ) -> Result<Reply, Failure>;
    /// The client that started the VM has its answer.
    fn started(&mut self);
    /// The agent is ready.
    fn ready(&mut self);
    /// The pages that the VM wrote until its agent was ready.
    ///
    /// # Errors
    /// There is no memory for the list.
    fn prefault_list(&mut self) -> Result<Reply, Failure>;
    /// The pages that are free in the generation of the last freeze, whose number this is.
    ///
    /// # Errors
    /// It is not known which are free.
    fn free_pages(&mut self, frozen: u64, note: Option<Vmcoreinfo>) -> Result<Reply, Failure>;
    /// The VM has ended: its devices stop.
    fn finish(&mut self);
}
