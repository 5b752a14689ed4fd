//! What `vmmd` and its pager say about pagers of other hosts.
//!
//! `vmmd` makes the connections between hosts, and gives them to its pager as connected, blocking
//! stream sockets. What goes over them is in the crate `patina-pager`, module `peer::wire`.

use super::Id;
use serde::{Deserialize, Serialize};

/// Most hosts whose layers a pager reads at a time.
pub const PEERS_MAX: usize = 256;
/// Most connections over which a pager serves its layers.
pub const SERVED_MAX: usize = 512;

/// A layer that another host's pager has: see [`super::ToPager::AddLayer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLayer {
    /// Who has it: see [`ToPeers::Connect`].
    pub peer: Id,
    /// Its place in the list that the other `vmmd` gave its pager: see [`ToPeers::Serve`].
    pub number: u32,
}

/// What `vmmd` sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum ToPeers {
    /// Use two connections to another host's pager: one for what VMs wait for, then one for what is
    /// fetched ahead. They replace earlier ones of the same peer. The answer is
    /// [`FromPeers::Connected`] or [`FromPeers::Refused`].
    Connect {
        /// The peer's name.
        peer: Id,
    },
    /// Forget a peer, and hang up. What its layers still need fails. The answer is
    /// [`FromPeers::Forgotten`], also where there is none.
    Forget {
        /// The peer's name.
        peer: Id,
    },
    /// Answer what another host's pager asks over a connection, which comes with the line. It may
    /// read these layers and no others. A run that is not here yet is read at its source. The
    /// answer is [`FromPeers::Serving`] or [`FromPeers::Refused`].
    Serve {
        /// The connection's name.
        connection: Id,
        /// The layers.
        layers: Vec<Id>,
    },
    /// Hang up. The answer is [`FromPeers::Ended`], also where there is none.
    StopServing {
        /// The connection's name.
        connection: Id,
    },
}

/// What the pager sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum FromPeers {
    /// The connections to a peer are used.
    Connected {
        /// The peer's name.
        peer: Id,
    },
    /// A connection to a peer has broken. Until there are new ones, runs of its layers are waited
    /// for; each wait is bounded.
    Lost {
        /// The peer's name.
        peer: Id,
        /// What broke it.
        reason: String,
    },
    /// A peer is forgotten.
    Forgotten {
        /// The peer's name.
        peer: Id,
    },
    /// A connection is served.
    Serving {
        /// The connection's name.
        connection: Id,
    },
    /// A connection is not served any longer.
    Ended {
        /// The connection's name.
        connection: Id,
        /// The reason.
        reason: String,
    },
    /// What was asked is not done.
    Refused {
        /// The peer's name or the connection's.
        name: Id,
        /// Why, and what to do.
        reason: String,
    },
}
