//! What `vmmd` and its pager say about pagers of other hosts.
//!
//! `vmmd` makes the connections between hosts, and gives them to its pager as connected, blocking
//! stream sockets. The pagers protect them with TLS, and show each other the same certificate: see
//! [`Credential`]. What goes over them is in the crate `patina-pager`, module `peer::wire`.

use super::Id;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most hosts whose layers a pager reads at a time.
pub const PEERS_MAX: usize = 256;
/// Most connections over which a pager serves its layers.
pub const SERVED_MAX: usize = 512;

/// Longest certificate or private key of a [`Credential`], bytes.
pub const CREDENTIAL_MAX_BYTES: usize = 4096;

/// By which two pagers know each other: both have the same certificate and its key, and take no
/// other one. The host that lends its layers makes one for each lease.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The certificate, in DER.
    #[serde(with = "hexadecimal")]
    pub certificate: Vec<u8>,
    /// The private key, in PKCS #8.
    #[serde(with = "hexadecimal")]
    pub key: Vec<u8>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// Bytes as digits: a line is text.
mod hexadecimal {
    use super::CREDENTIAL_MAX_BYTES;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use std::fmt::Write as _;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits = bytes.iter().fold(String::new(), |mut digits, byte| {
            // Writing to a string does not fail.
            let _written = write!(digits, "{byte:02x}");
            digits
        });
        serializer.serialize_str(&digits)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > CREDENTIAL_MAX_BYTES {
            return Err(D::Error::custom(format!("{} digits", digits.len())));
        }
        let byte = |pair: &[u8; 2]| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
            u8::from_str_radix(pair, 16).ok()
        };
        pairs.iter().map(byte).collect::<Option<_>>().ok_or_else(|| D::Error::custom("no digit"))
    }
}

/// A layer that another host's pager has: see [`super::ToPager::AddLayer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLayer {
    /// Who has it. It need not be connected yet: see [`ToPeers::Connect`].
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
        /// By which both sides know each other.
        credential: Credential,
    },
    /// Forget a peer, and hang up. What its layers still need fails. The answer is
    /// [`FromPeers::Forgotten`], also where there is none.
    Forget {
        /// The peer's name.
        peer: Id,
    },
    /// Read a layer at another peer from now on, which need not be connected yet. What was asked
    /// for and has no answer is asked there. The answer is [`FromPeers::Replaced`], also for a
    /// layer that is complete, or [`FromPeers::Refused`].
    Replace {
        /// The layer's name.
        layer: Id,
        /// Who has it.
        source: PeerLayer,
    },
    /// After [`FromPeers::Failing`]: no other peer has what this one fails to give. Who waits for
    /// that hears that it fails. The answer is [`FromPeers::GivenUp`].
    Alone {
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
        /// By which both sides know each other.
        credential: Credential,
        /// Send runs compressed where that is shorter. Earlier releases do not say.
        #[serde(default)]
        compress: bool,
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
    /// A peer does not answer, says that it cannot read a run, or has sent other bytes than the
    /// digest says. What it was asked for is not given up yet: [`ToPeers::Replace`] has it read
    /// elsewhere.
    Failing {
        /// The peer's name.
        peer: Id,
        /// What is wrong.
        reason: String,
    },
    /// A layer is read at another peer.
    Replaced {
        /// The layer's name.
        layer: Id,
    },
    /// What a peer failed to give is given up.
    GivenUp {
        /// The peer's name.
        peer: Id,
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
        /// Whether the other side has ended it as one does that needs no more.
        is_done: bool,
    },
    /// What was asked is not done.
    Refused {
        /// The name of the peer, the connection or the layer.
        name: Id,
        /// Why, and what to do.
        reason: String,
    },
}
