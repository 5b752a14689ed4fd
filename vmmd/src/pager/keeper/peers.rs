//! What the keeper does about pagers of other hosts.

use super::{
    super::{
        error::PagerError,
        holders::Fault,
        order::{Order, Served, Serving},
    },
    Keeper,
};
use patina_control::{
    best_effort,
    pager::{FromPeers, Id, ToPager, ToPeers},
};
use patina_daemon::chain;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

/// How soon a connection to another host's pager that broke is made anew: at first, and at last
/// when it breaks again and again.
const RECONNECT: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// One that has lasted so long begins with the shortest time again.
const LASTING: Duration = Duration::from_secs(30);

/// When a connection to a pager broke last, and how long it was waited then.
pub(super) type Losses = HashMap<Id, (Instant, Duration)>;

impl Keeper {
    /// Has the pager serve layers to another host.
    pub(super) async fn serve(
        &mut self,
        serving: Serving,
        answer: oneshot::Sender<Result<Served, PagerError>>,
    ) -> Result<(), PagerError> {
        let Serving { connection, layers, stream, credential, compress } = serving;
        let Some(pager) = &self.pager else {
            best_effort(answer.send(Err(PagerError::Closed)), "nobody waits for it any longer");
            return Ok(());
        };
        self.serving.insert(connection.clone(), answer);
        let serve = ToPager::Peers(ToPeers::Serve { connection, layers, credential, compress });
        pager.talk.send(&serve, &[stream.as_fd()]).await
    }

    /// A connection to another host's pager broke a moment ago.
    pub(super) fn connect_peer(&mut self, id: &Id) {
        // If one is missing, nothing is read there any longer, or the next pager connects to it.
        if let (Some(peer), Some(pager)) = (self.book.peer(id), &mut self.pager) {
            pager.dial(&peer, &self.book);
        }
    }

    /// There are connections to another host's pager, or there can be none.
    pub(super) async fn dialled(
        &mut self,
        id: Id,
        streams: io::Result<[OwnedFd; 2]>,
    ) -> Result<(), PagerError> {
        let Some(pager) = self.pager.as_ref().filter(|pager| pager.peers.contains(&id)) else {
            return Ok(());
        };
        match (streams, self.book.peer(&id)) {
            (Ok(streams), Some(peer)) => return pager.connect(&peer, streams).await,
            (Err(error), Some(_)) => self.lose_peer(id, &chain(&error)),
            (_, None) => {}
        }
        Ok(())
    }

    /// There is no connection to another host's pager: another one is made in a while.
    fn lose_peer(&mut self, peer: Id, reason: &str) {
        if !self.pager.as_mut().is_some_and(|pager| pager.peers.remove(&peer)) {
            return;
        }
        tracing::warn!(%peer, reason, "there is no connection to another host's pager; it is made anew");
        let wait = wait(&mut self.losses, &peer, Instant::now());
        self.seek(&peer, if wait > RECONNECT { Fault::BrokenAgain } else { Fault::Broken });
        let book = Arc::clone(&self.book);
        tokio::spawn(async move {
            sleep(wait).await;
            book.order(Order::ConnectPeer(peer));
        });
    }

    /// Nothing is read at another host's pager any longer.
    pub(super) async fn forget_peer(&mut self, peer: Id) -> Result<(), PagerError> {
        self.losses.remove(&peer);
        let is_connected = self.pager.as_mut().is_some_and(|pager| pager.peers.remove(&peer));
        if is_connected { self.send(&ToPager::Peers(ToPeers::Forget { peer })).await } else { Ok(()) }
    }

    pub(super) fn hear_of_peer(&mut self, message: FromPeers) {
        match message {
            FromPeers::Serving { connection } => {
                let (ended, served) = oneshot::channel();
                self.served.insert(connection.clone(), ended);
                self.answer_serving(&connection, Ok(served));
            }
            FromPeers::Refused { name, reason } => {
                tracing::warn!(%name, reason, "the pager refuses a connection to another host's");
                let refused = PagerError::RefusedPeer { name: name.to_string(), reason };
                self.answer_serving(&name, Err(refused));
            }
            FromPeers::Lost { peer, reason } => self.lose_peer(peer, &reason),
            FromPeers::Ended { connection, reason, is_done } => {
                tracing::debug!(%connection, reason, is_done, "a connection of another host's pager has ended");
                if let Some(ended) = self.served.remove(&connection) {
                    best_effort(ended.send(is_done), "nobody waits for it any longer");
                }
            }
            FromPeers::Failing { peer, reason } => {
                tracing::warn!(%peer, reason, "another host fails to give what it has lent");
                self.seek(&peer, Fault::Failing);
            }
            FromPeers::Connected { .. }
            | FromPeers::Replaced { .. }
            | FromPeers::GivenUp { .. }
            | FromPeers::Forgotten { .. } => {}
        }
    }

    fn answer_serving(&mut self, connection: &Id, answer: Result<Served, PagerError>) {
        if let Some(waiting) = self.serving.remove(connection) {
            best_effort(waiting.send(answer), "nobody waits for it any longer");
        }
    }
}

/// How long to wait before a connection that broke is made anew.
fn wait(losses: &mut Losses, peer: &Id, now: Instant) -> Duration {
    let last = losses.get(peer).filter(|(at, wait)| now.duration_since(*at) < *wait + LASTING);
    let wait = last.map_or(RECONNECT, |(_, wait)| (*wait * 2).min(RECONNECT_MAX));
    losses.insert(peer.clone(), (now, wait));
    wait
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_breaks_again_and_again_is_waited_for_ever_longer() {
        let (mut losses, peer) = (Losses::new(), Id::try_from("peer".to_owned()).unwrap());
        let mut next = |after: Duration| {
            let now = Instant::now() + after;
            wait(&mut losses, &peer, now)
        };
        let waits: Vec<_> = (0..8).map(|_| next(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(next(LASTING + RECONNECT_MAX), RECONNECT);
    }
}
