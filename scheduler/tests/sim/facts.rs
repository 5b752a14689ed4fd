//! What really happens, seen by somebody who sees everything, and what must never be seen.
//!
//! - No ticket is granted for two requests, no request is granted two tickets, no ticket is used for two sets of clones.
//! - On no machine run more VMs at any moment than it has CPUs.
//! - Every call is answered in bounded time.
//! - As long as nothing breaks: no call fails, nobody leaves a barrier before all have come, a join knows all results.
//! - Once everything is healed and quiet, the ledger is exactly what runs.

use patina_proto::v1::RunningClone;
use scheduler::client::admission::Wish;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};
use uuid::Uuid;

/// Ticket and vmid.
pub type Clone = (String, u32);

/// A machine with VMs on it. They go on when its daemon crashes.
#[derive(Debug)]
pub struct Machine {
    pub id: Uuid,
    pub cpus: u32,
    pub running: BTreeMap<Clone, RunningClone>,
    /// The next vmid of each family, and those before it that no clone has had.
    vmids: BTreeMap<Uuid, u32>,
    free: BTreeMap<Uuid, BTreeSet<u32>>,
    /// Whether its daemon is registered, and has no ends to say.
    pub settled: bool,
    /// Families that are in the middle of something.
    pub busy: u64,
}

/// How much of what has happened: a simulation in which nothing happens shows nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sums {
    pub stories: u64,
    pub granted: u64,
    pub refused: u64,
    pub failed: u64,
    pub used: u64,
    pub loose: u64,
    pub unused: u64,
    pub met: u64,
    pub left: u64,
    pub joined: u64,
    pub killed: u64,
    pub doomed: u64,
    pub fenced: u64,
    pub faults: u64,
    pub running_at_end: u64,
}

impl Sums {
    pub fn add(&mut self, other: &Self) {
        self.stories += other.stories;
        self.granted += other.granted;
        self.refused += other.refused;
        self.failed += other.failed;
        self.used += other.used;
        self.loose += other.loose;
        self.unused += other.unused;
        self.met += other.met;
        self.left += other.left;
        self.joined += other.joined;
        self.killed += other.killed;
        self.doomed += other.doomed;
        self.fenced += other.fenced;
        self.faults += other.faults;
        self.running_at_end += other.running_at_end;
    }

    /// Whether enough of everything has happened.
    pub fn check(&self) {
        let all = [
            self.granted,
            self.refused,
            self.failed,
            self.used,
            self.loose,
            self.unused,
            self.met,
            self.left,
            self.joined,
            self.killed,
            self.fenced,
            self.faults,
            self.running_at_end,
        ];
        let least = self.stories / 4;
        assert!(all.iter().all(|sum| *sum > least) && self.doomed > 0, "too little has happened");
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Facts {
    pub machines: Vec<Machine>,
    pub sums: Sums,
    pub wrong: Vec<String>,
    pub log: Vec<String>,
    of_request: BTreeMap<String, String>,
    of_ticket: BTreeMap<String, String>,
    uses: BTreeMap<String, Vec<u32>>,
    /// How often each VM has come to each barrier.
    begun: BTreeMap<(String, u32), u64>,
    /// Clones that were killed, and whoever wanted that knows that they have ended.
    killed: BTreeSet<Clone>,
    /// Members of a group that have not ended.
    groups: BTreeMap<String, BTreeSet<u32>>,
}

/// A handle.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Facts>>);

impl Shared {
    pub fn with(machines: Vec<Machine>) -> Self {
        let mut facts = Facts { machines, ..Facts::default() };
        facts.sums.stories = 1;
        Self(Arc::new(Mutex::new(facts)))
    }

    pub fn get(&self) -> MutexGuard<'_, Facts> {
        // What one host panicked with is found out where all hosts end.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn log(&self, text: impl std::fmt::Display) {
        let ms = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        self.get().log.push(format!("{ms:6} {text}"));
    }

    pub fn wrong(&self, text: impl std::fmt::Display) {
        self.log(format_args!("WRONG: {text}"));
        self.get().wrong.push(text.to_string());
    }
}

impl Machine {
    pub fn new(id: Uuid, cpus: u32) -> Self {
        Self {
            id,
            cpus,
            running: BTreeMap::new(),
            vmids: BTreeMap::new(),
            free: BTreeMap::new(),
            settled: false,
            busy: 0,
        }
    }

    /// Numbers that no clone of the family has had.
    pub fn new_vmids(&mut self, family: Uuid, count: u32) -> Vec<u32> {
        let free = self.free.entry(family).or_default();
        let next = self.vmids.entry(family).or_insert(1);
        let mut take = || {
            free.pop_first().unwrap_or_else(|| {
                *next += 1;
                *next - 1
            })
        };
        (0..count).map(|_| take()).collect()
    }

    /// No clone has had these.
    pub fn free(&mut self, wish: &Wish) {
        self.free.entry(wish.family.parse().unwrap()).or_default().extend(&wish.vmids);
    }
}

impl Facts {
    /// A request was answered with a ticket.
    pub fn granted(&mut self, request: &str, ticket: &str) {
        self.sums.granted += 1;
        let before = self.of_request.insert(request.to_owned(), ticket.to_owned());
        if before.is_some_and(|before| before != ticket) {
            self.wrong.push(format!("request {request} was granted a second ticket, {ticket}"));
        }
        let before = self.of_ticket.insert(ticket.to_owned(), request.to_owned());
        if before.is_some_and(|before| before != request) {
            self.wrong.push(format!("ticket {ticket} was granted twice"));
        }
    }

    pub fn used(&mut self, ticket: &str, vmids: &[u32]) {
        self.sums.used += 1;
        let before = self.uses.insert(ticket.to_owned(), vmids.to_vec());
        if before.is_some_and(|before| before != vmids) {
            self.wrong.push(format!("ticket {ticket} was used twice"));
        }
    }

    pub fn unused(&mut self, ticket: &str) {
        self.sums.unused += 1;
        self.uses.remove(ticket);
    }

    /// A kill is done.
    pub fn killed(&mut self, machine: usize, ticket: &str, vmids: &[u32]) {
        if self.sums.faults > 0 {
            return;
        }
        for vmid in vmids {
            if self.is_running(machine, ticket, *vmid) {
                self.wrong.push(format!("{vmid} of {ticket} runs after it was killed"));
            }
            self.killed.insert((ticket.to_owned(), *vmid));
        }
    }

    /// A VM begins to run.
    pub fn start(&mut self, machine: usize, clone: &RunningClone) {
        if self.killed.contains(&(clone.ticket.clone(), clone.vmid)) {
            self.wrong.push(format!("{} of {} begins to run after it was killed", clone.vmid, clone.ticket));
        }
        let machine = &mut self.machines[machine];
        machine.running.insert((clone.ticket.clone(), clone.vmid), clone.clone());
        let cpus: u32 = machine.running.values().map(|clone| clone.vcpus).sum();
        if cpus > machine.cpus {
            self.wrong.push(format!("{cpus} CPUs run on {} that has {}", machine.id, machine.cpus));
        }
    }

    pub fn is_running(&self, machine: usize, ticket: &str, vmid: u32) -> bool {
        self.machines[machine].running.contains_key(&(ticket.to_owned(), vmid))
    }

    /// Those who will meet.
    pub fn meet(&mut self, ticket: &str, members: impl IntoIterator<Item = u32>) {
        self.groups.insert(ticket.to_owned(), members.into_iter().collect());
    }

    /// One of them does not come any more.
    pub fn leave(&mut self, ticket: &str, vmid: u32) {
        if let Some(group) = self.groups.get_mut(ticket) {
            group.remove(&vmid);
        }
    }

    /// A VM comes to a barrier: for which time.
    pub fn arrives(&mut self, ticket: &str, vmid: u32) -> u64 {
        let begun = self.begun.entry((ticket.to_owned(), vmid)).or_default();
        *begun += 1;
        *begun
    }

    /// A VM leaves a barrier to which it came for that time, and nothing was broken since the beginning.
    pub fn met(&mut self, ticket: &str, vmid: u32, time: u64) {
        for other in self.groups.get(ticket).into_iter().flatten() {
            let begun = self.begun.get(&(ticket.to_owned(), *other)).copied().unwrap_or(0);
            if begun < time {
                self.wrong.push(format!(
                    "VM {vmid} leaves the barrier of {ticket} for time {time}, VM {other} has come {begun} times"
                ));
            }
        }
    }
}
