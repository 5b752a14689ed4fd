//! The layers that other hosts read from this one.
//!
//! A lease keeps the layers of one generation for one other host.

use super::error::{LEASES_MAX, TooManyLeases};
use crate::pager::book::LazyLayer;
use patina_control::pager::Credential;
use patina_daemon::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use uuid::Uuid;

/// The leases that this host has given.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<Uuid, Lease>>);

#[derive(Debug)]
struct Lease {
    layers: Vec<Arc<LazyLayer>>,
    credential: Credential,
    connections: usize,
    /// Counts the connections that there have been: who waited finds out whether one came.
    begun: u64,
}

impl Leases {
    /// Lends layers to who has the credential.
    ///
    /// # Errors
    /// Too many are lent.
    pub fn give(&self, layers: Vec<Arc<LazyLayer>>, credential: Credential) -> Result<Uuid, TooManyLeases> {
        let id = Uuid::new_v4();
        let mut leases = lock(&self.0);
        if leases.len() >= LEASES_MAX {
            return Err(TooManyLeases);
        }
        leases.insert(id, Lease { layers, credential, connections: 0, begun: 0 });
        Ok(id)
    }

    /// Begins a connection: the layers, and who may have them. None: there is no such lease.
    pub fn begin(&self, id: Uuid) -> Option<(Vec<Arc<LazyLayer>>, Credential)> {
        let mut leases = lock(&self.0);
        let lease = leases.get_mut(&id)?;
        lease.connections += 1;
        lease.begun += 1;
        Some((lease.layers.clone(), lease.credential.clone()))
    }

    /// A connection has ended. Returns how many there have been, for [`Self::end_if_idle`].
    pub fn has_ended(&self, id: Uuid) -> Option<u64> {
        let mut leases = lock(&self.0);
        let lease = leases.get_mut(&id)?;
        lease.connections -= 1;
        Some(lease.begun)
    }

    /// Ends a lease that has no connection, if there has been none since there were `begun`.
    pub fn end_if_idle(&self, id: Uuid, begun: u64) {
        let mut leases = lock(&self.0);
        if leases.get(&id).is_some_and(|lease| lease.connections == 0 && lease.begun == begun) {
            let lease = leases.remove(&id);
            drop(leases);
            tracing::debug!(%id, "a generation is not lent any longer");
            // Not under the lock: the pager hears of it.
            drop(lease);
        }
    }

    /// Ends all leases.
    pub fn end_all(&self) {
        let leases = std::mem::take(&mut *lock(&self.0));
        drop(leases);
    }

    /// Ends a lease that nobody will use.
    pub fn end(&self, id: Uuid) {
        let lease = lock(&self.0).remove(&id);
        drop(lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give(leases: &Leases) -> Result<Uuid, TooManyLeases> {
        leases.give(Vec::new(), Credential { certificate: Vec::new(), key: Vec::new() })
    }

    #[test]
    fn a_lease_lasts_as_long_as_somebody_may_read() {
        let leases = Leases::default();
        let id = give(&leases).unwrap();
        assert!(leases.begin(id).is_some() && leases.begin(id).is_some());
        leases.end_if_idle(id, 2);
        assert_eq!(leases.has_ended(id), Some(2));
        leases.end_if_idle(id, 2);
        assert_eq!(leases.has_ended(id), Some(2), "the other connection kept it");
        // Who waited since before a later connection does not end it.
        assert!(leases.begin(id).is_some());
        assert_eq!(leases.has_ended(id), Some(3));
        leases.end_if_idle(id, 2);
        assert!(leases.begin(id).is_some());
        leases.has_ended(id);
        leases.end_if_idle(id, 4);
        assert!(leases.begin(id).is_none() && leases.has_ended(id).is_none());
        for _ in 0..LEASES_MAX {
            give(&leases).unwrap();
        }
        assert!(give(&leases).is_err());
        leases.end_all();
        let again = give(&leases).unwrap();
        assert!(leases.begin(again).is_some());
    }
}
