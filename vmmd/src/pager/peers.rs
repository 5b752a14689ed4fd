//! Pagers of other hosts, whose layers are read here.

use patina_control::pager::Id;
use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

/// Makes connections to another host's pager.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects `stream` to the other pager, beside the caller, until either side ends. If that
    /// cannot be done, the stream ends.
    fn dial(&self, stream: UnixStream);
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

    /// Begins a connection. Returns the end that the pager gets.
    ///
    /// # Errors
    /// There is no descriptor.
    pub fn dial(&self) -> io::Result<OwnedFd> {
        let (theirs, ours) = UnixStream::pair()?;
        self.dial.dial(ours);
        Ok(theirs.into())
    }
}

impl Drop for PeerSource {
    fn drop(&mut self) {
        (self.forget)(&self.id);
    }
}
