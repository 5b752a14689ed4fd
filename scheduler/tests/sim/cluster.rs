//! A story: a scheduler, three hosts with two families each, a copy of one of them, and what
//! breaks.

use crate::{
    copy,
    daemon::Daemon,
    dice::Dice,
    facts::{self, Facts, Machine, Shared, Sums},
    family,
    faults::Faults,
    network, operator,
};
use patina_proto::v1::VmEnd;
use scheduler::{
    core::{
        api::Options,
        ticket::{Policy, State, Ticket},
    },
    engine::{self, Engine, clock::Clock},
    store::memory::MemoryStore,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tokio::time::sleep;
use uuid::Uuid;

/// How long families begin new things, and things break.
pub const ACTIVE: Duration = Duration::from_secs(12);
/// When all is quiet: what was begun has ended, or was given up.
const QUIET: Duration = Duration::from_secs(60);
/// What the scheduler's clock shows at the beginning.
const BEGIN_UNIX_MS: u64 = 1_700_000_000_000;
/// How long a host may be silent before it is suspect, and before it is lost.
const LEASE_MS: u64 = 1_500;
pub const LOST_AFTER_MS: u64 = 4_000;
const MACHINES: [u32; 3] = [4, 6, 8];
pub const FAMILIES: u64 = 2;

/// What has come of a seed.
pub struct Story {
    pub wrong: Vec<String>,
    pub log: Vec<String>,
    pub sums: Sums,
}

fn options() -> Options {
    Options {
        ttl_ms: 2_000,
        lease_ms: LEASE_MS,
        lost_after_ms: LOST_AFTER_MS,
        remember_ms: 3_600_000,
        cpu_percent: 100,
        memory_percent: 100,
        policy: Policy::Pack,
    }
}

async fn scheduler(facts: Shared, store: MemoryStore) -> turmoil::Result {
    let passed = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis())?;
    let clock = Clock::starting_at(BEGIN_UNIX_MS + passed);
    let (engine, worker) = engine::prepare(Box::new(store), options(), clock)?;
    facts.get().started_ms = passed;
    tokio::spawn(worker.run());
    tokio::spawn(hear(facts, engine.clone()));
    network::serve(engine).await
}

/// Writes down when the scheduler has heard of which host.
async fn hear(facts: Shared, engine: Engine) {
    loop {
        for host in engine.hosts().await.unwrap_or_default() {
            let mut facts = facts.get();
            let is_copy = host.info.identity.is_some_and(|identity| identity.machine == copy::MACHINE);
            let machine = facts.machines.iter_mut().find(|machine| machine.id == host.info.id && !is_copy);
            if let Some(machine) = machine {
                let heard_ms = host.seen_unix_ms.saturating_sub(BEGIN_UNIX_MS);
                machine.heard_ms = machine.heard_ms.max(heard_ms);
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// A host's daemon, from its start to its crash. VMs that it finds running go on with what they
/// were about, and end some time.
async fn host(facts: Shared, machine: usize, mut dice: Dice) -> turmoil::Result {
    let found: Vec<_> = facts.get().machines[machine].running.values().cloned().collect();
    let daemon = Daemon::start(&facts, machine);
    tokio::spawn(Arc::clone(&daemon).watch());
    tokio::spawn(family::make_parts(Arc::clone(&daemon)));
    let busy = family::go_on(&daemon, &mut dice);
    let idle = found.into_iter().filter(|clone| !busy.contains(&(clone.ticket.clone(), clone.vmid)));
    for clone in idle {
        let (daemon, life) = (Arc::clone(&daemon), dice.ms(0, 15_000));
        let stays = dice.percent(20);
        tokio::spawn(async move {
            sleep(life).await;
            let facts = daemon.facts.clone();
            if !stays && facts.get().is_running(machine, &clone.ticket, clone.vmid) {
                daemon.end(&clone, VmEnd::Ended);
            }
        });
    }
    for number in 0..FAMILIES {
        tokio::spawn(family::live(Arc::clone(&daemon), number, Dice::new(dice.roll(u64::MAX), number)));
    }
    std::future::pending().await
}

/// Tells the story of a seed.
pub fn tell(seed: u64) -> Story {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(QUIET * 2)
        .tick_duration(Duration::from_millis(5))
        .min_message_latency(network::LATENCY.0)
        .max_message_latency(network::LATENCY.1)
        .tcp_capacity(4096)
        .build();
    let machines = MACHINES.iter().enumerate();
    let machine = |(number, cpus): (usize, &u32)| Machine::new(Uuid::from_u128(1 + number as u128), *cpus);
    let store = MemoryStore::default();
    let facts = Shared::with(machines.map(machine).collect(), &store);
    let of_scheduler = (facts.clone(), store.clone());
    sim.host("scheduler", move || scheduler(of_scheduler.0.clone(), of_scheduler.1.clone()));
    for number in 0..MACHINES.len() {
        let facts = facts.clone();
        let life = Arc::new(AtomicU64::new(0));
        sim.host(format!("host-{number}"), move || {
            let life = life.fetch_add(1, Ordering::Relaxed);
            // What was under way with the daemon's last life is not any more.
            host(facts.clone(), number, Dice::new(seed, 1000 * (1 + number as u64) + life))
        });
    }
    // Where nothing breaks, nothing is refused that fits.
    if !seed.is_multiple_of(5) {
        let facts = facts.clone();
        sim.host("operator", move || operator::work(facts.clone(), Dice::new(seed, 55)));
    }
    let of_copy = facts.clone();
    sim.host("copy", move || copy::work(of_copy.clone(), Dice::new(seed, 66)));
    let mut seen = 0;
    let mut faults = Faults::new(seed, &facts, &store, MACHINES.len(), ACTIVE);
    while sim.elapsed() < QUIET && !(sim.elapsed() > ACTIVE && is_quiet(&facts.get(), &store.tickets())) {
        faults.step(&mut sim);
        if let Err(error) = sim.step() {
            facts.get().wrong.push(format!("a host has ended: {error}"));
            break;
        }
        if store.commits() > seen {
            seen = store.commits();
            facts.get().look(u64::try_from(sim.elapsed().as_millis()).unwrap(), LOST_AFTER_MS);
        }
    }
    let mut end = facts.get();
    end.sums.running_at_end = end.machines.iter().map(|machine| machine.running.len() as u64).sum();
    check_quiet(&mut end, &store.tickets());
    Story { wrong: end.wrong.clone(), log: end.log.clone(), sums: end.sums }
}

/// The clones of a machine that live, as the ledger has it.
fn known(tickets: &[Ticket], machine: &Machine) -> BTreeSet<facts::Clone> {
    let used = tickets.iter().filter(|ticket| ticket.state == State::Used);
    let live =
        used.flat_map(|ticket| ticket.live().map(|(vmid, host)| (host, (ticket.id.to_string(), vmid))));
    live.filter(|(host, _)| *host == machine.id).map(|(_, clone)| clone).collect()
}

fn really(machine: &Machine) -> BTreeSet<facts::Clone> {
    machine.running.keys().cloned().collect()
}

fn is_quiet(facts: &Facts, tickets: &[Ticket]) -> bool {
    let same = |machine: &Machine| machine.settled && known(tickets, machine) == really(machine);
    facts.arriving().is_empty()
        && facts.machines.iter().all(|machine| machine.busy == 0 && machine.parts.is_empty() && same(machine))
        && tickets.iter().all(|ticket| ticket.state != State::Granted && ticket.vms_to_come() == 0)
}

/// What has to be when everything is whole and nobody does anything.
fn check_quiet(facts: &mut Facts, tickets: &[Ticket]) {
    let mut wrong = Vec::new();
    let mut requests = BTreeMap::new();
    for ticket in tickets {
        if ticket.state == State::Granted {
            wrong.push(format!("ticket {} is still granted", ticket.id));
        }
        if ticket.vms_to_come() > 0 {
            wrong.push(format!("a part of ticket {} is still granted", ticket.id));
        }
        if let Some(other) = requests.insert(&ticket.request_id, ticket.id) {
            wrong.push(format!("a request was granted both {} and {other}", ticket.id));
        }
    }
    for (ticket, vmid) in facts.arriving() {
        wrong.push(format!("VM {vmid} still waits for the others of {ticket}"));
    }
    for machine in &facts.machines {
        if machine.busy > 0 {
            wrong.push(format!("{} families on {} are in the middle of something", machine.busy, machine.id));
        }
        if !machine.settled {
            wrong.push(format!("machine {} is not registered, or has ends to say", machine.id));
        }
        let (known, really) = (known(tickets, machine), really(machine));
        if known != really {
            wrong.push(format!("on {} the ledger has {known:?}, and {really:?} run", machine.id));
        }
    }
    facts.wrong.extend(wrong);
}
