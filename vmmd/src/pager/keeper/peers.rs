//! What the keeper does about pagers of other hosts.

use super::{
    super::{
        error::PagerError,
        order::{Order, Serving},
    },
    Keeper,
};
use patina_control::{
    best_effort,
    pager::{FromPeers, Id, ToPager, ToPeers},
};
use std::{os::fd::AsFd as _, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::sleep};

/// How soon a connection to another host's pager that broke is made anew.
const RECONNECT: Duration = Duration::from_millis(100);

impl Keeper {
    /// Has the pager serve layers to another host.
    pub(super) async fn serve(
        &mut self,
        serving: Serving,
        answer: oneshot::Sender<Result<(), PagerError>>,
    ) -> Result<(), PagerError> {
        let Serving { connection, layers, stream } = serving;
        let Some(pager) = &self.pager else {
            best_effort(answer.send(Err(PagerError::Closed)), "nobody waits for it any longer");
            return Ok(());
        };
        self.serving.insert(connection.clone(), answer);
        let serve = ToPager::Peers(ToPeers::Serve { connection, layers });
        pager.talk.send(&serve, &[stream.as_fd()]).await
    }

    /// A connection to another host's pager broke a moment ago.
    pub(super) async fn connect_peer(&mut self, id: &Id) -> Result<(), PagerError> {
        match (self.book.peer(id), &mut self.pager) {
            (Some(peer), Some(pager)) => pager.connect(&peer).await,
            // Nothing is read there any longer; or the next pager connects to it.
            _ => Ok(()),
        }
    }

    /// Nothing is read at another host's pager any longer.
    pub(super) async fn forget_peer(&mut self, peer: Id) -> Result<(), PagerError> {
        let is_connected = self.pager.as_mut().is_some_and(|pager| pager.peers.remove(&peer));
        if is_connected { self.send(&ToPager::Peers(ToPeers::Forget { peer })).await } else { Ok(()) }
    }

    pub(super) fn hear_of_peer(&mut self, message: FromPeers) {
        match message {
            FromPeers::Serving { connection } => self.answer_serving(&connection, Ok(())),
            FromPeers::Refused { name, reason } => {
                tracing::warn!(%name, reason, "the pager refuses a connection to another host's");
                let refused = PagerError::RefusedPeer { name: name.to_string(), reason };
                self.answer_serving(&name, Err(refused));
            }
            FromPeers::Lost { peer, reason } => {
                let is_connected = self.pager.as_mut().is_some_and(|pager| pager.peers.remove(&peer));
                if is_connected {
                    tracing::warn!(%peer, reason, "a connection to another host's pager broke; it is made anew");
                    let book = Arc::clone(&self.book);
                    tokio::spawn(async move {
                        sleep(RECONNECT).await;
                        book.order(Order::ConnectPeer(peer));
                    });
                }
            }
            FromPeers::Ended { connection, reason } => {
                tracing::debug!(%connection, reason, "a connection of another host's pager has ended");
            }
            FromPeers::Connected { .. } | FromPeers::Forgotten { .. } => {}
        }
    }

    fn answer_serving(&mut self, connection: &Id, answer: Result<(), PagerError>) {
        if let Some(waiting) = self.serving.remove(connection) {
            best_effort(waiting.send(answer), "nobody waits for it any longer");
        }
    }
}
