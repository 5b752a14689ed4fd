//! What the keeper does when another host fails to give what it has lent.

use super::{
    super::{
        error::PagerError,
        holders::{Fault, Found, Sought},
        order::Order,
        parts::name_of,
    },
    Keeper,
};
use patina_control::pager::{Id, PeerLayer, ToPager, ToPeers};
use patina_daemon::chain;
use std::sync::Arc;

impl Keeper {
    /// Looks for other hosts that have the layers which are read at a peer.
    pub(super) fn seek(&mut self, id: &Id, fault: Fault) {
        let (Some(holders), Some(peer)) = (self.book.holders(), self.book.peer(id)) else {
            return self.book.order(Order::Sought(id.clone()));
        };
        if !self.seeking.insert(id.clone()) {
            return;
        }
        let sought = Sought { layers: self.book.layers_at(id), lender: peer.lender().clone(), fault };
        let (book, id) = (Arc::clone(&self.book), id.clone());
        let found = {
            let (book, id) = (Arc::clone(&book), id.clone());
            move |found| book.order(Order::Found(id.clone(), found))
        };
        tokio::spawn(async move {
            holders.find(sought, Box::new(found)).await;
            book.order(Order::Sought(id));
        });
    }

    /// Another host has layers that are read at a peer: they are read there from now on.
    pub(super) async fn found(&mut self, failed: &Id, found: Found) -> Result<(), PagerError> {
        let Found { lender, layers, connections } = found;
        let (id, address) = (name_of(lender.lease)?, lender.address.clone());
        let peer = self.book.peer_of(id.clone(), lender);
        let mut replaced = Vec::new();
        for (number, layer) in (0..).zip(layers) {
            let Some(parts) = self.book.parts(&layer) else { continue };
            // Another host may have been faster.
            let is_read_there = parts.source.peer_source().is_some_and(|peer| peer.id() == failed);
            if !is_read_there || !parts.source.replace(Arc::clone(&peer), number) {
                continue;
            }
            if let Err(error) = self.book.place.save(&parts) {
                tracing::error!(%layer, error = %chain(&error), "the next vmmd looks for the layer where it was before");
            }
            replaced.push(ToPeers::Replace { layer, source: PeerLayer { peer: id.clone(), number } });
        }
        let (false, Some(pager)) = (replaced.is_empty(), &mut self.pager) else { return Ok(()) };
        tracing::warn!(%failed, address, layers = replaced.len(), "another host takes the place of one that lends layers");
        pager.peers.insert(id);
        pager.connect(&peer, connections).await?;
        for replace in replaced {
            pager.talk.send(&ToPager::Peers(replace), &[]).await?;
        }
        Ok(())
    }

    /// All hosts that may have the layers which are read at a peer were asked.
    pub(super) async fn sought(&mut self, peer: Id) -> Result<(), PagerError> {
        self.seeking.remove(&peer);
        let layers = self.book.layers_at(&peer).len();
        if layers > 0 {
            tracing::warn!(%peer, layers, "no other host has all of the layers that another host fails to give");
        }
        self.send(&ToPager::Peers(ToPeers::Alone { peer })).await
    }
}
