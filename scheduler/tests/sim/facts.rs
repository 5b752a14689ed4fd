//! What really happens, seen by somebody who sees everything, and what must never be seen.
//!
//! - No ticket is granted for two requests, no request is granted two tickets, no ticket is used
//!   for two sets of clones.
//! - On no machine run more VMs at any moment than it has CPUs.
//! - Every call is answered in bounded time.
//! - Nobody meets before all parts of their ticket are used, or cannot be any more.
//! - No clone that runs is given up before its host was silent for as long as it may be, counted
//!   from the last sign of life or from the scheduler's start, unless an operator has fenced it.
//! - A copy of a host registers only when that host was silent for as long, or fenced.
//! - No clone is ended that its family did not kill, and that had not left: whatever its host was
//!   away for.
//! - Nobody leaves a barrier before all have come that live, whatever breaks; each goes from one
//!   meeting to the next, and misses none.
//! - As long as nothing breaks: no call fails, a join knows all results.
//! - Once everything is healed and quiet, the ledger is exactly what runs.

use patina_proto::v1::{HostIdentity, RunningClone};
use scheduler::{
    core::ticket::State,
    host::admission::{Authorization, CloneRequest},
    store::memory::MemoryStore,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    /// What other machines want it to make.
    pub parts: VecDeque<Part>,
    /// Whether its daemon is registered, and has no ends to say.
    pub settled: bool,
    /// Families that are in the middle of something.
    pub busy: u64,
    /// When the scheduler last heard of it, milliseconds of the story.
    pub heard_ms: u64,
    /// Whether an operator is about to fence it, and when one has.
    pub may_be_fenced: bool,
    pub fenced_ms: Option<u64>,
    /// How often its daemon was started, and it itself.
    starts: u64,
    pub boots: u64,
}

/// A part of a ticket that a machine is to make for a VM of another.
#[derive(Debug)]
pub struct Part {
    pub clone_request: CloneRequest,
    pub authorization: Authorization,
    pub rounds: u64,
    pub stays: bool,
    pub seed: u64,
}

/// What the VMs of a ticket on one machine will do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub machine: usize,
    pub family: String,
    /// How often they meet.
    pub rounds: u64,
    /// They go on for ever.
    pub stays: bool,
}

/// How much of what has happened: a simulation in which nothing happens shows nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sums {
    pub stories: u64,
    pub granted: u64,
    pub refused: u64,
    pub failed: u64,
    pub used: u64,
    pub immediate: u64,
    pub unused: u64,
    /// Parts that were used on other machines than their parent's.
    pub parts: u64,
    pub met: u64,
    /// Not with the first call.
    pub met_later: u64,
    pub left: u64,
    pub joined: u64,
    pub killed: u64,
    pub kill_requested: u64,
    /// Clones that ran when their host was given up, and those of them that were kept.
    pub lost: u64,
    pub kept: u64,
    /// What operators have done.
    pub scheduled: u64,
    pub fenced: u64,
    /// How often the copy of a host was refused, and how often it was taken for the host.
    pub copies_refused: u64,
    pub copies_taken: u64,
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
        self.immediate += other.immediate;
        self.unused += other.unused;
        self.parts += other.parts;
        self.met += other.met;
        self.met_later += other.met_later;
        self.left += other.left;
        self.joined += other.joined;
        self.killed += other.killed;
        self.kill_requested += other.kill_requested;
        self.lost += other.lost;
        self.kept += other.kept;
        self.scheduled += other.scheduled;
        self.fenced += other.fenced;
        self.copies_refused += other.copies_refused;
        self.copies_taken += other.copies_taken;
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
            self.immediate,
            self.unused,
            self.parts,
            self.met,
            self.left,
            self.joined,
            self.killed,
            self.lost,
            self.kept,
            self.scheduled,
            self.copies_refused,
            self.faults,
            self.running_at_end,
        ];
        let least = self.stories / 4;
        let some = [self.kill_requested, self.met_later, self.fenced, self.copies_taken];
        let enough = all.iter().all(|sum| *sum > least) && some.iter().all(|sum| *sum > 0);
        assert!(enough, "too little has happened");
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
    /// By ticket and machine.
    uses: BTreeMap<(String, usize), Vec<u32>>,
    /// What each VM of a group has in its memory, which outlives the daemon of its machine: how
    /// often it has met the others.
    rounds: BTreeMap<Clone, u64>,
    /// Those that are on their way to a meeting, or wait there.
    arriving: BTreeSet<Clone>,
    /// Clones that were killed, and whoever wanted that knows that they have ended.
    killed: BTreeSet<Clone>,
    /// Groups by ticket and machine, with their members that have not ended and have something to
    /// do.
    groups: BTreeMap<(String, usize), (Plan, BTreeSet<u32>)>,
    /// When the scheduler was started, milliseconds of the story.
    pub started_ms: u64,
    /// Clones that their family does not want any more, or that have left.
    pub unwanted: BTreeSet<Clone>,
    /// Clones that the ledger had as lost, and those of them that were kept.
    lost: BTreeSet<Clone>,
    kept: BTreeSet<Clone>,
    /// The scheduler's.
    store: MemoryStore,
}

/// A handle.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Facts>>);

impl Shared {
    pub fn with(machines: Vec<Machine>, store: &MemoryStore) -> Self {
        let mut facts = Facts { machines, store: store.clone(), ..Facts::default() };
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
            parts: VecDeque::new(),
            settled: false,
            busy: 0,
            heard_ms: 0,
            may_be_fenced: false,
            fenced_ms: None,
            starts: 0,
            boots: 0,
        }
    }

    /// What its daemon says, which is started now.
    pub fn new_identity(&mut self) -> HostIdentity {
        self.starts += 1;
        HostIdentity {
            instance: format!("{} {}", self.id, self.starts),
            boot: format!("{} {}", self.id, self.boots),
            machine: self.id.to_string(),
            folder: "folder".into(),
        }
    }

    /// Whether it may have been given up by now.
    fn may_be_lost(&self, now_ms: u64, started_ms: u64, lost_after_ms: u64) -> bool {
        self.may_be_fenced || now_ms.saturating_sub(self.heard_ms.max(started_ms)) >= lost_after_ms
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
    pub fn free(&mut self, clone_request: &CloneRequest) {
        self.free.entry(clone_request.family.parse().unwrap()).or_default().extend(&clone_request.vmids);
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

    pub fn used(&mut self, machine: usize, ticket: &str, vmids: &[u32]) {
        self.sums.used += 1;
        let before = self.uses.insert((ticket.to_owned(), machine), vmids.to_vec());
        if before.is_some_and(|before| before != vmids) {
            self.wrong.push(format!("ticket {ticket} was used twice on machine {machine}"));
        }
        // Those that the ledger has as lost by now are not waited for.
        let all_wait = !vmids.iter().any(|vmid| self.was_lost(ticket, *vmid));
        let has_met = self.rounds.iter().any(|((of, _), rounds)| of == ticket && *rounds > 0);
        if all_wait && has_met {
            self.wrong.push(format!("VMs of {ticket} have met before machine {machine} used its part"));
        }
    }

    pub fn unused(&mut self, machine: usize, ticket: &str) {
        self.sums.unused += 1;
        self.uses.remove(&(ticket.to_owned(), machine));
    }

    /// Whether a VM that cloned may meet its clones again: its host was given up, and its ticket
    /// goes on, or will when clones come back that were given up and run. By the time that the VM
    /// hears so, its host may be back.
    pub fn may_come_back(&self, ticket: &str) -> bool {
        let known = self.store.tickets().into_iter().find(|known| known.id.to_string() == ticket);
        let Some(known) = known else { return false };
        let runs = |(vmid, host): (&u32, &Uuid)| {
            let machine = self.machines.iter().find(|machine| machine.id == *host);
            let name = (ticket.to_owned(), *vmid);
            known.is_lost(*vmid) && machine.is_some_and(|machine| machine.running.contains_key(&name))
        };
        known.state == State::Used || known.clones.iter().any(runs)
    }

    /// The ledger has changed.
    pub fn look(&mut self, now_ms: u64, lost_after_ms: u64) {
        for ticket in self.store.tickets() {
            let id = ticket.id.to_string();
            if ticket.parent_ended {
                self.lost.insert((id.clone(), 0));
            }
            for (vmid, host) in &ticket.clones {
                let name = (id.clone(), *vmid);
                if ticket.is_live(*vmid) && self.lost.contains(&name) && self.kept.insert(name.clone()) {
                    self.sums.kept += 1;
                }
                if !ticket.is_lost(*vmid) || !self.lost.insert(name.clone()) {
                    continue;
                }
                let machine = self.machines.iter().find(|machine| machine.id == *host).unwrap();
                if !machine.running.contains_key(&name) {
                    continue;
                }
                self.sums.lost += 1;
                if !machine.may_be_lost(now_ms, self.started_ms, lost_after_ms) {
                    let heard_ms = machine.heard_ms;
                    self.wrong.push(format!("{name:?} runs and is lost, and was heard of at {heard_ms} ms"));
                }
            }
        }
    }

    /// The copy of a machine is registered. What the scheduler has had as lost stays so until the
    /// machine is back.
    pub fn copy_is_taken(&mut self, of: usize, now_ms: u64, lost_after_ms: u64) {
        let machine = &self.machines[of];
        let was_fenced = machine.fenced_ms.is_some_and(|fenced_ms| fenced_ms >= machine.heard_ms);
        let is_known = machine.heard_ms > 0;
        // It may have been lost before the scheduler's start.
        if is_known && !was_fenced && !machine.may_be_lost(now_ms, 0, lost_after_ms) {
            let heard_ms = machine.heard_ms;
            self.wrong.push(format!("a copy of machine {of} is taken, which was heard of at {heard_ms} ms"));
        }
    }

    /// Whether the ledger has ever had a clone as lost.
    pub fn was_lost(&self, ticket: &str, vmid: u32) -> bool {
        self.lost.contains(&(ticket.to_owned(), vmid))
    }

    /// A clone is not wanted any more.
    pub fn unwanted(&mut self, ticket: &str, vmids: &[u32]) {
        self.unwanted.extend(vmids.iter().map(|vmid| (ticket.to_owned(), *vmid)));
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
    pub fn meet(&mut self, ticket: &str, plan: &Plan, members: impl IntoIterator<Item = u32>) {
        let members = members.into_iter().collect();
        self.groups.insert((ticket.to_owned(), plan.machine), (plan.clone(), members));
    }

    /// One of them does not come any more.
    pub fn leave(&mut self, ticket: &str, vmid: u32) {
        self.comes_back(ticket, vmid);
        let groups = self.groups.iter_mut().filter(|((of, _), _)| of == ticket);
        groups.for_each(|(_, (_, members))| {
            members.remove(&vmid);
        });
    }

    /// A machine ends with all that runs on it.
    pub fn crash(&mut self, machine: usize) {
        self.machines[machine].running.clear();
        self.machines[machine].boots += 1;
        self.machines[machine].parts.clear();
        self.groups.retain(|_, (plan, _)| plan.machine != machine);
        let groups = &self.groups;
        self.arriving.retain(|(ticket, vmid)| {
            groups.iter().any(|((of, _), (_, members))| of == ticket && members.contains(vmid))
        });
    }

    /// The groups of a machine that have something to do, and who of them has.
    pub fn unfinished(&self, machine: usize) -> Vec<(String, Plan, BTreeSet<u32>)> {
        let here = self.groups.iter().filter(|(_, (plan, _))| plan.machine == machine);
        here.map(|((ticket, _), (plan, members))| (ticket.clone(), plan.clone(), members.clone())).collect()
    }

    /// How often a VM has met the others.
    pub fn rounds(&self, ticket: &str, vmid: u32) -> u64 {
        self.rounds.get(&(ticket.to_owned(), vmid)).copied().unwrap_or(0)
    }

    /// A VM comes to a barrier: to which meeting.
    pub fn arrives(&mut self, ticket: &str, vmid: u32) -> u64 {
        self.arriving.insert((ticket.to_owned(), vmid));
        self.rounds(ticket, vmid) + 1
    }

    /// It does not wait there any more.
    pub fn comes_back(&mut self, ticket: &str, vmid: u32) {
        self.arriving.remove(&(ticket.to_owned(), vmid));
    }

    /// Those that wait for others.
    pub fn arriving(&self) -> &BTreeSet<Clone> {
        &self.arriving
    }

    /// A VM leaves a barrier. All that live are at that meeting, or have been.
    pub fn met(&mut self, ticket: &str, vmid: u32, round: u64) {
        self.sums.met += 1;
        self.rounds.insert((ticket.to_owned(), vmid), round);
        let groups = self.groups.iter().filter(|((of, _), _)| of == ticket);
        let members: BTreeSet<u32> = groups.flat_map(|(_, (_, members))| members.iter().copied()).collect();
        // Clones whose host was given up are not waited for, though they may live and come back:
        // what the others do meanwhile they miss.
        let known = self.store.tickets().into_iter().find(|known| known.id.to_string() == ticket);
        let lost = &self.lost;
        let lives = |vmid: &u32| {
            (*vmid == 0 && !lost.contains(&(ticket.to_owned(), 0)))
                || (known.as_ref().is_some_and(|known| known.is_live(*vmid))
                    && !lost.contains(&(ticket.to_owned(), *vmid)))
        };
        for other in members.iter().filter(|vmid| lives(vmid)) {
            let name = (ticket.to_owned(), *other);
            let is_here = self.arriving.contains(&name) && self.rounds(ticket, *other) + 1 == round;
            if self.rounds(ticket, *other) < round && !is_here {
                self.wrong
                    .push(format!("VM {vmid} leaves meeting {round} of {ticket}, VM {other} has not come"));
            }
        }
    }
}
