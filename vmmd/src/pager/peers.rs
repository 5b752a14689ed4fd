//! Pagers of other hosts, whose layers are read here.

use super::{book::Book, order::Order};
use patina_control::pager::Id;
use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Weak},
};

/// Makes connections to another host's pager.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects `stream` to the other pager, beside the caller, until either side ends. If that
    /// cannot be done, the stream ends.
    fn dial(&self, stream: UnixStream);
}

/// Another host's pager, for as long as a layer is read there.
#[derive(Debug)]
pub struct PeerSource {
    id: Id,
    dial: Box<dyn Dial>,
    book: Weak<Book>,
}

impl PeerSource {
    pub(super) fn new(id: Id, dial: Box<dyn Dial>, book: &Arc<Book>) -> Arc<Self> {
        Arc::new(Self { id, dial, book: Arc::downgrade(book) })
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
        if let Some(book) = self.book.upgrade() {
            book.order(Order::ForgetPeer(self.id.clone()));
        }
    }
}
