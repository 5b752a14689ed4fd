//! A core with what is around it: a clock, a store and those who call. What has to hold after every
//! command is checked after every command.

use crate::core::{
    Core,
    api::{
        Beat, Closed, Command, CoreError, Demand, Effect, HostChange, HostInfo, Image, Listing, Named,
        Options, Present, Reply, Running, Targets, UnixMs, Usage, VmidDemand, Waiter,
    },
    epochs::Epochs,
    present::Facts,
    record::{HostRecord, Scheduling},
    ticket::{HostId, Policy, State, Ticket, VmEnd},
    vmids::VmidRecord,
};
use patina_control::config::KvmKind;
use patina_snapshot::{cpuid::CpuidEntry, facts::HostFacts};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A world that begins with this time.
pub const BEGIN: UnixMs = 1_000_000;

pub fn options() -> Options {
    Options {
        ttl_ms: 60_000,
        lease_ms: 10_000,
        lost_after_ms: 30_000,
        remember_ms: 100_000,
        cpu_percent: 100,
        memory_percent: 100,
        policy: Policy::Pack,
    }
}

/// The number of a family, host or ticket.
pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A kernel or a root file system.
pub fn image(number: u128) -> Image {
    let mut image = Image::default();
    image[..16].copy_from_slice(&number.to_le_bytes());
    image
}

/// Family 7 asks for 1-CPU, 64 MiB VMs, as many as `most`, at least `min`.
pub fn demand(min: u32, most: u32) -> Demand {
    Demand {
        family: id(7),
        request_id: None,
        max_cpus: most,
        min_vms: min,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: 64,
        timeout_ms: 0,
        hosts: Vec::new(),
        prefer: None,
        parent: None,
        needs: None,
        images: BTreeSet::new(),
        policy: None,
        ttl_ms: None,
        use_by: None,
    }
}

pub struct World {
    pub core: Core,
    pub now: UnixMs,
    pub store: BTreeMap<Uuid, Ticket>,
    /// The hosts that are stored.
    pub stored_hosts: BTreeMap<HostId, HostRecord>,
    /// The counters of vmids that are stored.
    pub vmids: BTreeMap<Uuid, VmidRecord>,
    /// The answers, by waiter.
    pub answers: BTreeMap<Waiter, Result<Reply, CoreError>>,
    /// The waiters.
    pub open: BTreeSet<Waiter>,
    /// What the last command brought.
    pub effects: Vec<Effect>,
    pub epochs: BTreeMap<Uuid, u64>,
    /// Up to where epochs are reserved.
    pub reserved: u64,
    /// What clones left and is stored, bytes.
    pub data: BTreeMap<(Uuid, u32), u64>,
    /// Of the last registration of each host.
    pub hosts: BTreeMap<HostId, u64>,
    last_waiter: u64,
}

impl World {
    pub fn new() -> Self {
        Self::with(options())
    }

    pub fn with(options: Options) -> Self {
        Self {
            core: Core::new(options, Vec::new(), &[], Epochs::after(0, BEGIN), BEGIN),
            reserved: 0,
            data: BTreeMap::new(),
            now: BEGIN,
            store: BTreeMap::new(),
            stored_hosts: BTreeMap::new(),
            vmids: BTreeMap::new(),
            answers: BTreeMap::new(),
            open: BTreeSet::new(),
            effects: Vec::new(),
            epochs: BTreeMap::new(),
            hosts: BTreeMap::new(),
            last_waiter: 0,
        }
    }

    pub fn waiter(&mut self) -> Waiter {
        self.last_waiter += 1;
        self.open.insert(Waiter(self.last_waiter));
        Waiter(self.last_waiter)
    }

    pub fn apply(&mut self, command: Command) {
        if let Command::Gone(waiter) = &command {
            self.open.remove(waiter);
        }
        self.effects.clear();
        let leaves = match &command {
            Command::JoinLeave { waiter, ticket, vmid, data_bytes, .. } => {
                Some((*waiter, (ticket.id, *vmid), *data_bytes))
            }
            _ => None,
        };
        self.core.apply(self.now, command, &mut self.effects);
        self.reserved = self.core.epochs().reserved();
        if let Some((waiter, clone, bytes)) = leaves
            && self.effects.contains(&Effect::Answer(waiter, Ok(Reply::Noted)))
        {
            self.data.insert(clone, bytes);
        }
        for effect in self.effects.clone() {
            self.carry_out(effect);
        }
        self.check_store();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Put(id) => {
                if let Ok(ticket) = self.core.ticket(Named { id, family: None }) {
                    self.store.insert(id, ticket.clone());
                }
            }
            Effect::PutHost(id) | Effect::ForgetHost(id) => {
                match self.core.host_record(id) {
                    Some(record) => self.stored_hosts.insert(id, record),
                    None => self.stored_hosts.remove(&id),
                };
            }
            Effect::PutVmids(family) => {
                match self.core.vmid_record(family) {
                    Some(record) => self.vmids.insert(family, record.clone()),
                    None => self.vmids.remove(&family),
                };
            }
            Effect::DropData { ticket, vmid } => {
                assert!(self.data.remove(&(ticket, vmid)).is_some(), "it is dropped once");
            }
            Effect::Forget(id) => {
                self.data.retain(|(ticket, _), _| *ticket != id);
                self.store.remove(&id);
            }
            Effect::Answer(waiter, answer) => {
                assert!(self.open.remove(&waiter), "{waiter:?} is answered {answer:?} and does not wait");
                if let Ok(Reply::Registered(epoch)) = &answer {
                    assert!(self.hosts.values().all(|before| before < epoch), "epochs only grow");
                }
                self.answers.insert(waiter, answer);
            }
            Effect::Became(became) => {
                assert!(self.store.contains_key(&became.ticket), "it is stored before it is told");
            }
            Effect::Kill { .. } | Effect::Cut { .. } => {}
        }
    }

    /// What is stored is what is known; epochs only grow.
    fn check_store(&mut self) {
        let known: BTreeMap<_, _> =
            self.core.tickets(&everything()).into_iter().map(|t| (t.id, t.clone())).collect();
        assert_eq!(known, self.store);
        for id in self.core.hosts().iter().map(|host| host.info.id) {
            assert_eq!(self.core.host_record(id).as_ref(), self.stored_hosts.get(&id), "host {id}");
        }
        let counters: Vec<_> = self.core.vmids.records().cloned().collect();
        assert_eq!(counters, self.vmids.values().cloned().collect::<Vec<_>>());
        let kept = known.values().flat_map(|ticket| ticket.results.values()).map(|left| left.kept_bytes());
        let kept: u64 = kept.sum();
        assert_eq!((kept, kept), (self.core.counts().data_bytes, self.data.values().sum()), "data");
        let mut closed = Closed::default();
        let hosts = self.core.hosts();
        hosts
            .iter()
            .filter_map(|host| self.core.hosts.get(host.info.id))
            .for_each(|host| closed.add(host.closed()));
        if self.core.counts().hosts == hosts.len() as u64 {
            assert_eq!(self.core.hosts.closed(), closed, "hosts that are granted nothing");
        }
        for ticket in known.values() {
            let before = self.epochs.insert(ticket.id, ticket.epoch).unwrap_or(0);
            assert!(before <= ticket.epoch, "the epoch of {} goes back", ticket.id);
        }
    }

    pub fn call(&mut self, command: impl FnOnce(Waiter) -> Command) -> Waiter {
        let waiter = self.waiter();
        self.apply(command(waiter));
        waiter
    }

    /// The answer of a call that does not wait.
    pub fn answer(&mut self, command: impl FnOnce(Waiter) -> Command) -> Result<Reply, CoreError> {
        let waiter = self.call(command);
        self.answers.get(&waiter).cloned().expect("this is answered at once")
    }

    pub fn ticket(&mut self, command: impl FnOnce(Waiter) -> Command) -> Result<Ticket, CoreError> {
        self.answer(command).map(ticket_of)
    }

    pub fn request(&mut self, demand: Demand) -> Result<Ticket, CoreError> {
        self.ticket(|waiter| Command::Request { waiter, demand })
    }

    /// A request that may wait.
    pub fn ask(&mut self, demand: Demand) -> Waiter {
        self.call(|waiter| Command::Request { waiter, demand })
    }

    pub fn release(&mut self, id: Uuid) -> Result<Ticket, CoreError> {
        self.ticket(|waiter| Command::Release(waiter, named(id)))
    }

    /// Its first host uses a ticket for VM 0.
    pub fn spend(
        &mut self,
        ticket: &Ticket,
        vmids: impl IntoIterator<Item = u32>,
    ) -> Result<Ticket, CoreError> {
        let host = *ticket.places.keys().next().unwrap();
        self.spend_at(ticket.id, host, vmids)
    }

    pub fn spend_at(
        &mut self,
        ticket: Uuid,
        host: HostId,
        vmids: impl IntoIterator<Item = u32>,
    ) -> Result<Ticket, CoreError> {
        self.ticket(|waiter| Command::Use(waiter, usage(ticket, host, vmids)))
    }

    /// A host uses its part of a ticket for VM 0 of host 1.
    pub fn spend_part(
        &mut self,
        ticket: Uuid,
        host: HostId,
        vmids: impl IntoIterator<Item = u32>,
    ) -> Result<Ticket, CoreError> {
        let usage = Usage { parent_host: id(1), keep_others: true, ..usage(ticket, host, vmids) };
        self.ticket(|waiter| Command::Use(waiter, usage))
    }

    pub fn unuse(&mut self, ticket: &Ticket) -> Result<Ticket, CoreError> {
        let host = *ticket.places.keys().next().unwrap();
        self.unuse_at(ticket.id, host)
    }

    pub fn unuse_at(&mut self, id: Uuid, host: HostId) -> Result<Ticket, CoreError> {
        self.ticket(|waiter| Command::Unuse { waiter, ticket: named(id), epoch: None, host })
    }

    /// A host with so many CPUs and 64 MiB for each is there.
    pub fn host(&mut self, number: u128, cpus: u32) -> HostId {
        self.host_with(info(number, cpus), Vec::new())
    }

    pub fn host_with(&mut self, info: HostInfo, running: Vec<Running>) -> HostId {
        self.host_present(info, Present { running, ..Present::default() })
    }

    pub fn host_making(&mut self, info: HostInfo, running: Vec<Running>, making: Vec<Uuid>) -> HostId {
        let making = making.into_iter().collect();
        self.host_present(info, Present { running, making, ..Present::default() })
    }

    pub fn host_present(&mut self, info: HostInfo, present: Present) -> HostId {
        let host = info.id;
        let answer = self.answer(|waiter| Command::HostUp { waiter, info, present });
        let Ok(Reply::Registered(epoch)) = answer else { panic!("{answer:?}") };
        self.hosts.insert(host, epoch);
        host
    }

    pub fn beat(&mut self, host: HostId) {
        let epoch = self.hosts[&host];
        self.apply(Command::HostBeat { host, epoch, beat: Beat::default() });
    }

    pub fn down(&mut self, host: HostId) {
        let epoch = self.hosts[&host];
        self.apply(Command::HostDown { host, epoch });
    }

    pub fn ended(&mut self, host: HostId, ticket: Uuid, vmids: impl IntoIterator<Item = u32>, end: VmEnd) {
        let clones = vmids.into_iter().map(|vmid| (ticket, vmid, end)).collect();
        let epoch = self.hosts[&host];
        let answer =
            self.answer(|waiter| Command::Ended { waiter, host, epoch, clones, masters: Vec::new() });
        assert_eq!(answer, Ok(Reply::Noted));
    }

    /// The masters of these families end.
    pub fn masters_ended(&mut self, host: HostId, families: impl IntoIterator<Item = u128>) {
        let masters = families.into_iter().map(id).collect();
        let epoch = self.hosts[&host];
        let answer =
            self.answer(|waiter| Command::Ended { waiter, host, epoch, clones: Vec::new(), masters });
        assert_eq!(answer, Ok(Reply::Noted));
    }

    pub fn arrive(&mut self, ticket: Uuid, vmid: u32, timeout_ms: Option<u64>) -> Waiter {
        self.call(|waiter| Command::Arrive {
            waiter,
            ticket: named(ticket),
            vmid,
            after_round: None,
            timeout_ms,
        })
    }

    /// A VM arrives that was at that meeting, and at none after it.
    pub fn arrive_after(&mut self, round: u64, ticket: Uuid, vmid: u32) -> Waiter {
        let (ticket, after_round) = (named(ticket), Some(round));
        self.call(|waiter| Command::Arrive { waiter, ticket, vmid, after_round, timeout_ms: None })
    }

    pub fn join(&mut self, ticket: Uuid, timeout_ms: Option<u64>) -> Waiter {
        self.call(|waiter| Command::JoinWait { waiter, ticket: named(ticket), vmid: Some(0), timeout_ms })
    }

    pub fn leave(
        &mut self,
        ticket: Uuid,
        vmid: u32,
        status: i32,
        data_bytes: u64,
    ) -> Result<Reply, CoreError> {
        let ticket = named(ticket);
        self.answer(|waiter| Command::JoinLeave { waiter, ticket, vmid, status, data_bytes, reported: true })
    }

    pub fn kill(&mut self, targets: Targets) -> Waiter {
        self.call(|waiter| Command::Kill { waiter, family: id(7), targets, reason: "test".into() })
    }

    /// A host reserves vmids of family 7, for a request of this name if it has one.
    pub fn reserve(
        &mut self,
        host: HostId,
        count: u32,
        at_least: u32,
        request: &str,
    ) -> Result<(u32, u32), CoreError> {
        let request = (!request.is_empty()).then(|| request.to_owned());
        let demand = VmidDemand { family: id(7), host, host_epoch: None, count, request, at_least };
        match self.answer(|waiter| Command::ReserveVmids(waiter, demand))? {
            Reply::Vmids { first, count } => Ok((first, count)),
            other => panic!("{other:?}"),
        }
    }

    /// An operator wants something else of a host.
    pub fn schedule(&mut self, host: HostId, scheduling: Scheduling) -> Result<HostChange, CoreError> {
        let answer = self.answer(|waiter| Command::SetScheduling { waiter, host, scheduling });
        answer.map(|reply| change_of(&reply))
    }

    /// An operator gives up a host.
    pub fn fence(&mut self, host: HostId) -> Result<HostChange, CoreError> {
        self.answer(|waiter| Command::FenceHost { waiter, host }).map(|reply| change_of(&reply))
    }

    /// Time passes.
    pub fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.apply(Command::Tick);
    }

    /// As it is now.
    pub fn get(&self, id: Uuid) -> Ticket {
        self.core.ticket(named(id)).cloned().unwrap()
    }

    pub fn state(&self, id: Uuid) -> State {
        self.get(id).state
    }

    pub fn held(&self, host: HostId) -> u32 {
        self.core.hosts().iter().find(|state| state.info.id == host).map_or(0, |state| state.held_vms)
    }

    /// The scheduler is killed and started again; nobody of those who waited is there any more.
    pub fn restart(&mut self, options: Options) {
        self.open.clear();
        let (stored, epochs) = (self.store.values().cloned().collect(), Epochs::after(self.reserved, 0));
        let hosts: Vec<_> = self.stored_hosts.values().cloned().collect();
        self.core = Core::new(options, stored, &hosts, epochs, self.now);
        self.core.recall_vmids(self.vmids.values().cloned().collect());
        self.check_store();
    }

    pub fn waits(&self, waiter: Waiter) -> bool {
        self.open.contains(&waiter)
    }

    pub fn was_answered(&self, waiter: Waiter) -> Result<Reply, CoreError> {
        self.answers.get(&waiter).cloned().unwrap_or_else(|| panic!("{waiter:?} was not answered"))
    }

    pub fn met(&self, waiter: Waiter) -> (u64, u32) {
        match self.was_answered(waiter) {
            Ok(Reply::Met { round, arrived }) => (round, arrived),
            other => panic!("{other:?}"),
        }
    }
}

/// A listing of all tickets.
pub fn everything() -> Listing {
    Listing { most: usize::MAX, ..Listing::default() }
}

pub fn named(id: Uuid) -> Named {
    Named { id, family: None }
}

/// A host uses a ticket for its VM 0.
pub fn usage(ticket: Uuid, host: HostId, vmids: impl IntoIterator<Item = u32>) -> Usage {
    Usage {
        ticket: named(ticket),
        epoch: None,
        host,
        host_epoch: None,
        parent_vmid: 0,
        parent_host: host,
        vmids: vmids.into_iter().collect(),
        keep_others: false,
    }
}

fn change_of(reply: &Reply) -> HostChange {
    match reply {
        Reply::Host(change) => (**change).clone(),
        other => panic!("{other:?} is no host"),
    }
}

pub fn ticket_of(reply: Reply) -> Ticket {
    match reply {
        Reply::Ticket(ticket) | Reply::Joined(ticket) => *ticket,
        other => panic!("{other:?} is no ticket"),
    }
}

pub fn info(number: u128, cpus: u32) -> HostInfo {
    HostInfo {
        id: id(number),
        name: format!("host-{number}"),
        address: String::new(),
        cpus,
        memory_mib: u64::from(cpus) * 64,
        max_vms: None,
        cpu_percent: None,
        memory_percent: None,
        identity: None,
        overlay: String::new(),
        facts: None,
        network: String::new(),
    }
}

/// Of a host with one of the features that this says, and no other.
pub fn facts(features: u32) -> Box<Facts> {
    let features = CpuidEntry { function: 7, ebx: features, ..CpuidEntry::default() };
    let host = HostFacts { page_bytes: 4096, ..HostFacts::of_cpuid(KvmKind::Vmx, vec![features]) };
    Box::new(Facts { host, lazy_memory: true })
}

pub fn running(ticket: &Ticket, vmid: u32) -> Running {
    Running {
        ticket: ticket.id,
        family: ticket.family,
        vmid,
        vcpus: ticket.vcpus,
        memory_mib: ticket.memory_mib,
        parent_vmid: Some(0),
        parent_host: None,
    }
}
