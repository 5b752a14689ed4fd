//! A watcher's stream: the current state of every ticket, then each change. A watcher that is so
//! slow that changes are lost gets every ticket again.

use super::{check::PAGE_MAX, convert};
use crate::{
    core::api::{Listing, UnixMs},
    engine::{Change, Changed, Engine, Refusal, Seen},
};
use patina_proto::v1::{Ticket, TicketEvent};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    mpsc,
};
use tonic::Status;
use uuid::Uuid;

pub(super) type Out = mpsc::Sender<Result<TicketEvent, Status>>;

/// Until the watcher goes away.
pub(super) async fn serve(engine: Engine, family: Option<Uuid>, out: Out) {
    let mut watcher = Watcher { engine, family, out, told: BTreeSet::new(), pages: Vec::new() };
    loop {
        // Before the tickets are read: so none of the changes after that is missed.
        let mut changes = watcher.engine.changes();
        let ended = match watcher.tell_all().await {
            Ok(()) => watcher.follow(&mut changes).await,
            Err(ended) => Err(ended),
        };
        match ended {
            Ok(()) => tracing::debug!("a watcher lags behind and begins again"),
            Err(Ended::Watcher) => return,
            Err(Ended::Engine(status)) => {
                if watcher.out.send(Err(status)).await.is_err() {
                    tracing::debug!("the watcher has gone before the scheduler");
                }
                return;
            }
        }
    }
}

/// Why a watch is over.
enum Ended {
    Watcher,
    Engine(Status),
}

struct Watcher {
    engine: Engine,
    family: Option<Uuid>,
    out: Out,
    /// Tickets that the watcher knows: it hears when these are forgotten.
    told: BTreeSet<Uuid>,
    /// Up to which ticket (None: the end) the watcher has read with which batch.
    pages: Vec<(Option<(UnixMs, Uuid)>, u64)>,
}

impl Watcher {
    async fn tell_all(&mut self) -> Result<(), Ended> {
        self.pages.clear();
        let before = std::mem::take(&mut self.told);
        let mut after = None;
        loop {
            let of = Listing { family: self.family, after, most: PAGE_MAX, ..Listing::default() };
            let page = self.engine.tickets(of).await;
            let page = page.map_err(|refusal| Ended::Engine(refusal.into()))?;
            let last = page.tickets.last().map(key).filter(|_| page.tickets.len() == PAGE_MAX);
            self.pages.push((last, page.batch));
            for seen in page.tickets {
                self.tell(seen, true).await?;
            }
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        // What was forgotten while the watcher lagged behind.
        for id in before.difference(&self.told) {
            self.tell_forgotten(*id).await?;
        }
        Ok(())
    }

    /// Returns when changes were lost.
    async fn follow(&mut self, changes: &mut Receiver<Arc<Change>>) -> Result<(), Ended> {
        loop {
            let change = tokio::select! {
                biased;
                change = changes.recv() => change,
                () = self.out.closed() => return Err(Ended::Watcher),
                () = self.engine.stopped() => return Err(Ended::Engine(Refusal::Stopped.into())),
            };
            match change {
                Ok(change) => self.tell_change(&change).await?,
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => {
                    return Err(Ended::Engine(Refusal::Stopped.into()));
                }
            }
        }
    }

    async fn tell_change(&mut self, change: &Change) -> Result<(), Ended> {
        match &change.what {
            Changed::Now(seen) if self.family.is_none_or(|family| family == seen.ticket.family) => {
                if self.read_with(key(seen)) < change.batch {
                    self.tell(Seen::clone(seen), false).await
                } else {
                    Ok(())
                }
            }
            Changed::Now(_) => Ok(()),
            Changed::Forgotten(id) if self.told.remove(id) => self.tell_forgotten(*id).await,
            Changed::Forgotten(_) => Ok(()),
        }
    }

    /// With which batch the page was read that this ticket is on.
    fn read_with(&self, key: (UnixMs, Uuid)) -> u64 {
        let page = self.pages.iter().find(|(last, _)| last.is_none_or(|last| key <= last));
        page.map_or(0, |(_, batch)| *batch)
    }

    async fn tell(&mut self, seen: Seen, initial: bool) -> Result<(), Ended> {
        self.told.insert(seen.ticket.id);
        let ticket = Some(convert::ticket(seen));
        self.say(TicketEvent { ticket, initial, forgotten: false }).await
    }

    async fn tell_forgotten(&self, id: Uuid) -> Result<(), Ended> {
        let ticket = Ticket { id: id.to_string(), ..Ticket::default() };
        self.say(TicketEvent { ticket: Some(ticket), initial: false, forgotten: true }).await
    }

    async fn say(&self, event: TicketEvent) -> Result<(), Ended> {
        self.out.send(Ok(event)).await.map_err(|_| Ended::Watcher)
    }
}

fn key(seen: &Seen) -> (UnixMs, Uuid) {
    (seen.ticket.granted_unix_ms, seen.ticket.id)
}
