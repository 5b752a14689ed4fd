//! Pagers of other hosts: what `vmmd` wants with them.

use super::{FEW, Server};
use crate::engine::{Engine, EngineError, Happened};
use crate::peer::{Peer, Remote, Service};
use crate::source::RunError;
use patina_control::best_effort;
use patina_control::pager::{
    Credential, FromPeers, Id, PAGER_LAYERS_MAX, PEERS_MAX, PeerLayer, SERVED_MAX, ToPeers,
};
use patina_daemon::chain;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often `vmmd` is told that a peer does not answer.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The peers of a pager.
#[derive(Debug, Default)]
pub(super) struct Peers {
    connected: HashMap<Id, Arc<Peer>>,
    served: HashMap<Id, (u64, Service)>,
    last_service: u64,
    /// When `vmmd` was told last that a peer does not answer.
    told: HashMap<Id, Instant>,
}

impl Peers {
    /// What is to be done from time to time.
    pub(super) fn tick(&mut self, engine: &Engine) {
        let now = Instant::now();
        self.told.retain(|_, at| now.duration_since(*at) < TELL_AGAIN);
        for peer in self.connected.values() {
            if peer.is_stalled(now) && !self.told.contains_key(&peer.id) {
                self.told.insert(peer.id.clone(), now);
                let reason = RunError::Silent.to_string();
                engine.tell(Happened::PeerFailing { peer: peer.id.clone(), reason });
            }
            peer.give_up_late(now);
        }
        engine.give_up_late(now);
    }

    /// The connections over which layers are served.
    pub(super) fn served(&self) -> impl Iterator<Item = &Id> {
        self.served.keys()
    }

    /// A peer whose layers are to be read. It is connected later, or is already.
    pub(super) fn find_or_add(&mut self, id: &Id) -> Result<Arc<Peer>, String> {
        if let Some(peer) = self.connected.get(id) {
            return Ok(Arc::clone(peer));
        }
        if self.connected.len() >= PEERS_MAX {
            return Err(EngineError::Full(PEERS_MAX).to_string());
        }
        let peer = Arc::new(Peer::new(id.clone()));
        self.connected.insert(id.clone(), Arc::clone(&peer));
        Ok(peer)
    }
}

impl Server {
    pub(super) fn follow_about_peers(&mut self, order: ToPeers) -> FromPeers {
        let refused = |name: Id, done: Result<FromPeers, String>| {
            done.unwrap_or_else(|reason| FromPeers::Refused { name, reason })
        };
        match order {
            ToPeers::Connect { peer, credential } => {
                let done = self
                    .connect_peer(&peer, &credential)
                    .map(|()| FromPeers::Connected { peer: peer.clone() });
                refused(peer, done)
            }
            ToPeers::Forget { peer } => {
                if let Some(known) = self.peers.connected.remove(&peer) {
                    known.close();
                }
                FromPeers::Forgotten { peer }
            }
            ToPeers::Replace { layer, source } => {
                let done = self.replace_source(&layer, source);
                refused(layer.clone(), done.map(|()| FromPeers::Replaced { layer }))
            }
            ToPeers::Alone { peer } => {
                self.engine.give_up_on(&peer);
                FromPeers::GivenUp { peer }
            }
            ToPeers::Serve { connection, layers, credential, compress } => {
                let done = self.serve_peer(&connection, &layers, (&credential, compress));
                let done = done.map(|()| FromPeers::Serving { connection: connection.clone() });
                refused(connection, done)
            }
            ToPeers::StopServing { connection } => {
                drop(self.peers.served.remove(&connection));
                FromPeers::Ended { connection, reason: "vmmd has ended it".into(), is_done: false }
            }
        }
    }

    fn connect_peer(&mut self, id: &Id, credential: &Credential) -> Result<(), String> {
        let streams = self.take_streams::<2>()?;
        let peer = self.peers.find_or_add(id)?;
        let engine = Arc::clone(&self.engine);
        let lost = move |peer: &Peer, error: &std::io::Error| {
            engine.tell(Happened::PeerLost { peer: peer.id.clone(), reason: error.to_string() });
        };
        peer.connect(streams, credential, lost).map_err(|error| format!("connect: {error}"))
    }

    fn replace_source(&mut self, layer: &Id, source: PeerLayer) -> Result<(), String> {
        let peer = self.peers.find_or_add(&source.peer)?;
        let source = Arc::new(Remote { peer, layer: source.number });
        let done = self.engine.replace_source(layer, source);
        done.map_err(|error| format!("read layer {layer} elsewhere: {error}"))
    }

    fn serve_peer(
        &mut self,
        id: &Id,
        layers: &[Id],
        (credential, compress): (&Credential, bool),
    ) -> Result<(), String> {
        let [stream] = self.take_streams::<1>()?;
        if self.peers.served.contains_key(id) {
            return Err(EngineError::Exists.to_string());
        }
        if self.peers.served.len() >= SERVED_MAX {
            return Err(EngineError::Full(SERVED_MAX).to_string());
        }
        if !(1..=PAGER_LAYERS_MAX).contains(&layers.len()) {
            return Err(format!("it has {} layers; the limits are 1 and {PAGER_LAYERS_MAX}", layers.len()));
        }
        let find =
            |id: &Id| self.engine.layer(id).ok_or_else(|| format!("layer {id}: {}", EngineError::Unknown));
        let layers = layers.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        self.peers.last_service += 1;
        let (number, engine, name) = (self.peers.last_service, Arc::clone(&self.engine), id.clone());
        let ended = move |error: std::io::Error, is_done| {
            let reason = error.to_string();
            engine.tell(Happened::ServiceEnded { connection: name, number, reason, is_done });
        };
        let service =
            Service::start(Arc::clone(&self.engine), (stream, credential), (layers, compress), ended)
                .map_err(|error| format!("serve: {}", chain(&error)))?;
        self.peers.served.insert(id.clone(), (number, service));
        Ok(())
    }

    /// A connection has ended. None: it was ended before, and `vmmd` knows.
    pub(super) fn service_ended(
        &mut self,
        connection: Id,
        number: u64,
        (reason, is_done): (String, bool),
    ) -> Option<FromPeers> {
        // One of the same name may have come since.
        self.peers.served.get(&connection).filter(|(current, _)| *current == number)?;
        drop(self.peers.served.remove(&connection));
        Some(FromPeers::Ended { connection, reason, is_done })
    }

    /// Takes connections that came with a line. Their threads wait on them.
    fn take_streams<const N: usize>(&mut self) -> Result<[File; N], String> {
        let control = self.control.as_mut().ok_or("vmmd is gone")?;
        let taken: [OwnedFd; N] = control.take().ok_or(FEW)?;
        for stream in &taken {
            let blocking = fcntl_getfl(stream).map(|flags| flags - OFlags::NONBLOCK);
            best_effort(
                blocking.and_then(|flags| fcntl_setfl(stream, flags)),
                "one that fails here is no stream, and ends at once",
            );
        }
        Ok(taken.map(File::from))
    }
}
