//! Lends the layers of generations to other hosts.
//!
//! A lease ends some time after the last connection of it: soon ([`DONE_MAX`]) if the other host
//! has hung up, because it has all of them or needs them no longer; later ([`IDLE_MAX`]) if the
//! connection broke, or none has come yet. The VM that was cloned may end before.

use crate::{
    pager::book::LazyLayer,
    vms::{host::Host, remote_data::error::PrepareError},
};
use patina_control::pager::Credential;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use uuid::Uuid;

/// How long a lease lasts when the other host has hung up: its pager may have been replaced, which
/// takes about a second.
pub const DONE_MAX: Duration = Duration::from_secs(5);
/// How long a lease lasts without a connection: a host that has lost its connections makes new ones
/// much sooner, or its VMs have ended.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

/// A connection of a lease.
#[derive(Debug)]
pub struct Borrowed {
    host: Arc<Host>,
    id: Uuid,
    /// The layers, by the numbers that the other host has for them.
    pub layers: Vec<Arc<LazyLayer>>,
    /// By which both pagers know each other.
    pub credential: Credential,
    /// The other host has hung up: probably it needs no more.
    pub is_done: bool,
}

impl Host {
    /// Lends the layers of a generation to another host, which gets the credential.
    ///
    /// # Errors
    /// Too many are lent, or there is no randomness.
    pub(super) fn lend(
        self: &Arc<Self>,
        layers: Vec<Arc<LazyLayer>>,
    ) -> Result<(Uuid, Credential), PrepareError> {
        let credential = patina_pki::credential()?;
        let id = self.leases.give(layers, credential.clone())?;
        self.end_later(id, 0, IDLE_MAX);
        Ok((id, credential))
    }

    /// Begins a connection of a lease. None: there is no such lease.
    pub(super) fn borrow(self: &Arc<Self>, id: Uuid) -> Option<Borrowed> {
        let (layers, credential) = self.leases.begin(id)?;
        Some(Borrowed { host: Arc::clone(self), id, layers, credential, is_done: false })
    }

    /// `vmmd` stops: nobody can read here any longer.
    pub fn stop_lending(&self) {
        self.leases.end_all();
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
        if let Some(begun) = self.host.leases.has_ended(self.id) {
            self.host.end_later(self.id, begun, if self.is_done { DONE_MAX } else { IDLE_MAX });
        }
    }
}
