//! Pagers of other hosts, whose layers are read here.

use futures::future::BoxFuture;
use patina_control::pager::{Credential, Id};
use std::{fmt, io, os::fd::OwnedFd};

/// Makes connections to another host's pager.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects to the other pager twice: for what VMs wait for, and for what is fetched ahead.
    fn dial(&self) -> BoxFuture<'static, io::Result<[OwnedFd; 2]>>;

    /// By which both pagers know each other.
    fn credential(&self) -> &Credential;
}

/// Another host's pager, for as long as a layer is read there.
pub struct PeerSource {
    id: Id,
    dial: Box<dyn Dial>,
    forget: Box<dyn Fn(&Id) + Send + Sync>,
}

impl fmt::Debug for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSource").field("id", &self.id).field("dial", &self.dial).finish_non_exhaustive()
    }
}

impl PeerSource {
    /// One that is reached with `dial`. `forget` is called when no layer is read there any longer.
    #[must_use]
    pub fn new(id: Id, dial: Box<dyn Dial>, forget: Box<dyn Fn(&Id) + Send + Sync>) -> Self {
        Self { id, dial, forget }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// How it is reached.
    #[must_use]
    pub fn way(&self) -> &dyn Dial {
        &*self.dial
    }
}

impl Drop for PeerSource {
    fn drop(&mut self) {
        (self.forget)(&self.id);
    }
}
