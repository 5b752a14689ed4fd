//! The scheduler's metrics. [`patina_daemon::http`] serves them.

use crate::core::{
    record::Scheduling,
    state::{Counts, HostState, Standing},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{sync::atomic::AtomicU64, time::Duration};

/// A label that says why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// A label that says where a ticket stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// A label that says what a host has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

type Amount = Gauge<u64, AtomicU64>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    grants: Counter,
    refusals: Family<Reason, Counter>,
    commit_seconds: Histogram,
    batch_calls: Histogram,
    store_failures: Counter,
    tickets: Family<State, Amount>,
    waiting: Amount,
    hosts: Amount,
    hosts_alive: Amount,
    hosts_by_state: Family<State, Amount>,
    hosts_closed: Amount,
    capacity: Family<Resource, Amount>,
    held: Family<Resource, Amount>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("patina_scheduler"),
            grants: Counter::default(),
            refusals: Family::default(),
            // From 32 us to a second.
            commit_seconds: Histogram::new(exponential_buckets(32e-6, 2.0, 16)),
            batch_calls: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            store_failures: Counter::default(),
            tickets: Family::default(),
            waiting: Gauge::default(),
            hosts: Gauge::default(),
            hosts_alive: Gauge::default(),
            hosts_by_state: Family::default(),
            hosts_closed: Gauge::default(),
            capacity: Family::default(),
            held: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "grants",
            "Tickets granted, or given again for the same request",
            self.grants.clone(),
        );
        registry.register("refusals", "Calls refused, by reason", self.refusals.clone());
        let help = "Time that a batch took to be stored";
        registry.register_with_unit("commit", help, Unit::Seconds, self.commit_seconds.clone());
        registry.register("batch_calls", "Messages of a batch", self.batch_calls.clone());
        registry.register("store_failures", "Batches that could not be stored", self.store_failures.clone());
        registry.register("tickets", "Tickets, by state", self.tickets.clone());
        registry.register("waiting", "Requests in the queue", self.waiting.clone());
        registry.register("hosts", "Hosts that are known", self.hosts.clone());
        registry.register("hosts_alive", "Hosts that are registered", self.hosts_alive.clone());
        let help = "Hosts by state (up, suspect, lost)";
        registry.register("hosts_by_state", help, self.hosts_by_state.clone());
        let help = "Hosts that are cordoned or draining";
        registry.register("hosts_cordoned", help, self.hosts_closed.clone());
        let help = "What hosts that are registered may be granted, overcommit included (cpus, memory_mib)";
        registry.register("capacity", help, self.capacity.clone());
        let help = "What tickets hold of hosts that are registered (cpus, memory_mib, vms)";
        registry.register("held", help, self.held.clone());
    }

    /// A ticket was granted.
    pub(crate) fn granted(&self) {
        self.grants.inc();
    }

    /// A call was refused.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// A batch was stored.
    pub(crate) fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// A batch of so many messages was taken.
    pub(crate) fn batch(&self, messages: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a batch is small")]
        self.batch_calls.observe(messages as f64);
    }

    /// A batch could not be stored.
    pub(crate) fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// All of it as text, with what the ledger and the hosts have now.
    #[must_use]
    pub fn text(&self, counts: &Counts, hosts: &[HostState]) -> String {
        self.count(counts, hosts);
        let mut text = String::new();
        // Writing to a String does not fail.
        if text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("the metrics cannot be written as text");
        }
        text
    }

    fn count(&self, counts: &Counts, hosts: &[HostState]) {
        let states = [
            ("granted", counts.granted),
            ("used", counts.used),
            ("released", counts.released),
            ("expired", counts.expired),
            ("fenced", counts.fenced),
        ];
        for (state, count) in states {
            self.tickets.get_or_create(&State { state }).set(count);
        }
        self.waiting.set(counts.waiting);
        self.hosts.set(counts.hosts);
        self.hosts_alive.set(counts.hosts_alive);
        for (state, standing) in
            [("up", Standing::Up), ("suspect", Standing::Suspect), ("lost", Standing::Lost)]
        {
            let count = hosts.iter().filter(|host| host.standing == standing).count();
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.hosts_by_state.get_or_create(&State { state }).set(count);
        }
        let closed = hosts.iter().filter(|host| host.scheduling != Scheduling::Open).count();
        self.hosts_closed.set(u64::try_from(closed).unwrap_or(u64::MAX));
        let sum = |of: fn(&HostState) -> u64| hosts.iter().filter(|host| host.is_up()).map(of).sum::<u64>();
        let capacity = [("cpus", sum(|host| host.cpus.into())), ("memory_mib", sum(|host| host.memory_mib))];
        for (resource, amount) in capacity {
            self.capacity.get_or_create(&Resource { resource }).set(amount);
        }
        let held = [
            ("cpus", sum(|host| host.held_cpus.into())),
            ("memory_mib", sum(|host| host.held_memory_mib)),
            ("vms", sum(|host| host.held_vms.into())),
        ];
        for (resource, amount) in held {
            self.held.get_or_create(&Resource { resource }).set(amount);
        }
    }
}
