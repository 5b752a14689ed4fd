//! The layers that other hosts read from this one.
//!
//! A lease keeps the layers of one generation for one other host. It ends some time after the last
//! connection of it: soon ([`DONE_MAX`]) if the other host has hung up, because it has all of them
//! or needs them no longer; later ([`IDLE_MAX`]) if the connection broke, or none has come yet. The
//! VM that was cloned may end before.

use crate::{pager::book::LazyLayer, vms::host::Host};
use patina_daemon::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;
use uuid::Uuid;

/// How long a lease lasts when the other host has hung up: its pager may have been replaced, which
/// takes about a second.
pub const DONE_MAX: Duration = Duration::from_secs(5);
/// How long a lease lasts without a connection: a host that has lost its connections makes new ones
/// much sooner, or its VMs have ended.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Most leases at a time.
const LEASES_MAX: usize = 512;

/// The leases that this host has given.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<Uuid, Lease>>);

#[derive(Debug)]
struct Lease {
    layers: Vec<Arc<LazyLayer>>,
    connections: usize,
    /// Counts the connections that there have been: who waited finds out whether one came.
    begun: u64,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
#[error(
    "lend a generation to another host: {LEASES_MAX} are lent, the most; try again when clones elsewhere have their memory"
)]
pub struct TooManyLeases;

impl Leases {
    fn end_if_idle(&self, id: Uuid, begun: u64) {
        let mut leases = lock(&self.0);
        if leases.get(&id).is_some_and(|lease| lease.connections == 0 && lease.begun == begun) {
            let lease = leases.remove(&id);
            drop(leases);
            tracing::debug!(%id, "a generation is not lent any longer");
            // Not under the lock: the pager hears of it.
            drop(lease);
        }
    }

    /// Ends a lease that nobody will use.
    pub fn end(&self, id: Uuid) {
        let lease = lock(&self.0).remove(&id);
        drop(lease);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }
}

/// A connection of a lease.
#[derive(Debug)]
pub struct Borrowed {
    host: Arc<Host>,
    id: Uuid,
    /// The layers, by the numbers that the other host has for them.
    pub layers: Vec<Arc<LazyLayer>>,
    /// The other host has hung up: probably it needs no more.
    pub is_done: bool,
}

impl Host {
    /// Lends the layers of a generation to another host.
    ///
    /// # Errors
    /// Too many are lent.
    pub(super) fn lend(self: &Arc<Self>, layers: Vec<Arc<LazyLayer>>) -> Result<Uuid, TooManyLeases> {
        let id = Uuid::new_v4();
        {
            let mut leases = lock(&self.leases.0);
            if leases.len() >= LEASES_MAX {
                return Err(TooManyLeases);
            }
            leases.insert(id, Lease { layers, connections: 0, begun: 0 });
        }
        self.end_later(id, 0, IDLE_MAX);
        Ok(id)
    }

    /// Begins a connection of a lease. None: there is no such lease.
    pub(super) fn borrow(self: &Arc<Self>, id: Uuid) -> Option<Borrowed> {
        let mut leases = lock(&self.leases.0);
        let lease = leases.get_mut(&id)?;
        lease.connections += 1;
        lease.begun += 1;
        Some(Borrowed { host: Arc::clone(self), id, layers: lease.layers.clone(), is_done: false })
    }

    fn end_later(self: &Arc<Self>, id: Uuid, begun: u64, after: Duration) {
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(after).await;
            if let Some(host) = host.upgrade() {
                host.leases.end_if_idle(id, begun);
            }
        });
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let begun = {
            let mut leases = lock(&self.host.leases.0);
            let Some(lease) = leases.get_mut(&self.id) else { return };
            lease.connections -= 1;
            lease.begun
        };
        self.host.end_later(self.id, begun, if self.is_done { DONE_MAX } else { IDLE_MAX });
    }
}
