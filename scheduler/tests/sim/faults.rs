//! What breaks, when, and when it is whole again.

use crate::{dice::Dice, facts::Shared, network::LATENCY};
use scheduler::store::memory::MemoryStore;
use std::time::Duration;
use turmoil::Sim;

/// Something that is broken, and until when.
#[derive(Debug)]
enum Broken {
    Scheduler,
    Daemon(usize),
    Cut(usize),
    Held(usize),
    Disk,
}

/// What breaks and mends things as time passes.
pub struct Faults {
    dice: Dice,
    facts: Shared,
    store: MemoryStore,
    machines: usize,
    next: Duration,
    last: Duration,
    broken: Vec<(Duration, Broken)>,
}

impl Faults {
    /// Until `last`; a story in five is one in which nothing breaks.
    pub fn new(seed: u64, facts: &Shared, store: &MemoryStore, machines: usize, last: Duration) -> Self {
        let mut dice = Dice::new(seed, 77);
        let next = if seed.is_multiple_of(5) { Duration::MAX } else { dice.ms(500, 3_000) };
        Self { dice, facts: facts.clone(), store: store.clone(), machines, next, last, broken: Vec::new() }
    }

    pub fn step(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        while let Some(place) = self.broken.iter().position(|(until, _)| *until <= now || now >= self.last) {
            let (_, broken) = self.broken.remove(place);
            self.mend(sim, &broken);
        }
        if now >= self.next && now < self.last {
            self.next = now + self.dice.ms(200, 3_000);
            self.break_something(sim);
        }
    }

    fn note(&self, sim: &Sim<'_>, text: &str) {
        let mut facts = self.facts.get();
        facts.log.push(format!("{:6} {text}", sim.elapsed().as_millis()));
        // Both count: what fails after something is whole again may have been broken by it.
        facts.sums.faults += 1;
    }

    fn is_down(&self, wanted: &Broken) -> bool {
        self.broken.iter().any(|(_, broken)| format!("{broken:?}") == format!("{wanted:?}"))
    }

    fn break_something(&mut self, sim: &mut Sim<'_>) {
        let machine = usize::try_from(self.dice.roll(self.machines as u64)).unwrap();
        let name = format!("host-{machine}");
        let (broken, most_ms) = match self.dice.roll(10) {
            // Longer than the lease, and longer than a host may be away; or not.
            0..2 => (Broken::Scheduler, 3_000),
            2..4 => (Broken::Daemon(machine), 6_000),
            4..7 => (Broken::Cut(machine), 8_000),
            7..9 => (Broken::Held(machine), 5_000),
            _ => (Broken::Disk, 1_500),
        };
        // What holds messages back and what loses them undo each other.
        let clash = [Broken::Cut(machine), Broken::Held(machine)];
        let is_link = matches!(broken, Broken::Cut(_) | Broken::Held(_));
        if self.is_down(&broken) || (is_link && clash.iter().any(|other| self.is_down(other))) {
            return;
        }
        match &broken {
            Broken::Scheduler => crash(sim, "scheduler"),
            Broken::Daemon(_) => {
                crash(sim, &name);
                let mut facts = self.facts.get();
                (facts.machines[machine].settled, facts.machines[machine].busy) = (false, 0);
                // Either the daemon alone, or the machine with all that runs on it.
                if self.dice.percent(30) {
                    facts.crash(machine);
                }
            }
            Broken::Cut(_) => sim.partition(name.as_str(), "scheduler"),
            Broken::Held(_) => sim.hold(name.as_str(), "scheduler"),
            Broken::Disk => self.store.fail(true),
        }
        let until = sim.elapsed() + self.dice.ms(50, most_ms);
        self.note(sim, &format!("{broken:?} breaks until {}", until.as_millis()));
        self.broken.push((until, broken));
    }

    fn mend(&mut self, sim: &mut Sim<'_>, broken: &Broken) {
        self.note(sim, &format!("{broken:?} is whole again"));
        match broken {
            Broken::Scheduler => sim.bounce("scheduler"),
            Broken::Daemon(machine) => sim.bounce(format!("host-{machine}")),
            Broken::Cut(machine) => sim.repair(format!("host-{machine}"), "scheduler"),
            Broken::Held(machine) => sim.release(format!("host-{machine}"), "scheduler"),
            Broken::Disk => self.store.fail(false),
        }
    }
}

/// A crashed host's connections are closed in an order that is not the same each time: so that the
/// story is, all of them are closed after the same time.
fn crash(sim: &mut Sim<'_>, host: &str) {
    sim.set_max_message_latency(LATENCY.0);
    sim.crash(host);
    sim.set_max_message_latency(LATENCY.1);
}
