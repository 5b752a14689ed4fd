//! How long a decision takes with many hosts and tickets.

use super::world::{BEGIN, demand, id, info, named, options};
use crate::core::{
    Core,
    api::{Command, Demand, Effect, Options, Present, Reply, Waiter},
    epochs::Epochs,
    ticket::Policy,
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use uuid::Uuid;

const HOSTS: u128 = 10_000;
const TICKETS: u64 = 100_000;
const DECISIONS: u64 = 100_000;

struct Bench {
    core: Core,
    effects: Vec<Effect>,
    seed: u64,
    waiter: u64,
    taken: Vec<Duration>,
}

impl Bench {
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn apply(&mut self, command: Command) {
        self.effects.clear();
        let begun = Instant::now();
        self.core.apply(BEGIN, command, &mut self.effects);
        self.taken.push(begun.elapsed());
    }

    fn request(&mut self, demand: Demand) -> Option<Uuid> {
        self.waiter += 1;
        self.apply(Command::Request { waiter: Waiter(self.waiter), demand });
        self.effects.iter().find_map(|effect| match effect {
            Effect::Answer(_, Ok(Reply::Ticket(ticket))) => Some(ticket.id),
            _ => None,
        })
    }

    fn percentile(&mut self, percent: usize) -> Duration {
        self.taken.sort_unstable();
        self.taken[self.taken.len() * percent / 100]
    }
}

fn some(bench: &mut Bench, policy: Policy) -> Demand {
    let vms = 1 + u32::try_from(bench.random(4)).unwrap();
    let vcpus = 1 + u32::try_from(bench.random(3)).unwrap();
    Demand {
        family: id(1 + u128::from(bench.random(1000))),
        vcpus,
        memory_mib: 64 << bench.random(3),
        policy: Some(policy),
        max_cpus: vms * vcpus,
        ..demand(1, 1)
    }
}

#[test]
#[ignore = "measures; run it in release"]
fn decisions_take_microseconds() {
    for policy in [Policy::Pack, Policy::Spread] {
        let options = Options { lease_ms: 0, ..options() };
        let core = Core::new(options, Vec::new(), Epochs::default(), BEGIN);
        let mut bench = Bench { core, effects: Vec::new(), seed: 1, waiter: 0, taken: Vec::new() };
        for host in 1..=HOSTS {
            let mut info = info(host, 64 + u32::try_from(host % 16).unwrap() * 4);
            info.memory_mib *= 4;
            let waiter = Waiter(u64::MAX - u64::try_from(host).unwrap());
            bench.apply(Command::HostUp { waiter, info, present: Present::default() });
        }
        let mut held = VecDeque::new();
        while held.len() < usize::try_from(TICKETS).unwrap() {
            let demand = some(&mut bench, policy);
            held.push_back(bench.request(demand).expect("there is room"));
        }
        bench.taken.clear();
        for _ in 0..DECISIONS {
            let place = usize::try_from(bench.random(TICKETS)).unwrap() % held.len();
            held.swap(0, place);
            let oldest = held.pop_front().unwrap();
            bench.waiter += 1;
            bench.apply(Command::Release(Waiter(bench.waiter), named(oldest)));
            let demand = some(&mut bench, policy);
            held.push_back(bench.request(demand).expect("there is room"));
        }
        let sum: Duration = bench.taken.iter().sum();
        let mean = sum / u32::try_from(bench.taken.len()).unwrap();
        let (p50, p99) = (bench.percentile(50), bench.percentile(99));
        println!("{policy:?}: mean {mean:?}, p50 {p50:?}, p99 {p99:?}");
        assert!(mean < Duration::from_micros(50), "a decision takes {mean:?}");
    }
}
