//! Hosts: what they have, what of it is held, and whether they live.
//!
//! ```text
//!  (of a stored ticket) expected ──up──▶ up ◀──up── down        expected, up or down, and silent for a lease: fenced
//!                                        └───down───▲          fenced ──up──▶ up
//! ```
//! What tickets and their clones hold is held whether the host is up or not, until they end. Clones that run without a ticket (their
//! end is known here but they were seen again) hold room too, until the host says that they are gone.

use super::{
    api::{Free, HostInfo, Options, UnixMs},
    room::{ByRoom, Room},
    state::HostState,
    ticket::HostId,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Whether a host is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// It has tickets of before the scheduler's start.
    #[default]
    Expected,
    /// It is connected.
    Up,
    /// It was.
    Down,
    /// It was given up.
    Fenced,
}

/// A host.
#[derive(Debug, Default)]
pub struct Host {
    /// As it described itself; None: it has not yet.
    pub info: Option<HostInfo>,
    /// Whether it is there.
    pub link: Link,
    /// Of its registration; 0: none yet.
    pub epoch: u64,
    /// Its last sign of life.
    pub seen: UnixMs,
    /// When it is given up, or when it is forgotten after that.
    pub deadline: Option<UnixMs>,
    /// Tickets that hold some of it.
    pub tickets: BTreeSet<Uuid>,
    /// Clones that run without a ticket, by ticket and vmid: their CPUs and memory.
    ghosts: BTreeMap<(Uuid, u32), (u32, u32)>,
    /// What it has; nothing before it registers.
    pub capacity: Room,
    held_cpus: u64,
    held_memory_mib: u64,
    held_vms: u64,
}

impl Host {
    /// What is free of it.
    pub fn room(&self) -> Room {
        let cpus = u64::from(self.capacity.cpus).saturating_sub(self.held_cpus);
        let vms = match self.capacity.vms {
            u32::MAX => u64::from(u32::MAX),
            limit => u64::from(limit).saturating_sub(self.held_vms),
        };
        Room {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: self.capacity.memory_mib.saturating_sub(self.held_memory_mib),
            vms: u32::try_from(vms).unwrap_or(u32::MAX),
        }
    }

    fn hold(&mut self, vms: u32, vcpus: u32, memory_mib: u32) {
        let vms = u64::from(vms);
        self.held_cpus = self.held_cpus.saturating_add(vms.saturating_mul(vcpus.into()));
        self.held_memory_mib = self.held_memory_mib.saturating_add(vms.saturating_mul(memory_mib.into()));
        self.held_vms = self.held_vms.saturating_add(vms);
    }

    fn free(&mut self, vms: u32, vcpus: u32, memory_mib: u32) {
        let vms = u64::from(vms);
        self.held_cpus = self.held_cpus.saturating_sub(vms.saturating_mul(vcpus.into()));
        self.held_memory_mib = self.held_memory_mib.saturating_sub(vms.saturating_mul(memory_mib.into()));
        self.held_vms = self.held_vms.saturating_sub(vms);
    }

    fn state(&self) -> Option<HostState> {
        let u32_of = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some(HostState {
            info: self.info.clone()?,
            alive: self.link == Link::Up,
            epoch: self.epoch,
            cpus: self.capacity.cpus,
            memory_mib: self.capacity.memory_mib,
            held_cpus: u32_of(self.held_cpus),
            held_memory_mib: self.held_memory_mib,
            held_vms: u32_of(self.held_vms),
            seen_unix_ms: self.seen,
        })
    }
}

/// All hosts.
#[derive(Debug, Default)]
pub struct Hosts {
    hosts: BTreeMap<HostId, Host>,
    /// Of those that are up, by what is free.
    rooms: ByRoom,
    /// Of those that are up, by what they have.
    sizes: ByRoom,
    /// Of those that are up.
    free_cpus: u64,
    free_memory_mib: u64,
    up: u64,
    /// Those that may come back: expected or down.
    away: BTreeSet<HostId>,
}

impl Hosts {
    /// A host.
    pub fn get(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    /// A host that is up.
    pub fn up(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id).filter(|host| host.link == Link::Up)
    }

    /// Those that are up, by what is free.
    pub fn rooms(&self) -> &ByRoom {
        &self.rooms
    }

    /// Those that are up, by what they have.
    pub fn sizes(&self) -> &ByRoom {
        &self.sizes
    }

    /// What a host has that is up.
    pub fn size(&self, id: HostId) -> Option<Room> {
        self.up(id).map(|host| host.capacity)
    }

    /// Whether no host is up.
    pub fn none_up(&self) -> bool {
        self.up == 0
    }

    /// Those that may come back.
    pub fn away(&self) -> &BTreeSet<HostId> {
        &self.away
    }

    /// For lists: those that have registered.
    pub fn states(&self) -> Vec<HostState> {
        self.hosts.values().filter_map(Host::state).collect()
    }

    /// How many are known, and how many of them are up.
    pub fn counts(&self) -> (u64, u64) {
        (u64::try_from(self.hosts.len()).unwrap_or(u64::MAX), self.up)
    }

    /// What is free of all that are up, and for how many VMs of a size.
    pub fn free(&self, vcpus: u32, memory_mib: u32) -> Free {
        let fitting = self.rooms.fullest(vcpus.max(1), memory_mib.max(1).into());
        let vms = fitting.map(|(_, room)| u64::from(room.fit(vcpus, memory_mib))).sum();
        Free { vms, ..self.totals() }
    }

    /// What is free of all that are up, but for VMs.
    pub fn totals(&self) -> Free {
        Free { cpus: self.free_cpus, memory_mib: self.free_memory_mib, vms: 0 }
    }

    /// Changes a host, known before or not; the indexes follow.
    fn update<T>(&mut self, id: HostId, change: impl FnOnce(&mut Host) -> T) -> T {
        let host = self.hosts.entry(id).or_default();
        let (was, room, size) = (host.link, host.room(), host.capacity);
        let result = change(host);
        let (is, new_room, new_size) = (host.link, host.room(), host.capacity);
        if was == Link::Up {
            self.rooms.remove(id, room);
            self.free_cpus = self.free_cpus.saturating_sub(room.cpus.into());
            self.free_memory_mib = self.free_memory_mib.saturating_sub(room.memory_mib);
        }
        if is == Link::Up {
            self.rooms.insert(id, new_room);
            self.free_cpus = self.free_cpus.saturating_add(new_room.cpus.into());
            self.free_memory_mib = self.free_memory_mib.saturating_add(new_room.memory_mib);
        }
        if (was, size) != (is, new_size) {
            self.relink(id, (was, size), (is, new_size));
        }
        result
    }

    fn relink(&mut self, id: HostId, was: (Link, Room), is: (Link, Room)) {
        if was.0 == Link::Up {
            self.sizes.remove(id, was.1);
            self.up = self.up.saturating_sub(1);
        }
        if is.0 == Link::Up {
            self.sizes.insert(id, is.1);
            self.up = self.up.saturating_add(1);
        }
        if matches!(is.0, Link::Expected | Link::Down) {
            self.away.insert(id);
        } else {
            self.away.remove(&id);
        }
    }

    /// VMs of a ticket are held on a host.
    pub fn hold(&mut self, id: HostId, ticket: Uuid, vms: u32, vcpus: u32, memory_mib: u32) {
        self.update(id, |host| {
            host.tickets.insert(ticket);
            host.hold(vms, vcpus, memory_mib);
        });
        if self.hosts.get(&id).is_some_and(|host| host.link == Link::Expected) {
            self.away.insert(id);
        }
    }

    /// VMs are not held any more; of what the ticket has on the host `left` says whether something remains.
    pub fn release(&mut self, id: HostId, ticket: Uuid, vms: u32, size: (u32, u32), left: bool) {
        self.update(id, |host| {
            host.free(vms, size.0, size.1);
            if !left {
                host.tickets.remove(&ticket);
            }
        });
    }

    /// A clone runs there without a ticket.
    pub fn haunt(&mut self, id: HostId, clone: (Uuid, u32), size: (u32, u32)) {
        self.update(id, |host| {
            if host.ghosts.insert(clone, size).is_none() {
                host.hold(1, size.0, size.1);
            }
        });
    }

    /// It does not run any more. Returns whether it did.
    pub fn unhaunt(&mut self, id: HostId, clone: (Uuid, u32)) -> bool {
        if self.hosts.get(&id).is_none_or(|host| !host.ghosts.contains_key(&clone)) {
            return false;
        }
        self.update(id, |host| {
            if let Some((vcpus, memory_mib)) = host.ghosts.remove(&clone) {
                host.free(1, vcpus, memory_mib);
            }
        });
        true
    }

    /// A host has registered.
    pub fn come_up(&mut self, info: HostInfo, epoch: u64, now: UnixMs, options: &Options) {
        self.update(info.id, |host| {
            host.capacity = capacity(&info, options);
            host.info = Some(info);
            (host.link, host.epoch, host.seen) = (Link::Up, epoch, now);
            for (_, (vcpus, memory_mib)) in std::mem::take(&mut host.ghosts) {
                host.free(1, vcpus, memory_mib);
            }
        });
    }

    /// A host is down or given up.
    pub fn set_link(&mut self, id: HostId, link: Link) {
        self.update(id, |host| host.link = link);
    }

    /// A host lives.
    pub fn see(&mut self, id: HostId, now: UnixMs) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.seen = now;
        }
    }

    /// When it is given up or forgotten. Returns when it would have been.
    pub fn set_deadline(&mut self, id: HostId, deadline: Option<UnixMs>) -> Option<UnixMs> {
        let host = self.hosts.get_mut(&id)?;
        std::mem::replace(&mut host.deadline, deadline)
    }

    /// Forgets a host that was given up and holds nothing.
    pub fn forget(&mut self, id: HostId) {
        if self.hosts.get(&id).is_some_and(|host| host.link == Link::Fenced && host.tickets.is_empty()) {
            self.hosts.remove(&id);
        }
    }
}

fn capacity(info: &HostInfo, options: &Options) -> Room {
    let percent = |number: u64, percent: u32| number.saturating_mul(percent.into()) / 100;
    let cpus = percent(info.cpus.into(), options.cpu_percent);
    Room {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mib: percent(info.memory_mib, options.memory_percent),
        vms: info.max_vms.unwrap_or(u32::MAX),
    }
}
