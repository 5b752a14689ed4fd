//! The core alone: the cost of a decision with a large cluster.

use super::us;
use patina_control::config::KvmKind;
use patina_snapshot::{cpuid::CpuidEntry, facts::HostFacts};
use scheduler::core::{
    Core,
    api::{Command, Demand, Effect, HostInfo, Named, Options, Present, Reply, UnixMs, Waiter},
    epochs::Epochs,
    present::Facts,
    ticket::{HostId, Policy},
};
use std::collections::BTreeSet;
use std::time::Instant;
use uuid::Uuid;

/// Hosts.
pub const HOSTS: u32 = 10_000;
/// Tickets that are granted.
pub const TICKETS: u32 = 100_000;
/// CPUs of a host: the cluster is three quarters full.
const CPUS: u32 = 40;
const FAMILIES: u32 = 500;
/// VMs of a ticket: 1 to 5.
const VMS: u32 = 5;
const MEMORY_MIB: u32 = 512;

/// Microseconds of each decision.
pub struct Decisions {
    pack: Vec<f64>,
    spread: Vec<f64>,
    parent: Vec<f64>,
    release: Vec<f64>,
}

impl Decisions {
    /// With the figures' names.
    pub fn named(self) -> [(&'static str, Vec<f64>); 4] {
        [
            ("decision_us", self.pack),
            ("decision_spread_us", self.spread),
            ("decision_parent_us", self.parent),
            ("decision_release_us", self.release),
        ]
    }
}

struct Cluster {
    core: Core,
    now: UnixMs,
    calls: u64,
    effects: Vec<Effect>,
}

/// Grants and releases, one after another, in a cluster that stays as full as it is.
pub fn measure(count: usize) -> Decisions {
    let mut cluster = Cluster::new();
    let live: Vec<Uuid> =
        (0..TICKETS).filter_map(|number| cluster.grant(number, Policy::Pack, None).0).collect();
    assert_eq!(live.len(), TICKETS as usize, "the cluster has room for all");
    let (mut pack, mut spread, mut parent, mut release) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut live = std::collections::VecDeque::from(live);
    for number in 0..u32::try_from(count).unwrap_or(u32::MAX) {
        // The oldest goes, so what is free is all over the cluster.
        if let Some(oldest) = live.pop_front() {
            release.push(cluster.release(oldest));
        }
        let policy = if number % 2 == 0 { Policy::Pack } else { Policy::Spread };
        // As guests ask: with the host of their VM, which is preferred. Half of the hosts fit it.
        let of = (number % 4 == 0).then(|| host_id(number % HOSTS));
        let (ticket, took_us) = cluster.grant(number, policy, of);
        live.extend(ticket);
        match (of, policy) {
            (Some(_), _) => parent.push(took_us),
            (None, Policy::Pack) => pack.push(took_us),
            (None, Policy::Spread) => spread.push(took_us),
        }
    }
    Decisions { pack, spread, parent, release }
}

fn host_id(number: u32) -> HostId {
    Uuid::from_u128(u128::from(number) + 1)
}

/// What a host offers: every other one lacks a feature. VMs of those that have it do not fit there.
fn facts(number: u32) -> Facts {
    let leaf =
        |function| CpuidEntry { function, eax: !0, ebx: !0, ecx: !0, edx: !0, ..CpuidEntry::default() };
    let mut cpuid: Vec<_> = (1..=20).map(leaf).collect();
    if number % 2 == 1 {
        cpuid[6].ebx &= !1;
    }
    Facts {
        host: HostFacts { page_bytes: 4096, xcr0: 0x2e7, ..HostFacts::of_cpuid(KvmKind::Vmx, cpuid) },
        lazy_memory: true,
    }
}

impl Cluster {
    fn new() -> Self {
        let options = Options {
            ttl_ms: 3_600_000,
            lease_ms: 0,
            lost_after_ms: 0,
            remember_ms: 3_600_000,
            cpu_percent: 100,
            memory_percent: 100,
            policy: Policy::Pack,
        };
        let now = 1_700_000_000_000;
        let core = Core::new(options, Vec::new(), &[], Epochs::default(), now);
        let mut cluster = Self { core, now, calls: 0, effects: Vec::new() };
        for number in 0..HOSTS {
            let info = HostInfo {
                id: host_id(number),
                name: format!("host-{number}"),
                address: String::new(),
                cpus: CPUS,
                memory_mib: u64::from(CPUS) * u64::from(MEMORY_MIB) * 2,
                max_vms: None,
                cpu_percent: None,
                memory_percent: None,
                identity: None,
                overlay: String::new(),
                facts: Some(Box::new(facts(number))),
                network: String::new(),
            };
            let waiter = cluster.waiter();
            cluster.apply(Command::HostUp { waiter, info, present: Present::default() });
        }
        cluster
    }

    fn waiter(&mut self) -> Waiter {
        self.calls += 1;
        Waiter(self.calls)
    }

    /// Microseconds.
    fn apply(&mut self, command: Command) -> f64 {
        self.effects.clear();
        let started = Instant::now();
        self.core.apply(self.now, command, &mut self.effects);
        us(started)
    }

    /// The ticket, if there was room, and microseconds.
    fn grant(&mut self, number: u32, policy: Policy, parent: Option<HostId>) -> (Option<Uuid>, f64) {
        let vms = 1 + number % VMS;
        let demand = Demand {
            family: Uuid::from_u128(u128::from(number % FAMILIES)),
            request_id: None,
            max_cpus: vms,
            min_vms: vms,
            min_cpus_per_vm: 1,
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            timeout_ms: 0,
            hosts: Vec::new(),
            prefer: parent,
            parent,
            needs: None,
            images: BTreeSet::new(),
            policy: Some(policy),
            ttl_ms: None,
            use_by: None,
        };
        let waiter = self.waiter();
        let took_us = self.apply(Command::Request { waiter, demand });
        let ticket = self.effects.iter().find_map(|effect| match effect {
            Effect::Answer(_, Ok(Reply::Ticket(ticket))) => Some(ticket.id),
            _ => None,
        });
        (ticket, took_us)
    }

    fn release(&mut self, id: Uuid) -> f64 {
        let waiter = self.waiter();
        self.apply(Command::Release(waiter, Named { id, family: None }))
    }
}
