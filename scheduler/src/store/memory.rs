//! A store in memory, which is freed with its last handle. It is for tests and simulations: a
//! scheduler "crashes", and the next one gets the same handle. It can be told to fail.

use super::{Batch, Store, StoreError, Stored};
use crate::core::{record::HostRecord, ticket::Ticket, vmids::VmidRecord};
use patina_daemon::lock;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use uuid::Uuid;

/// A handle; all clones have the same content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    tickets: BTreeMap<Uuid, Ticket>,
    hosts: BTreeMap<Uuid, HostRecord>,
    data: BTreeMap<(Uuid, u32), Vec<u8>>,
    failing: bool,
    vmids: BTreeMap<Uuid, VmidRecord>,
    epochs: u64,
    commits: u64,
    failures: u64,
}

impl MemoryStore {
    fn content(&self) -> MutexGuard<'_, Content> {
        lock(&self.0)
    }

    /// Whether commits fail from now on.
    pub fn fail(&self, failing: bool) {
        self.content().failing = failing;
    }

    /// All tickets.
    #[must_use]
    pub fn tickets(&self) -> Vec<Ticket> {
        self.content().tickets.values().cloned().collect()
    }

    /// How many batches were stored.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.content().commits
    }

    /// How many could not be.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.content().failures
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let content = self.content();
        let tickets = content.tickets.values().cloned().collect();
        let hosts = content.hosts.values().cloned().collect();
        let vmids = content.vmids.values().cloned().collect();
        Ok(Stored { tickets, hosts, vmids, epochs: content.epochs })
    }

    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let mut content = self.content();
        if content.failing {
            content.failures += 1;
            return Err(StoreError::Test);
        }
        content.commits += 1;
        content.epochs = batch.epochs.unwrap_or(content.epochs);
        for ticket in &batch.puts {
            content.tickets.insert(ticket.id, (*ticket).clone());
        }
        for host in &batch.hosts {
            content.hosts.insert(host.id, host.clone());
        }
        for host in &batch.forget_hosts {
            content.hosts.remove(host);
        }
        for counter in &batch.vmids {
            content.vmids.insert(counter.family, counter.clone());
        }
        for family in &batch.forget_vmids {
            content.vmids.remove(family);
        }
        for data in &batch.data {
            let key = (data.ticket, data.vmid);
            if data.bytes.is_empty() {
                content.data.remove(&key);
            } else {
                content.data.insert(key, data.bytes.clone());
            }
        }
        for id in &batch.forgets {
            content.tickets.remove(id);
            content.data.retain(|(ticket, _), _| ticket != id);
        }
        Ok(())
    }

    fn join_data(&mut self, ticket: Uuid, vmid: u32) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.content().data.get(&(ticket, vmid)).cloned())
    }

    fn tidy(&mut self) -> Result<bool, StoreError> {
        Ok(true)
    }
}
