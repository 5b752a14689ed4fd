//! Whatever is said to the core, in whatever order: what has to hold does. Hosts with clones that
//! really run are played here; the checks are in [`super::invariants`].

use super::{
    invariants::Watch,
    world::{World, facts, id, image, named, options},
};
use crate::core::{
    api::{
        Beat, Command, Demand, Effect, HostInfo, Options, Present, Reply, Running, Targets, Usage, UseBy,
        VmidDemand, Waiter,
    },
    record::Scheduling,
    ticket::{HostId, Kept, Policy, State, Ticket, VmEnd},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Ticket, family, vmid.
pub type Clone = (Uuid, Uuid, u32);

/// A host with what really runs there.
pub struct Host {
    pub info: HostInfo,
    pub connected: bool,
    pub running: BTreeMap<Clone, Running>,
    /// Gone, and the scheduler has not noted it.
    pub unnoted: BTreeMap<Clone, (Running, VmEnd)>,
    /// Being made: what it is told to end of them it cannot end yet.
    pub making: BTreeMap<Clone, Running>,
    /// Families whose master has ended here since it cloned last.
    pub masters_gone: BTreeSet<Uuid>,
    /// Families whose master has cloned after its end: some tickets wait for it, others do not.
    pub masters_anew: BTreeSet<Uuid>,
    /// What it was told to end.
    pub orders: BTreeSet<(Uuid, u32)>,
    /// What it has said that runs and that should not.
    pub ghosts: BTreeSet<Clone>,
}

/// What is done next. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Op {
    Request(Ask),
    Gone(usize),
    Release(usize),
    Use(Use),
    Made(usize),
    MasterEnds(usize),
    UseNothing {
        ticket: usize,
        place: usize,
        keep: bool,
    },
    End {
        clone: usize,
        killed: bool,
    },
    Report(usize),
    Obey(usize),
    Down(usize),
    Up(usize),
    Beat(usize),
    Arrive {
        ticket: usize,
        who: usize,
        timeout_ms: u64,
        lost: bool,
    },
    /// All that live go to a meeting.
    ArriveAll(usize),
    Leave(usize),
    Join(usize),
    Kill {
        ticket: usize,
        all: bool,
    },
    Reserve(VmidDemand),
    Pass(u64),
    ToDeadline,
    Restart,
    Schedule(usize, Scheduling),
    Fence(usize),
}

/// A host of a ticket uses it, or its part: all but `spare` of its VMs, of which `made` go on.
#[derive(Debug, Clone, Copy)]
struct Use {
    ticket: usize,
    place: usize,
    spare: usize,
    made: usize,
    parent: usize,
    slow: bool,
    /// What is on other hosts is for those.
    keep: bool,
}

#[derive(Debug, Clone)]
struct Ask {
    family: u128,
    min: u32,
    more: u32,
    vcpus: u32,
    memory: u32,
    timeout_ms: u64,
    hosts: u8,
    /// 0: none.
    prefer: u8,
    /// 0: none.
    parent: u8,
    spread: bool,
    request: Option<u8>,
    by: bool,
}

fn ask() -> impl Strategy<Value = Ask> {
    let size = (1..4_u32, 0..3_u32, 1..3_u32, 1..4_u32);
    let timeout = prop_oneof![Just(0), Just(300), Just(2_000), Just(9_000)];
    let how = (timeout, prop_oneof![3 => Just(0), 2 => 1..8_u8], 0..4_u8, any::<bool>());
    let parent = prop_oneof![3 => Just(0), 2 => 1..5_u8];
    let who = (1..4_u128, prop::option::weighted(0.2, 0..3_u8), prop::bool::weighted(0.2), parent);
    (size, how, who).prop_map(
        |((min, more, vcpus, memory), (timeout_ms, hosts, prefer, spread), (family, request, by, parent))| {
            Ask { family, min, more, vcpus, memory, timeout_ms, hosts, prefer, parent, spread, request, by }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..64_usize;
    prop_oneof![
        12 => ask().prop_map(Op::Request),
        2 => n.clone().prop_map(Op::Gone),
        4 => n.clone().prop_map(Op::Release),
        9 => use_of().prop_map(Op::Use),
        2 => n.clone().prop_map(Op::Made),
        1 => n.clone().prop_map(Op::MasterEnds),
        2 => (n.clone(), n.clone(), any::<bool>())
            .prop_map(|(ticket, place, keep)| Op::UseNothing { ticket, place, keep }),
        6 => (n.clone(), any::<bool>()).prop_map(|(clone, killed)| Op::End { clone, killed }),
        5 => n.clone().prop_map(Op::Report),
        2 => n.clone().prop_map(Op::Obey),
        1 => n.clone().prop_map(Op::Down),
        3 => n.clone().prop_map(Op::Up),
        6 => n.clone().prop_map(Op::Beat),
        5 => (n.clone(), n.clone(), 1..3_000_u64, prop::bool::weighted(0.3))
            .prop_map(|(ticket, who, timeout_ms, lost)| Op::Arrive { ticket, who, timeout_ms, lost }),
        3 => n.clone().prop_map(Op::ArriveAll),
        2 => n.clone().prop_map(Op::Leave),
        2 => n.clone().prop_map(Op::Join),
        2 => (n.clone(), any::<bool>()).prop_map(|(ticket, all)| Op::Kill { ticket, all }),
        3 => reserve(),
        5 => (1..900_u64).prop_map(Op::Pass),
        1 => (5_000..30_000_u64).prop_map(Op::Pass),
        2 => Just(Op::ToDeadline),
        1 => Just(Op::Restart),
        2 => (n.clone(), scheduling()).prop_map(|(host, scheduling)| Op::Schedule(host, scheduling)),
        1 => n.clone().prop_map(Op::Fence),
    ]
}

fn use_of() -> impl Strategy<Value = Use> {
    let n = 0..64_usize;
    let how = (prop::bool::weighted(0.3), prop::bool::weighted(0.7));
    (n.clone(), n.clone(), 0..2_usize, n.clone(), n, how).prop_map(
        |(ticket, place, spare, made, parent, (slow, keep))| Use {
            ticket,
            place,
            spare,
            made,
            parent,
            slow,
            keep,
        },
    )
}

fn reserve() -> impl Strategy<Value = Op> {
    let at_least = prop_oneof![3 => Just(0), 1 => 0..200_u32];
    let what = (1..20_u32, at_least, prop::option::weighted(0.5, 0..4_u8));
    (1..4_u128, 1..4_u128, what).prop_map(|(family, host, (count, at_least, request))| {
        let request = request.map(|number| number.to_string());
        let (family, host, host_epoch) = (id(family), id(host), None);
        Op::Reserve(VmidDemand { family, host, host_epoch, count, request, at_least })
    })
}

fn scheduling() -> impl Strategy<Value = Scheduling> {
    prop_oneof![3 => Just(Scheduling::Open), 1 => Just(Scheduling::Cordoned), 1 => Just(Scheduling::Draining)]
}

/// Small requests of many families, and a few large ones that have time.
fn crowd() -> impl Strategy<Value = Op> {
    let small = (1..40_u128, 1..3_u32, 0..3_u8).prop_map(|(family, min, hosts)| (family, min, hosts, 60_000));
    let large = (1..5_u128, 4..7_u32, 0..3_u8).prop_map(|(family, min, hosts)| (family, min, hosts, 600_000));
    let ask = prop_oneof![12 => small, 1 => large].prop_map(|(family, min, hosts, timeout_ms)| {
        let (more, vcpus, memory, spread, request, by) = (0, 1, 1, false, None, min == 2 && family % 3 == 0);
        let (prefer, parent) = (0, if family % 4 == 0 { 1 + (family / 4 % 2) as u8 } else { 0 });
        Op::Request(Ask {
            family,
            min,
            more,
            vcpus,
            memory,
            timeout_ms,
            hosts,
            prefer,
            parent,
            spread,
            request,
            by,
        })
    });
    let n = 0..64_usize;
    prop_oneof![
        10 => ask,
        8 => n.clone().prop_map(Op::Release),
        4 => n.clone().prop_map(|clone| Op::End { clone, killed: false }),
        8 => n.clone().prop_map(Op::Report),
        2 => n.clone().prop_map(Op::Gone),
        1 => (1..100_u64).prop_map(Op::Pass),
        1 => (5_000..40_000_u64).prop_map(Op::Pass),
        4 => n.prop_map(Op::Beat),
    ]
}

fn set_up() -> Options {
    Options {
        ttl_ms: 3_000,
        lease_ms: 2_000,
        lost_after_ms: 5_000,
        remember_ms: 8_000,
        cpu_percent: 150,
        ..options()
    }
}

struct Sim {
    options: Options,
    world: World,
    hosts: BTreeMap<HostId, Host>,
    watch: Watch,
    vmids: BTreeMap<Uuid, u32>,
}

fn pick<T: std::clone::Clone>(of: impl IntoIterator<Item = T>, number: usize) -> Option<T> {
    let all: Vec<T> = of.into_iter().collect();
    (!all.is_empty()).then(|| all[number % all.len()].clone())
}

/// Whether a host has something of a ticket that it has not used.
fn is_unused(ticket: &Ticket, host: HostId) -> bool {
    let is_granted = ticket.state == State::Granted && ticket.places.contains_key(&host);
    is_granted || ticket.to_come().any(|(place, _)| place == host)
}

impl Sim {
    fn new(options: Options) -> Self {
        let hosts = [(1, 4, None), (2, 3, Some(3)), (3, 8, None)].map(|(number, cpus, max_vms)| {
            // VMs of the first fit the second, and no others fit another: see `invariants::fits`.
            let facts = [1, 3].get(number as usize - 1).map(|features| facts(*features));
            let info = HostInfo { memory_mib: 64 * 8, max_vms, facts, ..super::world::info(number, cpus) };
            let host = Host {
                info,
                connected: false,
                running: BTreeMap::new(),
                unnoted: BTreeMap::new(),
                making: BTreeMap::new(),
                masters_gone: BTreeSet::new(),
                masters_anew: BTreeSet::new(),
                orders: BTreeSet::new(),
                ghosts: BTreeSet::new(),
            };
            (id(number), host)
        });
        Self {
            world: World::with(options.clone()),
            options,
            hosts: hosts.into(),
            watch: Watch::default(),
            vmids: BTreeMap::new(),
        }
    }

    fn tickets(&self) -> Vec<Ticket> {
        self.world.store.values().cloned().collect()
    }

    fn of_state(&self, state: State) -> Vec<Ticket> {
        self.tickets().into_iter().filter(|ticket| ticket.state == state).collect()
    }

    fn clones(&self) -> Vec<(HostId, Clone)> {
        self.hosts.iter().flat_map(|(id, host)| host.running.keys().map(|clone| (*id, *clone))).collect()
    }

    fn host(&self, number: usize) -> HostId {
        pick(self.hosts.keys().copied(), number).unwrap()
    }

    fn new_vmids(&mut self, family: Uuid, count: usize) -> Vec<u32> {
        let last = self.vmids.entry(family).or_default();
        let first = *last + 1;
        *last += u32::try_from(count).unwrap();
        (first..=*last).collect()
    }

    /// A command, with all that has to hold after it.
    fn apply(&mut self, command: Command) {
        let closed_before = self.closed();
        self.watch.before(&self.world, &command);
        self.world.apply(command);
        for effect in self.world.effects.clone() {
            if let Effect::Kill { host, family, vmids, .. } = effect {
                let host = self.hosts.get_mut(&host).unwrap();
                host.orders.extend(vmids.into_iter().map(|vmid| (family, vmid)));
            }
        }
        self.cut();
        self.start_immediate();
        self.check_grants(&closed_before);
        self.watch.check_step(&self.world);
    }

    /// Hosts that may be granted nothing.
    fn closed(&self) -> BTreeSet<HostId> {
        let states = self.world.core.hosts();
        states.iter().filter(|host| !host.is_usable()).map(|host| host.info.id).collect()
    }

    /// On a host that is closed nothing is granted. One whose lease ends at that moment was not.
    fn check_grants(&self, closed_before: &BTreeSet<HostId>) {
        let closed = self.closed();
        for ticket in self.watch.granted(&self.world) {
            let found = ticket.places.keys().find(|id| closed.contains(id) && closed_before.contains(id));
            assert_eq!(found, None, "{} is granted there", ticket.id);
        }
    }

    fn call(&mut self, command: impl FnOnce(Waiter) -> Command) -> Waiter {
        let waiter = self.world.waiter();
        self.apply(command(waiter));
        waiter
    }

    fn is_ok(&self, waiter: Waiter) -> bool {
        matches!(self.world.answers.get(&waiter), Some(Ok(_)))
    }

    fn request(&mut self, ask: &Ask) {
        let family = id(ask.family);
        let by = ask.by.then(|| UseBy {
            parent_vmid: 0,
            vmids: self.new_vmids(family, ask.min as usize),
            host_epoch: None,
        });
        let hosts = (0..3_u8).filter(|bit| ask.hosts >> bit & 1 == 1).map(|bit| id(u128::from(bit) + 1));
        let demand = Demand {
            family,
            request_id: ask.request.filter(|_| !ask.by).map(|number| number.to_string()),
            max_cpus: (ask.min + ask.more) * ask.vcpus,
            min_vms: ask.min,
            min_cpus_per_vm: 1,
            vcpus: ask.vcpus,
            memory_mib: ask.memory * 64,
            timeout_ms: ask.timeout_ms,
            hosts: hosts.collect(),
            policy: ask.spread.then_some(Policy::Spread),
            prefer: (ask.prefer > 0).then(|| id(ask.prefer.into())),
            needs: None,
            parent: (ask.parent > 0).then(|| id(ask.parent.into())),
            images: (ask.parent > 0).then(|| image(ask.parent.into())).into_iter().collect(),
            ttl_ms: None,
            use_by: by,
        };
        self.call(|waiter| Command::Request { waiter, demand });
    }

    /// Clones by number that were granted in this step run from now on.
    fn start_immediate(&mut self) {
        for ticket in self.watch.granted(&self.world).into_iter().filter(|ticket| ticket.immediate) {
            for (vmid, host) in &ticket.clones {
                self.start(&ticket, *vmid, *host);
            }
        }
    }

    fn start(&mut self, ticket: &Ticket, vmid: u32, host: HostId) {
        self.begin(ticket, vmid, host);
        self.made((host, (ticket.id, ticket.family, vmid)));
    }

    /// A clone is being made.
    fn begin(&mut self, ticket: &Ticket, vmid: u32, host: HostId) {
        let Ticket { parent_vmid, parent_host, .. } = *ticket;
        let running = Running { parent_vmid, parent_host, ..super::world::running(ticket, vmid) };
        let making = &mut self.hosts.get_mut(&host).unwrap().making;
        making.insert((ticket.id, ticket.family, vmid), running);
        if ticket.parent_vmid == Some(0) {
            let home = self.hosts.get_mut(&ticket.parent_host.unwrap()).unwrap();
            if home.masters_gone.remove(&ticket.family) {
                home.masters_anew.insert(ticket.family);
            }
        }
    }

    /// It runs.
    fn made(&mut self, (host, clone): (HostId, Clone)) {
        let host = self.hosts.get_mut(&host).unwrap();
        let running = host.making.remove(&clone).unwrap();
        host.running.insert(clone, running);
    }

    fn all_making(&self) -> Vec<(HostId, Clone)> {
        self.hosts.iter().flat_map(|(id, host)| host.making.keys().map(|clone| (*id, *clone))).collect()
    }

    fn master_ends(&mut self, ticket: &Ticket) {
        let (host, family) = (ticket.parent_host.unwrap(), ticket.family);
        self.hosts.get_mut(&host).unwrap().masters_gone.insert(family);
        if self.hosts[&host].connected {
            let epoch = self.world.hosts[&host];
            let (clones, masters) = (Vec::new(), vec![family]);
            self.call(|waiter| Command::Ended { waiter, host, epoch, clones, masters });
            self.check_orphans(host);
        }
    }

    /// The scheduler knows of the masters that have ended on a host that has just said so.
    fn check_orphans(&self, host: HostId) {
        let used = self.of_state(State::Used).into_iter();
        let cloned = used.filter(|t| t.parent_vmid == Some(0) && t.parent_host == Some(host));
        for ticket in cloned {
            let gone = self.hosts[&host].masters_gone.contains(&ticket.family);
            assert!(ticket.parent_ended || !gone, "{} waits for a master that has ended", ticket.id);
        }
    }

    /// Who clones with a ticket: the VM that has cloned with other parts of it, or any.
    fn parent(&self, ticket: &Ticket, host: HostId, how: Use) -> (u32, HostId) {
        if let (Some(vmid), Some(place)) = (ticket.parent_vmid, ticket.parent_host) {
            return (vmid, place);
        }
        let place = if how.keep { self.host(how.place / 7) } else { host };
        let live = self.watch.live_on(&self.world, place).into_iter().filter(|c| c.1 == ticket.family);
        let running = live.filter(|clone| self.hosts[&place].running.contains_key(clone));
        let parents = std::iter::once(0).chain(running.map(|(_, _, vmid)| vmid));
        (pick(parents, how.parent).unwrap(), place)
    }

    /// A host uses a ticket, or its part. Returns the host, and whether it has.
    fn spend(&mut self, ticket: &Ticket, how: Use) -> (HostId, bool) {
        let places = ticket.places.keys().copied();
        let host = pick(places.filter(|host| is_unused(ticket, *host)), how.place).unwrap();
        let has = ticket.places[&host] as usize;
        let vmids = self.new_vmids(ticket.family, has.saturating_sub(how.spare).max(1));
        let (parent_vmid, parent_host) = self.parent(ticket, host, how);
        let usage = Usage {
            epoch: Some(ticket.epoch),
            parent_vmid,
            parent_host,
            keep_others: how.keep,
            ..super::world::usage(ticket.id, host, vmids.clone())
        };
        let waiter = self.call(|waiter| Command::Use(waiter, usage));
        if !self.is_ok(waiter) {
            return (host, false);
        }
        self.watch.used(ticket.id, host, &vmids);
        let used = self.world.get(ticket.id);
        if how.made == usize::MAX {
            return (host, true);
        }
        for (place, vmid) in vmids.iter().enumerate() {
            if how.slow {
                self.begin(&used, *vmid, host);
                continue;
            }
            self.start(&used, *vmid, host);
            if place >= how.made {
                self.end((host, (used.id, used.family, *vmid)), VmEnd::Ended);
            }
        }
        (host, true)
    }

    /// Tickets that some host may use.
    fn usable(&self) -> Vec<Ticket> {
        let is_one = |ticket: &Ticket| ticket.places.keys().any(|host| is_unused(ticket, *host));
        self.tickets().into_iter().filter(is_one).collect()
    }

    fn use_nothing(&mut self, ticket: &Ticket, place: usize, keep: bool) {
        let how = Use { ticket: 0, place, spare: 0, made: usize::MAX, parent: 0, slow: false, keep };
        let (host, is_used) = self.spend(ticket, how);
        let id = ticket.id;
        let waiter = self.call(|waiter| Command::Unuse { waiter, ticket: named(id), epoch: None, host });
        if is_used {
            assert!(self.is_ok(waiter), "{:?}", self.world.answers.get(&waiter));
            self.watch.unused(&self.world, id, host);
        }
    }

    fn end(&mut self, (host, clone): (HostId, Clone), end: VmEnd) {
        let host = self.hosts.get_mut(&host).unwrap();
        if let Some(running) = host.running.remove(&clone) {
            host.unnoted.insert(clone, (running, end));
        }
    }

    fn report(&mut self, host: HostId) {
        let unnoted = &self.hosts[&host].unnoted;
        if !self.hosts[&host].connected || unnoted.is_empty() {
            return;
        }
        let clones: Vec<_> =
            unnoted.iter().map(|((ticket, _, vmid), (_, end))| (*ticket, *vmid, *end)).collect();
        let epoch = self.world.hosts[&host];
        let waiter = self.call(|waiter| Command::Ended { waiter, host, epoch, clones, masters: Vec::new() });
        if self.is_ok(waiter) {
            let host = self.hosts.get_mut(&host).unwrap();
            for clone in std::mem::take(&mut host.unnoted).into_keys() {
                host.ghosts.remove(&clone);
            }
        }
    }

    fn up(&mut self, host: HostId) {
        let up = &self.hosts[&host];
        let unnoted = up.unnoted.values().map(|(running, _)| *running);
        let running: Vec<_> =
            up.running.values().copied().chain(up.making.values().copied()).chain(unnoted).collect();
        let making = up.making.keys().map(|(ticket, ..)| *ticket).collect();
        let families = (1..40).map(id);
        let masters = Some(families.filter(|family| !up.masters_gone.contains(family)).collect());
        let info = up.info.clone();
        // Those that ask name images that some hosts have, or none.
        let images = Some((1..=2).filter(|number| info.id == id(*number)).map(image).collect());
        let listed: Vec<Clone> = running.iter().map(|r| (r.ticket, r.family, r.vmid)).collect();
        let lost: Vec<Clone> = listed.iter().filter(|clone| self.was_lost(clone)).copied().collect();
        let waiter = self.call(|waiter| Command::HostUp {
            waiter,
            info,
            present: Present { running, making, masters, images },
        });
        let Ok(Reply::Registered(epoch)) = self.world.was_answered(waiter) else { panic!() };
        self.world.hosts.insert(host, epoch);
        let live = self.watch.live_on(&self.world, host);
        let up = self.hosts.get_mut(&host).unwrap();
        up.connected = true;
        up.ghosts = listed.into_iter().filter(|clone| !live.contains(clone)).collect();
        let missing: Vec<_> = lost.iter().filter(|clone| !live.contains(clone)).collect();
        assert!(missing.is_empty(), "{missing:?} were lost with {host}, and are not kept");
        self.check_orphans(host);
    }

    /// Whether a clone was lost, and nobody has killed it: no vmid is given twice here.
    fn was_lost(&self, (ticket, _, vmid): &Clone) -> bool {
        self.world
            .store
            .get(ticket)
            .is_some_and(|ticket| ticket.is_lost(*vmid) && !ticket.kills_requested.contains_key(vmid))
    }

    /// What is to end there is among the orders of a host that has just heard them.
    fn check_orders(&self, host: HostId) {
        let Host { orders, ghosts, .. } = &self.hosts[&host];
        let missing = ghosts.iter().find(|(_, family, vmid)| !orders.contains(&(*family, *vmid)));
        assert_eq!(missing, None, "it should not run on {host}, and nobody says so");
        for (_, family, vmid) in self.watch.live_on(&self.world, host) {
            let is_told = orders.contains(&(family, vmid));
            assert!(is_told || !self.watch.is_killed(family, vmid), "{vmid} is to end");
        }
    }

    fn obey(&mut self, host: HostId) {
        let orders = std::mem::take(&mut self.hosts.get_mut(&host).unwrap().orders);
        for (family, vmid) in orders {
            let found = self.hosts[&host].running.keys().find(|c| (c.1, c.2) == (family, vmid)).copied();
            if let Some(clone) = found {
                self.end((host, clone), VmEnd::Killed);
            }
        }
    }

    /// A VM arrives; what it is answered is `lost`, or not.
    fn arrive(&mut self, ticket: &Ticket, who: usize, timeout_ms: u64, lost: bool) {
        let members = ticket.clones.keys().copied().chain([ticket.parent_vmid.unwrap_or(0), 9_999]);
        let vmid = pick(members, who).unwrap();
        self.arrive_as(ticket, vmid, timeout_ms, lost);
    }

    fn arrive_as(&mut self, ticket: &Ticket, vmid: u32, timeout_ms: u64, lost: bool) {
        let ticket = named(ticket.id);
        let timeout_ms = Some(timeout_ms);
        let after_round = Some(self.watch.heard(ticket.id, vmid));
        let waiter = self.world.waiter();
        if lost {
            self.watch.lose(waiter);
        }
        self.apply(Command::Arrive { waiter, ticket, vmid, after_round, timeout_ms });
    }

    fn schedule(&mut self, host: HostId, scheduling: Scheduling) {
        self.call(|waiter| Command::SetScheduling { waiter, host, scheduling });
        let left = self.usable().iter().any(|ticket| is_unused(ticket, host));
        assert!(!left || scheduling != Scheduling::Draining, "something is left to be used on {host}");
    }

    fn kill(&mut self, ticket: &Ticket, all: bool) {
        let (targets, family) = if all {
            (Targets::Ticket(ticket.id), ticket.family)
        } else {
            (Targets::Vmids(ticket.clones.keys().take(1).copied().collect()), ticket.family)
        };
        let reason = String::new();
        self.call(|waiter| Command::Kill { waiter, family, targets, reason });
    }

    fn reserve(&mut self, demand: &VmidDemand) {
        let waiter = self.call(|waiter| Command::ReserveVmids(waiter, demand.clone()));
        self.watch.reserved(&self.world, demand, waiter);
    }

    fn restart(&mut self) {
        let before = self.world.store.clone();
        let all_up = self.hosts.values().all(|host| host.connected && host.ghosts.is_empty());
        self.world.restart(self.options.clone());
        self.watch.restart();
        for host in self.hosts.values_mut() {
            host.connected = false;
            host.orders.clear();
        }
        if all_up {
            for number in 0..self.hosts.len() {
                self.up(self.host(number));
            }
            // But for what clones left after their master had ended, of which the scheduler hears
            // now.
            let all_kept = |mut store: BTreeMap<Uuid, Ticket>| {
                let results = store.values_mut().flat_map(|ticket| ticket.results.values_mut());
                results.for_each(|left| left.kept = Kept::Yes);
                store
            };
            let now = self.world.store.clone();
            assert_eq!(all_kept(before), all_kept(now), "the ledger is what it was");
        }
    }

    fn act(&mut self, op: &Op) {
        match op {
            Op::Request(ask) => self.request(ask),
            Op::Gone(number) => {
                if let Some(waiter) = pick(self.world.open.clone(), *number) {
                    self.apply(Command::Gone(waiter));
                }
            }
            Op::Release(number) => {
                if let Some(ticket) = pick(self.tickets(), *number) {
                    self.call(|waiter| Command::Release(waiter, named(ticket.id)));
                }
            }
            Op::Use(how) => {
                if let Some(ticket) = pick(self.usable(), how.ticket) {
                    self.spend(&ticket, *how);
                }
            }
            Op::Made(number) => {
                if let Some(clone) = pick(self.all_making(), *number) {
                    self.made(clone);
                }
            }
            Op::UseNothing { ticket, place, keep } => {
                if let Some(ticket) = pick(self.usable(), *ticket) {
                    self.use_nothing(&ticket, *place, *keep);
                }
            }
            Op::End { clone, killed } => {
                if let Some(clone) = pick(self.clones(), *clone) {
                    self.end(clone, if *killed { VmEnd::Killed } else { VmEnd::Ended });
                }
            }
            Op::Report(number) => self.report(self.host(*number)),
            Op::Obey(number) => self.obey(self.host(*number)),
            Op::Down(number) => {
                let host = self.host(*number);
                self.hosts.get_mut(&host).unwrap().connected = false;
                if let Some(epoch) = self.world.hosts.get(&host).copied() {
                    self.apply(Command::HostDown { host, epoch });
                }
            }
            Op::Up(number) => self.up(self.host(*number)),
            Op::Beat(number) => {
                let host = self.host(*number);
                if let Some(epoch) = self.world.hosts.get(&host).copied() {
                    self.apply(Command::HostBeat { host, epoch, beat: Beat::default() });
                }
                if self.hosts[&host].connected {
                    self.check_orders(host);
                }
            }
            _ => self.act_together(op),
        }
    }

    fn act_together(&mut self, op: &Op) {
        match op {
            Op::Arrive { ticket, who, timeout_ms, lost } => {
                if let Some(ticket) = pick(self.tickets(), *ticket) {
                    self.arrive(&ticket, *who, *timeout_ms, *lost);
                }
            }
            Op::ArriveAll(number) => {
                if let Some(ticket) = pick(self.of_state(State::Used), *number) {
                    let parent = ticket.parent_vmid.filter(|_| !ticket.parent_ended);
                    for vmid in ticket.live().map(|(vmid, _)| vmid).chain(parent).collect::<Vec<_>>() {
                        self.arrive_as(&ticket, vmid, 5_000, false);
                    }
                }
            }
            Op::Leave(number) => {
                if let Some((_, (ticket, _, vmid))) = pick(self.clones(), *number) {
                    let ticket = named(ticket);
                    let leave = |waiter| Command::JoinLeave {
                        waiter,
                        ticket,
                        vmid,
                        status: 1,
                        data_bytes: 2,
                        reported: true,
                    };
                    self.call(leave);
                }
            }
            Op::Join(number) => {
                if let Some(ticket) = pick(self.tickets(), *number) {
                    let (vmid, named) = (ticket.parent_vmid, named(ticket.id));
                    let timeout_ms = Some(4_000);
                    self.call(|waiter| Command::JoinWait { waiter, ticket: named, vmid, timeout_ms });
                }
            }
            Op::MasterEnds(number) => {
                let used = self.of_state(State::Used).into_iter();
                if let Some(ticket) = pick(used.filter(|ticket| ticket.parent_vmid == Some(0)), *number) {
                    self.master_ends(&ticket);
                }
            }
            Op::Kill { ticket, all } => {
                if let Some(ticket) = pick(self.tickets(), *ticket) {
                    self.kill(&ticket, *all);
                }
            }
            Op::Reserve(wanted) => self.reserve(wanted),
            Op::Pass(ms) => {
                self.world.now += ms;
                self.apply(Command::Tick);
            }
            Op::ToDeadline => {
                self.world.now =
                    self.world.core.next_deadline().unwrap_or(self.world.now).max(self.world.now);
                self.apply(Command::Tick);
            }
            Op::Restart => self.restart(),
            Op::Schedule(number, scheduling) => self.schedule(self.host(*number), *scheduling),
            Op::Fence(number) => {
                let host = self.host(*number);
                self.call(|waiter| Command::FenceHost { waiter, host });
            }
            _ => unreachable!("the others are in `act`"),
        }
    }

    /// Hosts whose lease is over have lost their connection.
    fn cut(&mut self) {
        let alive: BTreeSet<_> =
            self.world.core.hosts().iter().filter(|host| host.is_up()).map(|host| host.info.id).collect();
        for (id, host) in &mut self.hosts {
            host.connected &= alive.contains(id);
        }
    }
}

proptest! {
    #[test]
    fn holds_whatever_happens(ops in prop::collection::vec(op(), 1..150)) {
        let mut sim = Sim::new(set_up());
        for number in 0..3 {
            sim.up(sim.host(number));
        }
        for op in &ops {
            sim.act(op);
            sim.watch.check_hosts(&sim.world, &sim.hosts);
        }
        // Everybody is answered in the end, though no host says anything any more.
        for _ in 0..10 {
            sim.act(&Op::Pass(3_000));
            sim.watch.check_hosts(&sim.world, &sim.hosts);
        }
        prop_assert!(sim.world.open.is_empty(), "{:?} still wait", sim.world.open);
    }

    #[test]
    fn what_is_to_end_ends_and_holds_nothing(ops in prop::collection::vec(op(), 1..100)) {
        let mut sim = Sim::new(set_up());
        for number in 0..3 {
            sim.up(sim.host(number));
        }
        for op in &ops {
            sim.act(op);
        }
        // Orders are lost that come while clones are being made. Then all are made, and hosts do
        // what they hear from now on.
        for number in 0..3 {
            sim.up(sim.host(number));
            let host = sim.host(number);
            sim.hosts.get_mut(&host).unwrap().orders.clear();
        }
        while let Some(clone) = sim.all_making().first().copied() {
            sim.made(clone);
        }
        for number in 0..3 {
            sim.act(&Op::Beat(number));
            sim.act(&Op::Obey(number));
            sim.act(&Op::Report(number));
            sim.watch.check_hosts(&sim.world, &sim.hosts);
        }
        for (id, host) in &sim.hosts {
            prop_assert!(host.ghosts.is_empty(), "{:?} still run on {id}", host.ghosts);
        }
        prop_assert!(sim.watch.nobody_kills(), "some still wait for an end");
    }

    #[test]
    fn nobody_is_passed_over_for_ever(ops in prop::collection::vec(crowd(), 100..400)) {
        // Time passes without leases: nothing but the queue decides.
        let options = Options { lease_ms: 0, ttl_ms: 10_000_000, remember_ms: 10_000_000, ..set_up() };
        let mut sim = Sim::new(options);
        for number in 0..2 {
            sim.up(sim.host(number));
        }
        for op in &ops {
            sim.act(op);
            sim.watch.check_hosts(&sim.world, &sim.hosts);
        }
    }
}
