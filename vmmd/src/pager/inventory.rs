//! Asks a pager that an earlier `vmmd` started what it has.

use super::{
    book::{Book, Inventory, LazyLayer},
    error::PagerError,
    talk::{PATIENCE, Talk},
};
use patina_control::{
    end::{End, EndKind},
    pager::{FromPager, FromPeers, Id, LayerStatus, RUN_BYTES, ToPager},
};
use std::{fs::File, sync::Arc};
use tokio::time::timeout;

/// Asks it. The book has the layers then.
///
/// # Errors
/// The pager does not answer.
pub async fn read(book: &Arc<Book>, mut talk: Talk) -> Result<(Talk, Inventory), PagerError> {
    let reading = async {
        let (mut inventory, mut layers) = (Inventory::default(), Vec::new());
        // What it has comes before the answer.
        talk.send(&ToPager::Status, &[]).await?;
        loop {
            match talk.next().await?.0 {
                FromPager::Layer(status) => layers.push(status),
                FromPager::Vm { vm, .. } => drop(inventory.vms.insert(vm)),
                FromPager::RunFailed { layer, run, reason, vms } => {
                    let lost = vms.into_iter().map(|failed| (failed.vm, data_loss(&layer, run, &reason)));
                    inventory.lost.extend(lost);
                }
                FromPager::Peers(message) => hear_of_peer(&mut inventory, message),
                FromPager::Status(_) => break,
                _ => {}
            }
        }
        for status in layers {
            inventory.layers.extend(take(book, &mut talk, &status).await?);
        }
        Ok::<_, PagerError>(inventory)
    };
    let inventory = timeout(2 * PATIENCE, reading).await.map_err(|_| PagerError::Timeout(2 * PATIENCE))??;
    Ok((talk, inventory))
}

fn hear_of_peer(inventory: &mut Inventory, message: FromPeers) {
    match message {
        FromPeers::Serving { connection } => drop(inventory.connections.insert(connection)),
        FromPeers::Ended { connection, .. } => drop(inventory.connections.remove(&connection)),
        FromPeers::Lost { peer, .. } => drop(inventory.broken.insert(peer)),
        // It is told again for as long as that is so.
        FromPeers::Failing { .. } => {}
        FromPeers::Connected { .. }
        | FromPeers::Replaced { .. }
        | FromPeers::GivenUp { .. }
        | FromPeers::Forgotten { .. }
        | FromPeers::Refused { .. } => {}
    }
}

/// Takes a layer into the book. None: nothing is known of it, so no VM that is known uses it.
async fn take(
    book: &Arc<Book>,
    talk: &mut Talk,
    status: &LayerStatus,
) -> Result<Option<Arc<LazyLayer>>, PagerError> {
    let layer = status.layer.clone();
    let Some(saved) = book.place.load(&layer)? else {
        tracing::warn!(%layer, "nothing is known of a layer of the pager; it is dropped");
        talk.send(&ToPager::DropLayer { layer }, &[]).await?;
        return Ok(None);
    };
    talk.send(&ToPager::Memfd { layer: layer.clone() }, &[]).await?;
    let memfd = loop {
        match talk.next().await? {
            (FromPager::Memfd { layer: of }, Some(memfd)) if of == layer => break File::from(memfd),
            (FromPager::LayerRefused { layer: of, reason }, _) if of == layer => {
                return Err(PagerError::Refused { layer: of.to_string(), reason });
            }
            // Those that are complete are asked again when that matters.
            (other, _) => tracing::debug!(?other, "while the pager is taken over"),
        }
    };
    let held = book.enter(book.parts_of(&layer, saved, memfd)?)?;
    if status.is_complete {
        book.complete(&layer);
    }
    Ok(Some(held))
}

/// The end of a VM that needs a run which cannot be had.
pub fn data_loss(layer: &Id, run: u64, reason: &str) -> End {
    let (start, end) = (run.saturating_mul(RUN_BYTES), run.saturating_add(1).saturating_mul(RUN_BYTES));
    let reason = format!(
        "memory that it needs is lost: run {run} (bytes {start} to {end}) of layer {layer}: {reason}"
    );
    End { kind: EndKind::DataLoss, reason }
}
