//! What has to hold after every command, worked out anew from what can be seen.

use super::{
    model::{Clone, Host},
    world::{World, id},
};
use crate::core::{
    api::{
        Command, CoreError, Demand, Effect, KEPT_MAX_MS, PASSED_OVER_MAX, Reply, Targets, UnixMs, VmidDemand,
        Waiter,
    },
    record::Scheduling,
    state::{HostState, Standing},
    ticket::{HostId, State, Ticket},
    vmids::FORGET_AFTER_MS,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use uuid::Uuid;

/// A request as its callers see it.
struct Asked {
    demand: Demand,
    waiters: BTreeSet<Waiter>,
    passed: u32,
    /// It could be met before the last command if others had nothing.
    was_possible: bool,
    /// Until when something is kept for it.
    kept_until: Option<UnixMs>,
}

#[derive(Default)]
pub struct Watch {
    /// By arrival.
    asked: BTreeMap<u64, Asked>,
    arrivals: u64,
    last_demand: Option<(Waiter, Demand)>,
    /// Tickets before the last command.
    known: BTreeSet<Uuid>,
    uses: BTreeMap<(Uuid, HostId), Vec<u32>>,
    /// Ticket, vmid, and the last meeting that it knew of.
    arrived: BTreeMap<Waiter, (Uuid, u32, u64)>,
    rounds: BTreeMap<Uuid, u64>,
    /// The last meeting that each VM has heard of.
    heard: BTreeMap<(Uuid, u32), u64>,
    /// VMs that the ledger has had as lost: clones of a ticket, and parents that had ended.
    were_lost: BTreeSet<(Uuid, u32)>,
    /// Those whose answers are lost.
    lost: BTreeSet<Waiter>,
    joining: BTreeMap<Waiter, Uuid>,
    /// Of which family, and what lived of what is to end: what comes to light later does not count.
    killing: BTreeMap<Waiter, (Uuid, BTreeSet<u32>)>,
    idle: bool,
    /// Vmids that were given: by family, host and request; and when.
    blocks: Vec<(VmidDemand, Range<u32>, UnixMs)>,
}

fn fit(cpus: u64, memory_mib: u64, vms: u64, demand: &Demand) -> u64 {
    (cpus / u64::from(demand.vcpus)).min(memory_mib / u64::from(demand.memory_mib)).min(vms)
}

fn limit(host: &HostState) -> u64 {
    host.info.max_vms.map_or(u64::MAX, u64::from)
}

fn free_fit(host: &HostState, demand: &Demand) -> u64 {
    fit(
        u64::from(host.cpus.saturating_sub(host.held_cpus)),
        host.memory_mib.saturating_sub(host.held_memory_mib),
        limit(host).saturating_sub(host.held_vms.into()),
        demand,
    )
}

fn is_enough(fits: impl Iterator<Item = u64>, demand: &Demand) -> bool {
    let fits: Vec<u64> = fits.collect();
    let best = if demand.use_by.is_some() { fits.iter().max().copied() } else { Some(fits.iter().sum()) };
    best.unwrap_or(0) >= u64::from(demand.min_vms)
}

/// Whether a VM of the host that is named fits another, as the hosts of the model are.
fn fits(demand: &Demand, host: HostId) -> bool {
    let parent = demand.parent.filter(|_| demand.use_by.is_none());
    parent.is_none_or(|parent| parent == host || (parent, host) == (id(1), id(2)))
}

/// Whether a host may be chosen. What a host has that is forgotten nobody knows.
fn meant(demand: &Demand, host: &HostState, hosts: &[HostState]) -> bool {
    let id = host.info.id;
    let is_known = |parent| parent == id || hosts.iter().any(|host| host.info.id == parent);
    (demand.hosts.is_empty() || demand.hosts.contains(&id))
        && fits(demand, id)
        && demand.parent.filter(|_| demand.use_by.is_none()).is_none_or(is_known)
}

/// Whether a demand fits in what is free of hosts that are not kept.
fn fits_now(hosts: &[HostState], demand: &Demand, kept: &BTreeSet<HostId>) -> bool {
    let usable =
        hosts.iter().filter(|h| h.is_usable() && meant(demand, h, hosts) && !kept.contains(&h.info.id));
    is_enough(usable.map(|host| free_fit(host, demand)), demand)
}

fn fits_if_empty<'a>(
    some: impl Iterator<Item = &'a HostState>,
    hosts: &[HostState],
    demand: &Demand,
) -> bool {
    let sizes = some.filter(|host| meant(demand, host, hosts));
    is_enough(sizes.map(|h| fit(h.cpus.into(), h.memory_mib, limit(h), demand)), demand)
}

/// Whether a demand would fit if only its own family had something.
fn fits_beside_own(world: &World, hosts: &[HostState], demand: &Demand) -> bool {
    let own = |host: &HostState| {
        let tickets = world.store.values().filter(|ticket| ticket.family == demand.family);
        tickets.fold((0, 0, 0), |sum: (u64, u64, u64), ticket| {
            let vms = u64::from(held(ticket, host.info.id));
            let (cpus, memory_mib) = (u64::from(ticket.vcpus), u64::from(ticket.memory_mib));
            (sum.0 + vms * cpus, sum.1 + vms * memory_mib, sum.2 + vms)
        })
    };
    let beside = |host: &HostState| {
        let (cpus, memory_mib, vms) = own(host);
        fit(
            u64::from(host.cpus).saturating_sub(cpus),
            host.memory_mib.saturating_sub(memory_mib),
            limit(host).saturating_sub(vms),
            demand,
        )
    };
    is_enough(hosts.iter().filter(|host| host.is_usable() && meant(demand, host, hosts)).map(beside), demand)
}

impl Watch {
    /// What is there before a command.
    pub fn before(&mut self, world: &World, command: &Command) {
        self.known = world.store.keys().copied().collect();
        self.idle = self.asked.is_empty();
        self.last_demand = None;
        let states = world.core.hosts();
        for asked in self.asked.values_mut() {
            asked.was_possible = fits_beside_own(world, &states, &asked.demand);
        }
        match command {
            Command::Request { waiter, demand } => self.asked(*waiter, demand),
            Command::Arrive { waiter, ticket, vmid, after_round, .. } => {
                self.arrived.insert(*waiter, (ticket.id, *vmid, after_round.unwrap()));
            }
            Command::JoinWait { waiter, ticket, .. } => {
                self.joining.insert(*waiter, ticket.id);
            }
            Command::Kill { waiter, targets, family, .. } => {
                let vmids = match targets {
                    Targets::Ticket(id) => {
                        let used = world.store.get(id).filter(|ticket| ticket.state == State::Used);
                        used.into_iter().flat_map(Ticket::live).map(|(vmid, _)| vmid).collect()
                    }
                    Targets::Vmids(vmids) => vmids.iter().copied().collect(),
                };
                self.killing.insert(*waiter, (*family, vmids));
            }
            Command::Gone(waiter) => {
                for asked in self.asked.values_mut() {
                    asked.waiters.remove(waiter);
                }
                self.asked.retain(|_, asked| !asked.waiters.is_empty());
                self.arrived.remove(waiter);
                self.joining.remove(waiter);
                self.killing.remove(waiter);
            }
            _ => {}
        }
    }

    /// Somebody asks for a ticket.
    fn asked(&mut self, waiter: Waiter, demand: &Demand) {
        self.last_demand = Some((waiter, demand.clone()));
        let same = |asked: &&mut Asked| {
            demand.request_id.is_some()
                && (&asked.demand.request_id, asked.demand.family) == (&demand.request_id, demand.family)
        };
        if let Some(asked) = self.asked.values_mut().find(same) {
            asked.waiters.insert(waiter);
            return;
        }
        self.arrivals += 1;
        let waiters = BTreeSet::from([waiter]);
        self.asked.insert(
            self.arrivals,
            Asked { demand: demand.clone(), waiters, passed: 0, was_possible: true, kept_until: None },
        );
    }

    /// Tickets that the last command granted.
    pub fn granted(&self, world: &World) -> Vec<Ticket> {
        let granted = world.effects.iter().filter_map(|effect| match effect {
            Effect::Answer(_, Ok(Reply::Ticket(ticket))) if !self.known.contains(&ticket.id) => {
                Some(ticket.id)
            }
            _ => None,
        });
        granted.collect::<BTreeSet<_>>().iter().map(|id| world.get(*id)).collect()
    }

    /// Vmids are given once, and none that a clone has or has had.
    pub fn reserved(&mut self, world: &World, demand: &VmidDemand, waiter: Waiter) {
        let Some(Ok(Reply::Vmids { first, count })) = world.answers.get(&waiter) else {
            assert!(world.core.hosts().iter().all(|host| host.info.id != demand.host || !host.is_up()));
            return;
        };
        let block = *first..first + count;
        let is_same = |(other, given, _): &(VmidDemand, Range<u32>, UnixMs)| {
            other.request.is_some()
                && (other.family, other.host, &other.request) == (demand.family, demand.host, &demand.request)
                && *given == block
        };
        if self.blocks.iter().any(is_same) {
            return;
        }
        assert!(*count == demand.count && *first >= demand.at_least.max(1), "{demand:?} gets {block:?}");
        for (other, given, _) in self.blocks.iter().filter(|(other, ..)| other.family == demand.family) {
            let overlaps = given.start < block.end && block.start < given.end;
            assert!(!overlaps, "{block:?} of {demand:?} were given to {other:?}");
        }
        for ticket in world.store.values().filter(|ticket| ticket.family == demand.family) {
            let taken = ticket.clones.keys().find(|vmid| block.contains(vmid));
            assert_eq!(taken, None, "a clone of {} has a vmid of {block:?}", ticket.id);
        }
        self.blocks.push((demand.clone(), block, world.now));
    }

    pub fn used(&mut self, ticket: Uuid, host: HostId, vmids: &[u32]) {
        let before = self.uses.insert((ticket, host), vmids.to_vec());
        assert!(before.is_none(), "{ticket} is used twice on {host}");
    }

    pub fn unused(&mut self, world: &World, ticket: Uuid, host: HostId) {
        self.uses.remove(&(ticket, host));
        let now = &world.store[&ticket];
        assert!(now.clones.values().all(|place| *place != host), "{ticket} has clones on {host}");
        let others: Vec<_> = self.uses.iter().filter(|((id, _), _)| *id == ticket).collect();
        for ((_, place), vmids) in others {
            let is_there = |vmid: &u32| now.clones.get(vmid) == Some(place);
            assert!(vmids.iter().all(is_there), "{ticket} has lost clones of {place} with those of {host}");
        }
        if now.state != State::Used {
            self.rounds.remove(&ticket);
        }
    }

    /// Nobody of those who waited is there any more.
    pub fn restart(&mut self) {
        self.asked.clear();
        self.arrived.clear();
        self.joining.clear();
        self.killing.clear();
    }

    /// The last meeting that a VM knows of.
    pub fn heard(&self, ticket: Uuid, vmid: u32) -> u64 {
        self.heard.get(&(ticket, vmid)).copied().unwrap_or(0)
    }

    /// This caller will not hear its answer.
    pub fn lose(&mut self, waiter: Waiter) {
        self.lost.insert(waiter);
    }

    /// Whether somebody waits for a clone's end.
    pub fn is_killed(&self, family: Uuid, vmid: u32) -> bool {
        self.killing.values().any(|(of, vmids)| *of == family && vmids.contains(&vmid))
    }

    /// Whether nobody waits for the end of what they killed.
    pub fn nobody_kills(&self) -> bool {
        self.killing.is_empty()
    }

    /// The clones of a host that live, as the ledger has it.
    pub fn live_on(&self, world: &World, host: HostId) -> BTreeSet<Clone> {
        let used = world.store.values().filter(|ticket| ticket.state == State::Used);
        let live = used.flat_map(|t| t.live().map(|(vmid, place)| (place, (t.id, t.family, vmid))));
        live.filter(|(place, _)| *place == host).map(|(_, clone)| clone).collect()
    }

    /// What has to hold after each command.
    pub fn check_step(&mut self, world: &World) {
        self.forget(world);
        let states = world.core.hosts();
        self.check_refusal(world, &states);
        self.check_queue(world, &states);
        check_parts(world, &states);
        self.check_barriers(world);
        self.check_waits(world);
    }

    /// What has to hold when hosts have done what they had to.
    pub fn check_hosts(&self, world: &World, hosts: &BTreeMap<HostId, Host>) {
        check_room(world, &world.core.hosts(), hosts);
        self.check_ledger(world, hosts);
        check_masters(world, hosts);
    }

    fn forget(&mut self, world: &World) {
        self.uses.retain(|(id, _), _| world.store.contains_key(id));
        self.rounds.retain(|id, _| world.store.contains_key(id));
        // A counter is forgotten when nothing has lived of its family for a day. Whoever comes back
        // later names what was given before; these hosts do not.
        let may_be_forgotten = |at: UnixMs| world.now >= at + FORGET_AFTER_MS;
        self.blocks.retain(|(demand, _, at)| {
            world.core.vmid_record(demand.family).is_some() || !may_be_forgotten(*at)
        });
        for ticket in world.store.values() {
            let lost = ticket.clones.keys().filter(|vmid| ticket.is_lost(**vmid));
            self.were_lost.extend(lost.map(|vmid| (ticket.id, *vmid)));
            // A parent that has ended comes back with its host, as a clone does.
            let parent = ticket.parent_vmid.filter(|_| ticket.parent_ended);
            self.were_lost.extend(parent.map(|vmid| (ticket.id, vmid)));
        }
    }

    /// What runs on a host that is connected is in the ledger, and the other way round.
    fn check_ledger(&self, world: &World, hosts: &BTreeMap<HostId, Host>) {
        for (id, host) in hosts.iter().filter(|(_, host)| host.connected) {
            let live = self.live_on(world, *id);
            let there: BTreeSet<Clone> =
                host.running.keys().chain(host.unnoted.keys()).chain(host.making.keys()).copied().collect();
            let missing: Vec<_> = live.difference(&there).collect();
            // A ticket that was used for nothing waits for its unuse.
            assert!(missing.is_empty(), "{missing:?} are in the ledger and do not run on {id}");
            let unknown: Vec<_> =
                host.running.keys().filter(|c| !live.contains(c) && !host.ghosts.contains(c)).collect();
            assert!(unknown.is_empty(), "{unknown:?} run on {id} and are not in the ledger");
        }
    }

    fn check_refusal(&self, world: &World, states: &[HostState]) {
        let Some((waiter, demand)) = &self.last_demand else { return };
        match world.answers.get(waiter).and_then(|answer| answer.as_ref().err()) {
            // A request that was repeated is answered as it was made at first.
            Some(CoreError::NoFit { .. }) if !self.idle => {}
            Some(CoreError::Impossible { .. } | CoreError::NoFit { .. }) => {
                let known =
                    states.iter().filter(|h| h.is_usable() || world.core.hosts.away().contains(&h.info.id));
                assert!(!fits_if_empty(known, states, demand), "{demand:?} is possible");
            }
            Some(CoreError::NoCapacity { .. }) if self.idle && demand.timeout_ms == 0 => {
                assert!(!fits_now(states, demand, &BTreeSet::new()), "{demand:?} fits");
            }
            _ => {}
        }
    }

    /// First come first served in a family; nobody waits who fits and may have it; nobody is passed
    /// over too often.
    fn check_queue(&mut self, world: &World, states: &[HostState]) {
        let heads_before: BTreeSet<u64> = self.heads().into_iter().collect();
        let answered: BTreeMap<Waiter, Ticket> = world
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Answer(waiter, Ok(Reply::Ticket(ticket))) => Some((*waiter, (**ticket).clone())),
                _ => None,
            })
            .collect();
        let new: BTreeSet<Uuid> = self.granted(world).iter().map(|ticket| ticket.id).collect();
        let mut granted: Vec<(u64, Uuid, Ticket)> = Vec::new();
        for (number, asked) in &mut self.asked {
            if asked.kept_until.is_some_and(|until| until <= world.now) {
                asked.passed = 0;
            }
            if let Some(ticket) = asked.waiters.iter().find_map(|waiter| answered.get(waiter))
                && new.contains(&ticket.id)
            {
                let misfit = ticket.places.keys().find(|host| !fits(&asked.demand, **host));
                assert_eq!(misfit, None, "{:?} is granted there", asked.demand);
                granted.push((*number, asked.demand.family, ticket.clone()));
            }
            asked.waiters.retain(|waiter| world.waits(*waiter));
        }
        self.asked.retain(|_, asked| !asked.waiters.is_empty());
        for (number, family, ticket) in &granted {
            assert!(!self.asked.contains_key(number), "all who wait for a request are answered");
            for (other, asked) in self.asked.range_mut(..*number) {
                assert!(asked.demand.family != *family, "{number} passed {other} of its own family");
                let mut places = states.iter().filter(|host| ticket.places.contains_key(&host.info.id));
                let could_use = places.any(|host| meant(&asked.demand, host, states));
                let possible = asked.was_possible && fits_beside_own(world, states, &asked.demand);
                if heads_before.contains(other) && could_use && possible {
                    asked.passed += 1;
                    assert!(asked.passed <= PASSED_OVER_MAX, "{other} is passed over too often");
                }
            }
        }
        assert_eq!(world.core.counts().waiting, self.asked.len() as u64);
        self.check_kept(world);
        self.check_nobody_waits_in_vain(world, states);
    }

    /// What is kept is kept for a while, and after that one may be passed over again.
    fn check_kept(&mut self, world: &World) {
        let queue = &world.core.queue;
        let waiters = |request: &u64| queue.get(*request).unwrap().waiters.clone();
        let kept: BTreeMap<Waiter, UnixMs> = queue
            .starved()
            .iter()
            .flat_map(|(request, until)| waiters(request).into_iter().map(|waiter| (waiter, *until)))
            .collect();
        for asked in self.asked.values_mut() {
            let until = asked.waiters.iter().find_map(|waiter| kept.get(waiter)).copied();
            if let Some(before) = asked.kept_until.filter(|before| Some(*before) != until) {
                assert!(world.now >= before, "kept for {} ms too short", before - world.now);
            }
            if let Some(until) = until {
                assert!(until > world.now && until <= world.now + KEPT_MAX_MS, "kept for too long");
            }
            asked.kept_until = until;
        }
    }

    fn heads(&self) -> Vec<u64> {
        let mut families = BTreeSet::new();
        let firsts = self.asked.iter().filter(|(_, asked)| families.insert(asked.demand.family));
        firsts.map(|(number, _)| *number).collect()
    }

    fn check_nobody_waits_in_vain(&self, world: &World, states: &[HostState]) {
        let queue = &world.core.queue;
        let mut kept = BTreeSet::new();
        let alive = || states.iter().filter(|host| host.is_usable());
        for starved in queue.starved().keys() {
            let demand = &queue.get(*starved).unwrap().demand;
            assert!(!fits_now(states, demand, &kept), "a starved request waits and fits");
            if fits_beside_own(world, states, demand) {
                kept.extend(alive().filter(|host| meant(demand, host, states)).map(|host| host.info.id));
            }
        }
        for number in self.heads() {
            let asked = &self.asked[&number];
            assert!(!fits_now(states, &asked.demand, &kept), "{number} waits and fits: {:?}", asked.demand);
        }
    }

    /// All are released together, when they are all there and not before.
    fn check_barriers(&mut self, world: &World) {
        let mut met: BTreeMap<Uuid, BTreeSet<(u64, u32)>> = BTreeMap::new();
        let mut released: BTreeMap<Uuid, BTreeSet<u32>> = BTreeMap::new();
        for effect in &world.effects {
            let Effect::Answer(waiter, Ok(Reply::Met { round, arrived })) = effect else { continue };
            if let Some((ticket, vmid, after)) = self.arrived.get(waiter) {
                if *arrived == 0 {
                    // The ticket was forgotten meanwhile. A VM has said that it was there.
                    let of = self.heard.iter().filter(|((of, _), _)| of == ticket);
                    assert!(of.map(|(_, heard)| *heard).max() >= Some(*round), "nobody was at {round}");
                    self.heard.insert((*ticket, *vmid), *round);
                    self.rounds.insert(*ticket, *round);
                    continue;
                }
                // One that was lost has missed what the others met at meanwhile.
                let has_missed = self.were_lost.contains(&(*ticket, *vmid)) && round > after;
                let is_next = *round == after + 1;
                assert!(is_next || has_missed, "VM {vmid} of {ticket} goes from {after} to {round}");
                if !self.lost.remove(waiter) {
                    self.heard.insert((*ticket, *vmid), *round);
                }
                if self.rounds.get(ticket) == Some(round) {
                    // Its answer was lost before.
                    continue;
                }
                met.entry(*ticket).or_default().insert((*round, *arrived));
                released.entry(*ticket).or_default().insert(*vmid);
            }
        }
        self.arrived.retain(|waiter, _| world.waits(*waiter));
        for (ticket, vmids) in &released {
            let one: Vec<_> = met[ticket].iter().collect();
            assert_eq!(one.len(), 1, "all meet in the same round");
            let round = self.rounds.entry(*ticket).or_default();
            assert_eq!(to_come(&world.store[ticket]), 0, "{ticket} meets without those that may come");
            // One that arrived last may have been answered at once.
            assert!(one[0].0 > *round && one[0].1 as usize >= vmids.len());
            *round = one[0].0;
            assert!(!self.arrived.values().any(|(other, ..)| other == ticket), "nobody is left behind");
        }
        let mut waiting: BTreeMap<Uuid, BTreeSet<u32>> = BTreeMap::new();
        for (ticket, vmid, _) in self.arrived.values() {
            waiting.entry(*ticket).or_default().insert(*vmid);
        }
        for (ticket, vmids) in waiting {
            let ticket = &world.store[&ticket];
            // The ledger knows of a parent's end as long as it remembers the ticket that the parent
            // was made under.
            let is_over = |vmid: &u32| {
                let ended =
                    |other: &Ticket| other.results.get(vmid).is_some_and(|outcome| outcome.end.is_some());
                ticket.parent_ended
                    || world.store.values().any(|other| other.family == ticket.family && ended(other))
            };
            let parent = ticket.parent_vmid.filter(|vmid| !is_over(vmid));
            let wanted: BTreeSet<u32> = ticket.live().map(|(vmid, _)| vmid).chain(parent).collect();
            assert!(vmids.is_subset(&wanted), "{vmids:?} wait and are not among {wanted:?}");
            let all_are_there = wanted.is_subset(&vmids) && to_come(ticket) == 0;
            assert!(!all_are_there, "all of {wanted:?} are there and wait");
        }
    }

    fn check_waits(&mut self, world: &World) {
        self.joining.retain(|waiter, _| world.waits(*waiter));
        for ticket in self.joining.values() {
            assert!(world.state(*ticket) == State::Used, "a join waits for a ticket that is over");
        }
        self.killing.retain(|waiter, (family, vmids)| {
            let mut tickets = world.store.values().filter(|ticket| ticket.family == *family);
            let live = tickets.any(|ticket| vmids.iter().any(|vmid| ticket.is_live(*vmid)));
            assert_eq!(world.waits(*waiter), live, "a kill waits as long as one lives");
            live
        });
    }
}

/// A ticket waits for its master as long as that lives, as far as anybody knows: whatever became of
/// the ticket in between.
fn check_masters(world: &World, hosts: &BTreeMap<HostId, Host>) {
    let lost: Vec<_> =
        world.core.hosts().iter().filter(|h| h.standing == Standing::Lost).map(|h| h.info.id).collect();
    for ticket in world.store.values().filter(|t| t.state == State::Used && t.parent_vmid == Some(0)) {
        let Some((id, host)) = ticket.parent_host.and_then(|id| hosts.get_key_value(&id)) else { continue };
        let has_ended = host.masters_gone.contains(&ticket.family);
        assert!(ticket.parent_ended || !lost.contains(id), "{} waits for a master of {id}", ticket.id);
        if host.connected && !host.masters_anew.contains(&ticket.family) {
            assert_eq!(ticket.parent_ended, has_ended, "{} and its master on {id}", ticket.id);
        }
    }
}

/// How many VMs of a ticket that is used may still be made.
fn to_come(ticket: &Ticket) -> u32 {
    let is_to_come = |host: &HostId| ticket.parts.get(host).is_some_and(|part| !part.used);
    let parts = ticket.places.iter().filter(|(host, _)| ticket.state == State::Used && is_to_come(host));
    parts.map(|(_, vms)| vms).sum()
}

/// How many VMs a ticket has on a host: what is granted there and not used, and what lives there.
fn held(ticket: &Ticket, host: HostId) -> u32 {
    let granted = match (ticket.state, ticket.parts.get(&host)) {
        (State::Granted, _) => ticket.places.get(&host).copied().unwrap_or(0),
        (State::Used, Some(part)) if !part.used => ticket.places[&host],
        _ => 0,
    };
    let live = ticket.live().filter(|(_, place)| *place == host && ticket.state == State::Used).count();
    granted + live as u32
}

/// A part is granted as long as it may be used and no longer, and a ticket is used as long as it
/// has one or clones that live.
fn check_parts(world: &World, states: &[HostState]) {
    let mut live = BTreeSet::new();
    for ticket in world.store.values() {
        let Ticket { id, parts, places, .. } = ticket;
        assert!(parts.keys().all(|host| places.contains_key(host)), "{id} has parts beside its places");
        assert!(!ticket.is_over() || parts.is_empty(), "{id} is over and has parts");
        if ticket.state != State::Used {
            continue;
        }
        for (vmid, _) in ticket.live() {
            assert!(live.insert((ticket.family, vmid)), "two clones of {} have {vmid}", ticket.family);
        }
        assert!(ticket.live().next().is_some() || to_come(ticket) > 0, "{id} is used by nobody");
        assert!(to_come(ticket) == 0 || world.now < ticket.expires_unix_ms, "{id} has not expired");
        for (host, part) in parts {
            assert!(part.epoch <= ticket.epoch, "the epoch of {id} is older than that of its part");
            let state = states.iter().find(|state| state.info.id == *host);
            let may_come = state.is_none_or(|state| {
                state.standing != Standing::Lost && state.scheduling != Scheduling::Draining
            });
            assert!(part.used || may_come, "{id} waits for {host}, which cannot use it");
            let has_clones = ticket.clones.values().any(|place| place == host);
            assert!(part.used || !has_clones, "{id} waits for {host}, which has used it");
        }
    }
}

/// What is held is what tickets hold, and never more than there is.
fn check_room(world: &World, states: &[HostState], hosts: &BTreeMap<HostId, Host>) {
    for state in states {
        let open = world.store.values().filter(|ticket| !ticket.is_over());
        let held = open.map(|ticket| (ticket, held(ticket, state.info.id)));
        let mut sum = (0, 0, 0);
        for (ticket, vms) in held {
            sum.0 += vms;
            sum.1 += vms * ticket.vcpus;
            sum.2 += u64::from(vms) * u64::from(ticket.memory_mib);
        }
        if state.is_up() {
            let host = &hosts[&state.info.id];
            for ghost in &host.ghosts {
                let unnoted = host.unnoted.get(ghost).map(|(running, _)| running);
                let ghost = host.running.get(ghost).or(host.making.get(ghost)).or(unnoted).unwrap();
                sum.0 += 1;
                sum.1 += ghost.vcpus;
                sum.2 += u64::from(ghost.memory_mib);
            }
            let held = (state.held_vms, state.held_cpus, state.held_memory_mib);
            assert_eq!(held, sum, "held on {}: {:#?}", state.info.name, world.store);
        }
        let room = (state.cpus, state.memory_mib, state.info.max_vms.unwrap_or(u32::MAX));
        let within = sum.1 <= room.0 && sum.2 <= room.1 && sum.0 <= room.2;
        assert!(within, "{sum:?} held of {room:?} on {}", state.info.name);
    }
}
