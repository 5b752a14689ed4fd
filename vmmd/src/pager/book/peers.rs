//! The pagers of other hosts, whose layers are read here.

use super::{
    super::{
        error::PagerError, holders::Holders, lender::Lender, order::Order, parts::Parts, peers::PeerSource,
        place::Saved,
    },
    Book, LazyLayer,
};
use crate::process::filling::FillingLayer as _;
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

    /// Who finds other hosts that have a layer.
    pub(in crate::pager) fn holders(&self) -> Option<Arc<dyn Holders>> {
        self.holders.get().cloned()
    }

    /// The layers that are read at the pager of another host, and that are not complete.
    pub(in crate::pager) fn layers_at(&self, id: &Id) -> Vec<Id> {
        let is_there = |parts: &Arc<Parts>| parts.source.peer_source().is_some_and(|peer| peer.id() == id);
        self.layers().into_iter().filter(is_there).map(|parts| parts.id.clone()).collect()
    }

    /// Holds a layer if all of it is here.
    pub(in crate::pager) fn hold_complete(self: &Arc<Self>, id: &Id) -> Option<Arc<LazyLayer>> {
        self.hold(id).filter(|layer| layer.is_complete())
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
