//! What VMs demand of layers: asked of the pager, and kept.

use super::{
    super::{error::PagerError, parts::Parts},
    Keeper,
};
use patina_control::pager::{Id, ToPager};
use patina_daemon::chain;
use std::{fs::File, os::fd::OwnedFd, sync::Arc};
use tokio::task::spawn_blocking;

impl Keeper {
    /// Asks the pager what VMs have demanded of these layers, as far as it has them.
    pub(super) async fn ask_for_demand(&mut self, layers: &[Id]) -> Result<(), PagerError> {
        let Some(pager) = &mut self.pager else { return Ok(()) };
        for layer in layers {
            if pager.given.contains(layer) && pager.asked.insert(layer.clone()) {
                pager.talk.send(&ToPager::Demand { layer: layer.clone() }, &[]).await?;
            }
        }
        Ok(())
    }

    /// The pager has told. When nothing more can be demanded, it is kept.
    pub(super) fn learn_demand(&mut self, layer: &Id, told: Option<OwnedFd>) {
        if let Some(pager) = &mut self.pager {
            pager.asked.remove(layer);
        }
        let leaving = self.leaving.remove(layer);
        let is_final = leaving.is_some() || self.book.is_complete(layer);
        let (Some(parts), Some(told)) = (leaving.or_else(|| self.book.parts(layer)), told) else { return };
        if let Err(error) = parts.demand.learn(&File::from(told)) {
            tracing::warn!(%layer, error = %chain(&error), "what the pager tells of the demand for a layer is ignored");
        }
        if is_final {
            save(parts);
        }
    }

    /// Nobody uses a layer any longer: the pager tells what was demanded, and forgets it.
    pub(super) async fn forget_layer(&mut self, parts: Arc<Parts>) -> Result<(), PagerError> {
        let layer = parts.id.clone();
        // It may have come back since.
        if self.book.parts(&layer).is_none() {
            self.book.place.forget(&layer);
        }
        let is_given = self.pager.as_ref().is_some_and(|pager| pager.given.contains(&layer));
        if is_given {
            self.leaving.insert(layer.clone(), parts);
            self.ask_for_demand(std::slice::from_ref(&layer)).await?;
        }
        self.forget_given(&layer);
        self.send(&ToPager::DropLayer { layer }).await
    }

    /// The pager is gone, and tells nothing more. What it told before is kept.
    pub(super) fn save_demand_of_leaving(&mut self) {
        self.leaving.drain().for_each(|(_, parts)| save(parts));
    }
}

/// Beside the keeper: a disk may be slow, and guests wait for the keeper.
fn save(parts: Arc<Parts>) {
    drop(spawn_blocking(move || parts.demand.save()));
}
