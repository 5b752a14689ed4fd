//! Registration of a host with its scheduler: the host reports its VMs, and carries out kill
//! orders.

use super::{
    host::Host,
    snapshot_data::room,
    tickets::{running, ticket_of},
    vm::Vm,
};
use crate::{plan::lifecycle::Phase, store::record::Record};
use patina_daemon::chain;
use patina_proto::v1::RunningClone;
use scheduler::host::admission::Vms;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use uuid::Uuid;

/// How long vmmd waits at its start for the scheduler.
const REGISTER_PATIENCE: Duration = Duration::from_secs(3);

impl Host {
    /// Registers this host with its scheduler, now that all that runs is known; waits a while for
    /// that.
    pub async fn register(self: &Arc<Self>) {
        self.tickets.register(VmsOf::new(self));
        if !self.tickets.registered(REGISTER_PATIENCE).await {
            // What runs is looked after; tickets and clones come with the scheduler.
            tracing::error!(
                scheduler = self.tickets.address(),
                "the scheduler does not answer: no clones until it does"
            );
        }
    }

    /// The scheduler wants clones of a ticket ended.
    fn kill_clones(&self, family: Uuid, ticket: Uuid, vmids: &[u32], reason: &str) {
        let is_meant = |vm: &&Arc<Vm>| {
            vm.record.family == family
                && ticket_of(&vm.record) == Some(ticket)
                && vmids.contains(&vm.record.vmid)
                && !matches!(vm.status().phase, Phase::Ended(_))
        };
        let all = self.table.all();
        for vm in all.iter().filter(is_meant) {
            // The scheduler tells those who wait for its end.
            vm.ask_to_end(reason);
        }
    }
}

/// The VMs of a host for its scheduler. The host may be gone before the scheduler has noticed.
#[derive(Debug)]
struct VmsOf(Weak<Host>);

impl VmsOf {
    /// Makes a view of this host's VMs that does not keep the host.
    #[must_use]
    fn new(host: &Arc<Host>) -> Self {
        Self(Arc::downgrade(host))
    }

    fn alive<T>(&self, look: impl Fn(&Record) -> Option<T>) -> Vec<T> {
        let Some(host) = self.0.upgrade() else { return Vec::new() };
        let runs = |vm: &&Arc<Vm>| !matches!(vm.status().phase, Phase::Ended(_));
        let mut alive: Vec<T> =
            host.table.all().iter().filter(runs).filter_map(|vm| look(&vm.record)).collect();
        // Of what cannot be looked at nobody knows that it has ended.
        let broken = host.table.broken();
        let may_run = broken.iter().filter_map(|(_, broken)| broken.record.as_ref());
        alive.extend(may_run.filter(|record| record.ended.is_none()).filter_map(look));
        alive
    }
}

impl Vms for VmsOf {
    fn running(&self) -> Vec<RunningClone> {
        self.alive(running)
    }

    fn masters(&self) -> Vec<String> {
        // First: one that has started by now is found twice rather than never.
        let coming = self.0.upgrade().map(|host| host.coming_masters.all()).unwrap_or_default();
        let mut families = self.alive(|record| (record.vmid == 0).then_some(record.family));
        families.extend(coming);
        families.sort_unstable();
        families.dedup();
        families.iter().map(Uuid::to_string).collect()
    }

    fn free_memory_mib(&self) -> Option<u64> {
        match room::available() {
            Ok(bytes) => Some(bytes >> 20),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "find out how much memory is free");
                None
            }
        }
    }

    fn images(&self) -> Option<Vec<Vec<u8>>> {
        let known = self.0.upgrade()?.known_images.get()?;
        Some(known.iter().map(|digest| digest.as_bytes().to_vec()).collect())
    }

    fn end(&self, family: &str, ticket: &str, vmids: &[u32], reason: &str) {
        match (self.0.upgrade(), family.parse(), ticket.parse()) {
            (Some(host), Ok(family), Ok(ticket)) => host.kill_clones(family, ticket, vmids, reason),
            (None, ..) => {}
            _ => tracing::warn!(family, ticket, "the scheduler names a family or a ticket that is no UUID"),
        }
    }
}
