//! What the keeper is to do when the book changes.

use super::{error::PagerError, holders::Found, parts::Parts};
use patina_control::pager::{Credential, Id};
use std::{io, os::fd::OwnedFd, sync::Arc};
use tokio::sync::oneshot;

/// What the keeper is to do.
#[derive(Debug)]
pub enum Order {
    /// The book has a new layer. The answer tells whether the pager has it.
    Layer(Id, oneshot::Sender<Result<(), PagerError>>),
    /// The book has a new VM. The answer is its socket.
    Vm(Id, oneshot::Sender<Result<OwnedFd, PagerError>>),
    /// The vmm of a VM has started it, and so the pager serves it.
    Started(Id),
    /// The book has a VM of an earlier `vmmd`.
    FoundVm(Id),
    /// The socket of a VM did not reach it. The number is that of the pager which has the other
    /// end.
    Unreached(Id, u64, String),
    /// `vmmd` stops: a pager that nobody needs ends.
    Leave(oneshot::Sender<()>),
    /// A VM is no longer in the book.
    ForgetVm(Id),
    /// A layer is no longer in the book.
    ForgetLayer(Arc<Parts>),
    /// Another host reads layers over this connection. The answer tells whether the pager serves
    /// it.
    Serve(Serving, oneshot::Sender<Result<Served, PagerError>>),
    /// The connection to another host's pager broke: it is made anew, if it is still needed.
    ConnectPeer(Id),
    /// There are connections to another host's pager, or there can be none.
    Dialled(Id, io::Result<[OwnedFd; 2]>),
    /// Another host has layers that are read at a peer which fails.
    Found(Id, Found),
    /// All hosts that may have the layers which are read at a peer were asked.
    Sought(Id),
    /// No layer is read at another host's pager any longer.
    ForgetPeer(Id),
}

/// A connection over which another host reads layers.
#[derive(Debug)]
pub struct Serving {
    /// The connection's name.
    pub connection: Id,
    /// The layers, by the numbers that the other host has for them.
    pub layers: Vec<Id>,
    /// The connection.
    pub stream: OwnedFd,
    /// By which both pagers know each other.
    pub credential: Credential,
    /// Whether runs are compressed.
    pub compress: bool,
}

/// Tells when a connection over which another host reads has ended: whether that host has ended it
/// as one does that needs no more. An error: the pager is gone.
pub type Served = oneshot::Receiver<bool>;
