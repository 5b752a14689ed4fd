//! The pagers of other hosts, whose layers are read here.

use super::{
    super::{error::PagerError, lender::Lender, order::Order, parts::Parts, peers::PeerSource, place::Saved},
    Book,
};
use patina_control::pager::Id;
use std::{fs::File, sync::Arc};

impl Book {
    /// The pager of another host, if a layer is read there.
    pub(in crate::pager) fn peer(&self, id: &Id) -> Option<Arc<PeerSource>> {
        let sources = self.layers().into_iter().filter_map(|parts| parts.source.peer_source());
        sources.into_iter().find(|peer| peer.id() == id)
    }

    /// The pager of another host, which is one for all layers that are read there.
    pub(in crate::pager) fn peer_of(self: &Arc<Self>, id: Id, lender: Lender) -> Arc<PeerSource> {
        let book = Arc::downgrade(self);
        let forget = move |id: &Id| {
            if let Some(book) = book.upgrade() {
                book.order(Order::ForgetPeer(id.clone()));
            }
        };
        self.peer(&id).unwrap_or_else(|| Arc::new(PeerSource::new(id, lender, Box::new(forget))))
    }

    /// The parts of a layer that an earlier `vmmd` had.
    ///
    /// # Errors
    /// See [`super::super::place::Place::parts`].
    pub(in crate::pager) fn parts_of(
        self: &Arc<Self>,
        id: &Id,
        saved: Saved,
        memfd: File,
    ) -> Result<Parts, PagerError> {
        self.place.parts(id, (saved, memfd), |id, lender| self.peer_of(id, lender))
    }
}
