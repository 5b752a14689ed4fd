//! A pager that runs.

use super::{
    book::Book,
    error::PagerError,
    order::Order,
    parts::{Opened, Parts},
    peers::PeerSource,
    talk::{PATIENCE, Talk},
};
use crate::process::Process;
use patina_control::pager::{FromPager, Id, PeerLayer, ToPager, ToPeers};
use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

/// A process, the connection to it, and what it has got.
pub struct Running {
    /// The process.
    pub process: Process,
    /// The connection, after the first line.
    pub talk: Talk,
    /// The layers that it has got.
    pub given: HashSet<Id>,
    /// Those of `given` of which it was asked what VMs demand.
    pub asked: HashSet<Id>,
    /// The VMs that it has got.
    pub attached: HashSet<Id>,
    /// The pagers of other hosts that it is connected to.
    pub peers: HashSet<Id>,
}

impl Running {
    /// One that has got nothing yet.
    #[must_use]
    pub fn new(process: Process, talk: Talk) -> Self {
        let [given, asked, attached, peers] = Default::default();
        Self { process, talk, given, asked, attached, peers }
    }

    /// Gives it a layer. If it has it, it only tells of it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn add(&mut self, parts: &Parts, book: &Arc<Book>) -> Result<(), PagerError> {
        let (layer, bytes) = (parts.id.clone(), parts.bytes);
        if !self.given.insert(layer.clone()) {
            return self.talk.send(&ToPager::Layer { layer }, &[]).await;
        }
        let demand = parts.demand.memfd();
        let opened = parts.source.open()?;
        let mut files = vec![parts.memfd.as_fd(), parts.digests.as_fd()];
        let source = match &opened {
            Opened::File(file) => {
                files.push(file.as_fd());
                None
            }
            Opened::Peer(peer, number) => {
                self.dial(peer, book);
                Some(PeerLayer { peer: peer.id().clone(), number: *number })
            }
        };
        files.extend(demand.as_ref().map(|demand| demand.as_fd()));
        let add = ToPager::AddLayer { layer, bytes, has_demand: demand.is_some(), fill: true, source };
        self.talk.send(&add, &files).await
    }

    /// Has connections made to another host's pager, if there are none: [`Order::Dialled`] has
    /// them.
    pub fn dial(&mut self, peer: &PeerSource, book: &Arc<Book>) {
        if !self.peers.insert(peer.id().clone()) {
            return;
        }
        let (id, dialled, book) = (peer.id().clone(), peer.lender().dial(), Arc::clone(book));
        tokio::spawn(async move {
            let dialled = timeout(PATIENCE, dialled).await;
            let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
            book.order(Order::Dialled(id, dialled.unwrap_or_else(late)));
        });
    }

    /// Connects it to another host's pager.
    ///
    /// # Errors
    /// The connection to the own pager broke.
    pub async fn connect(&self, peer: &PeerSource, streams: [OwnedFd; 2]) -> Result<(), PagerError> {
        let credential = peer.lender().credential.clone();
        let connect = ToPager::Peers(ToPeers::Connect { peer: peer.id().clone(), credential });
        self.talk.send(&connect, &streams.each_ref().map(|stream| stream.as_fd())).await
    }

    /// Has it serve a VM that has run so long. It gets one end of the VM's socket, which an earlier
    /// pager may have had, too.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn attach(
        &mut self,
        vm: &Id,
        layers: Vec<Id>,
        age: Duration,
        (socket, is_again): (&OwnedFd, bool),
    ) -> Result<(), PagerError> {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.attached.insert(vm.clone());
        let attach = ToPager::AttachVm { vm: vm.clone(), layers, age_ms, is_again };
        self.talk.send(&attach, &[socket.as_fd()]).await
    }
}

/// What the pager says next, or that it is gone. Without one, waits for ever. May be dropped and
/// called again.
///
/// # Errors
/// It is gone, or the connection broke.
pub async fn hear(pager: &mut Option<Running>) -> Result<(FromPager, Option<OwnedFd>), PagerError> {
    let Some(pager) = pager else { return std::future::pending().await };
    tokio::select! {
        heard = pager.talk.next() => heard,
        gone = pager.process.gone() => Err(gone.err().map_or(PagerError::Closed, PagerError::Io)),
    }
}
