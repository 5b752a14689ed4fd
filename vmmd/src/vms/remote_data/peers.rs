//! Connections to the vmmds of other hosts.

use crate::pager::lender::target;
use patina_daemon::{lock, tls::Security};
use patina_proto::v1::host_peer_client::HostPeerClient;
use scheduler::client::{self, TargetError};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tonic::transport::Channel;

/// Longest answer of another host: 256 clones.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Most hosts whose connections are kept. With one more, all are let go of: they are made anew as
/// they are needed.
const KEPT_MAX: usize = 256;

/// How other hosts are called, and where they find this one.
#[derive(Debug, Clone)]
pub struct Peers {
    own_address: String,
    security: Security,
    /// By address. A handshake takes as long as some calls do.
    kept: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Peers {
    /// For the host at `own_address`, as it tells the scheduler.
    #[must_use]
    pub fn new(own_address: String, security: Security) -> Self {
        Self { own_address, security, kept: Arc::default() }
    }

    /// Where other hosts find this one.
    #[must_use]
    pub fn own_address(&self) -> &str {
        &self.own_address
    }

    /// The vmmd at an address: `unix:PATH` or `tcp:HOST:PORT`. It is connected to when it is
    /// called; the connection is kept, and made anew when it breaks.
    ///
    /// # Errors
    /// It is no address, or the security of this host does not allow it.
    pub fn client(&self, address: &str) -> Result<HostPeerClient<Channel>, TargetError> {
        let mut kept = lock(&self.kept);
        let channel = match kept.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = client::channel(&target(address)?, &self.security)?;
                if kept.len() >= KEPT_MAX {
                    kept.clear();
                }
                kept.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        drop(kept);
        Ok(HostPeerClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES))
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::new(String::new(), Security::UnixOnly)
    }
}
