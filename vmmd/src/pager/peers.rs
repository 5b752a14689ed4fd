//! Pagers of other hosts, whose layers are read here.

use super::lender::Lender;
use patina_control::pager::Id;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Another host's pager, for as long as a layer is read there.
pub struct PeerSource {
    id: Id,
    lender: Lender,
    forget: Box<dyn Fn(&Id) + Send + Sync>,
}

impl fmt::Debug for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSource")
            .field("id", &self.id)
            .field("lender", &self.lender)
            .finish_non_exhaustive()
    }
}

impl PeerSource {
    /// That of a lender. `forget` is called when no layer is read there any longer.
    #[must_use]
    pub fn new(id: Id, lender: Lender, forget: Box<dyn Fn(&Id) + Send + Sync>) -> Self {
        Self { id, lender, forget }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// How it is reached.
    #[must_use]
    pub fn lender(&self) -> &Lender {
        &self.lender
    }
}

/// What is written of another host that has a layer.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedPeer {
    /// Its name.
    pub id: Id,
    /// How it is reached.
    pub lender: Lender,
    /// The layer's number there.
    pub number: u32,
}

impl Drop for PeerSource {
    fn drop(&mut self) {
        (self.forget)(&self.id);
    }
}
