//! Hosts: their resources, how much of them is reserved, and whether the hosts are alive.
//!
//! ```text
//!  (of a stored ticket) expected ──up──▶ up ◀──────up─────── suspect
//!                                        └ down, or silent for a lease ▲
//!  expected or suspect ──silent for `lost_after_ms`──▶ lost ──up──▶ up
//! ```
//! Tickets and their clones keep their reservation until they end, whether the host is up or not. A
//! clone may run without a ticket: its end was recorded, but its host reports it again. It counts
//! as well, until the host reports that it is gone.

use super::{
    api::{Closed, Free, HostInfo, Options, Running, UnixMs},
    facts::{Misfit, fits},
    host::{Host, Link},
    present::Image,
    record::{HostRecord, Scheduling},
    room::{ByRoom, Held, Load, Room},
    state::HostState,
    ticket::HostId,
};
use patina_snapshot::facts::HostFacts;
use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry};
use uuid::Uuid;

/// All hosts.
#[derive(Debug, Default)]
pub struct Hosts {
    hosts: BTreeMap<HostId, Host>,
    /// Of those that are usable, by what is free.
    rooms: ByRoom,
    /// Of those that are usable, by what they have.
    sizes: ByRoom,
    /// Of those that are usable.
    free_cpus: u64,
    free_memory_mib: u64,
    usable: u64,
    up: u64,
    /// Of those that are not usable.
    closed: Closed,
    /// Those that may be usable again: expected, suspect, cordoned or draining.
    away: BTreeSet<HostId>,
    /// What tickets of a family hold where.
    families: HashMap<Uuid, BTreeMap<HostId, Held>>,
    /// Which hosts have a kernel or a root file system.
    images: HashMap<Image, BTreeSet<HostId>>,
}

impl Hosts {
    /// A host.
    pub fn get(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (HostId, &Host)> {
        self.hosts.iter().map(|(id, host)| (*id, host))
    }

    /// A host that is up.
    pub fn up(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id).filter(|host| host.link == Link::Up)
    }

    /// A host that may be granted something.
    pub fn usable(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id).filter(|host| host.is_usable())
    }

    /// Whether a VM of a host can go on on this one; any can where none is named. `needs` is what
    /// the VM needs, if that is not what its host offers.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn fit(&self, parent: Option<HostId>, needs: Option<&HostFacts>, id: HostId) -> Result<(), Misfit> {
        let Some(parent) = parent.filter(|parent| *parent != id) else { return Ok(()) };
        let info = |id| self.hosts.get(&id).and_then(|host| host.info.as_ref());
        fits(info(parent).ok_or(Misfit::UnknownParent)?, needs, info(id).ok_or(Misfit::Unknown)?)
    }

    /// Those that are usable, by what is free.
    pub fn rooms(&self) -> &ByRoom {
        &self.rooms
    }

    /// Those that are usable, by what they have.
    pub fn sizes(&self) -> &ByRoom {
        &self.sizes
    }

    /// What a host has that is usable.
    pub fn size(&self, id: HostId) -> Option<Room> {
        self.usable(id).map(|host| host.capacity)
    }

    /// Whether no host is usable.
    pub fn none_usable(&self) -> bool {
        self.usable == 0
    }

    /// Those that are granted nothing.
    pub fn closed(&self) -> Closed {
        self.closed
    }

    /// Those that may be usable again.
    pub fn away(&self) -> &BTreeSet<HostId> {
        &self.away
    }

    /// What the tickets of a family hold, by host.
    pub fn held_by(&self, family: Uuid) -> Option<&BTreeMap<HostId, Held>> {
        self.families.get(&family)
    }

    /// Which hosts have a kernel or a root file system.
    pub fn with_image(&self, image: &Image) -> Option<&BTreeSet<HostId>> {
        self.images.get(image)
    }

    /// For lists: one that has registered.
    pub fn state(&self, id: HostId) -> Option<HostState> {
        self.hosts.get(&id)?.state()
    }

    /// For lists: those that have registered.
    pub fn states(&self) -> Vec<HostState> {
        self.hosts.values().filter_map(Host::state).collect()
    }

    /// How many are known, and how many of them are up.
    pub fn counts(&self) -> (u64, u64) {
        (u64::try_from(self.hosts.len()).unwrap_or(u64::MAX), self.up)
    }

    /// What is free of all that are usable, and for how many VMs of a size.
    pub fn free(&self, vcpus: u32, memory_mib: u32) -> Free {
        let fitting = self.rooms.fullest(vcpus.max(1), memory_mib.max(1).into());
        let vms = fitting.map(|(_, room)| u64::from(room.fit(vcpus, memory_mib))).sum();
        Free { vms, ..self.totals() }
    }

    /// What is free of all that are usable, but for VMs.
    pub fn totals(&self) -> Free {
        Free { cpus: self.free_cpus, memory_mib: self.free_memory_mib, vms: 0 }
    }

    /// Changes a host, known before or not; the indexes follow.
    fn update<T>(&mut self, id: HostId, change: impl FnOnce(&mut Host) -> T) -> T {
        let closed = self.hosts.get(&id).map(Host::closed).unwrap_or_default();
        self.closed.subtract(closed);
        let host = self.hosts.entry(id).or_default();
        let (was, was_up, room, size) = (host.is_usable(), host.link == Link::Up, host.room(), host.capacity);
        let result = change(host);
        let (is, is_up, new_room, new_size) =
            (host.is_usable(), host.link == Link::Up, host.room(), host.capacity);
        let is_away = host.is_away();
        self.closed.add(host.closed());
        if was {
            self.rooms.remove(id, room);
            self.free_cpus = self.free_cpus.saturating_sub(room.cpus.into());
            self.free_memory_mib = self.free_memory_mib.saturating_sub(room.memory_mib);
        }
        if is {
            self.rooms.insert(id, new_room);
            self.free_cpus = self.free_cpus.saturating_add(new_room.cpus.into());
            self.free_memory_mib = self.free_memory_mib.saturating_add(new_room.memory_mib);
        }
        self.up = self.up.saturating_sub(was_up.into()).saturating_add(is_up.into());
        if (was, size) != (is, new_size) {
            if was {
                self.sizes.remove(id, size);
                self.usable = self.usable.saturating_sub(1);
            }
            if is {
                self.sizes.insert(id, new_size);
                self.usable = self.usable.saturating_add(1);
            }
        }
        if is_away {
            self.away.insert(id);
        } else {
            self.away.remove(&id);
        }
        result
    }

    /// VMs of a ticket are held on a host.
    pub fn hold(&mut self, id: HostId, load: &Load, vms: u32) {
        let more = load.times(vms);
        self.update(id, |host| {
            host.tickets.insert(load.ticket);
            host.held.add(more);
        });
        self.families.entry(load.family).or_default().entry(id).or_default().add(more);
    }

    /// VMs are not held any more; of what the ticket has on the host `left` says whether something
    /// remains.
    pub fn release(&mut self, id: HostId, load: &Load, vms: u32, left: bool) {
        let less = load.times(vms);
        self.update(id, |host| {
            host.held.subtract(less);
            if !left {
                host.tickets.remove(&load.ticket);
            }
        });
        let Some(places) = self.families.get_mut(&load.family) else { return };
        if let Some(held) = places.get_mut(&id) {
            held.subtract(less);
            if *held == Held::default() {
                places.remove(&id);
            }
        }
        if places.is_empty() {
            self.families.remove(&load.family);
        }
    }

    /// A clone runs there without a ticket.
    pub fn haunt(&mut self, id: HostId, ghost: Running, epoch: u64) {
        self.update(id, |host| {
            // Named twice it is one, of the size that was named first.
            if let Entry::Vacant(place) = host.ghosts.entry((ghost.ticket, ghost.vmid)) {
                place.insert((ghost, epoch));
                host.held.add(Held::of(1, ghost.vcpus, ghost.memory_mib));
            }
        });
    }

    /// It does not run any more. Returns whether it did.
    pub fn unhaunt(&mut self, id: HostId, clone: (Uuid, u32)) -> bool {
        if self.hosts.get(&id).is_none_or(|host| !host.ghosts.contains_key(&clone)) {
            return false;
        }
        self.update(id, |host| {
            if let Some((ghost, _)) = host.ghosts.remove(&clone) {
                host.held.subtract(Held::of(1, ghost.vcpus, ghost.memory_mib));
            }
        });
        true
    }

    /// A host has registered.
    pub fn come_up(&mut self, info: HostInfo, epoch: u64, now: UnixMs, options: &Options) {
        self.update(info.id, |host| {
            host.capacity = Room::of(&info, options);
            host.info = Some(info);
            if host.link != Link::Up {
                (host.link, host.since) = (Link::Up, now);
            }
            (host.epoch, host.seen) = (epoch, now);
            for (ghost, _) in std::mem::take(&mut host.ghosts).into_values() {
                host.held.subtract(Held::of(1, ghost.vcpus, ghost.memory_mib));
            }
        });
    }

    /// A host is suspect or given up.
    pub fn set_link(&mut self, id: HostId, link: Link, now: UnixMs) {
        self.update(id, |host| (host.link, host.since) = (link, now));
    }

    /// An operator wants something else of a host.
    pub fn set_scheduling(&mut self, id: HostId, scheduling: Scheduling, now: UnixMs) {
        self.update(id, |host| (host.scheduling, host.scheduling_since) = (scheduling, now));
    }

    /// A host as it was stored.
    pub fn recall(&mut self, record: &HostRecord, now: UnixMs, options: &Options) {
        let HostRecord { id, info, scheduling, scheduling_unix_ms, lost_unix_ms } = record.clone();
        self.update(id, |host| {
            host.capacity = info.as_ref().map(|info| Room::of(info, options)).unwrap_or_default();
            host.info = info;
            (host.scheduling, host.scheduling_since) = (scheduling, scheduling_unix_ms);
            (host.link, host.since) = lost_unix_ms.map_or((Link::Expected, now), |lost| (Link::Lost, lost));
        });
    }

    /// A host lives, and may say which masters it has.
    pub fn see(&mut self, id: HostId, now: UnixMs, masters: Option<BTreeSet<Uuid>>) {
        let believed = masters.as_ref().map(|masters| self.believed(id, masters));
        if let Some(host) = self.hosts.get_mut(&id) {
            host.seen = now;
            host.masters = masters.or_else(|| host.masters.take());
            host.believed_masters = believed.unwrap_or_else(|| std::mem::take(&mut host.believed_masters));
        }
    }

    /// The masters of which a host has said first that it has them.
    fn believed(&self, id: HostId, masters: &BTreeSet<Uuid>) -> BTreeSet<Uuid> {
        let own = self.hosts.get(&id);
        let is_elsewhere = |family| {
            let mut others =
                self.hosts.iter().filter(|(other, host)| **other != id && host.link != Link::Lost);
            others.any(|(_, host)| host.is_home_of(family))
        };
        let is_believed =
            |family: &&Uuid| own.is_some_and(|own| own.is_home_of(**family)) || !is_elsewhere(**family);
        masters.iter().filter(is_believed).copied().collect()
    }

    /// The memory that is really free on a host, if it says so.
    pub fn set_free_memory(&mut self, id: HostId, free_mib: Option<u64>) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.free_memory_mib = free_mib;
        }
    }

    /// The kernels and root file systems that are on a host now.
    pub fn set_images(&mut self, id: HostId, images: BTreeSet<Image>) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        for gone in host.images.difference(&images) {
            if let Some(hosts) = self.images.get_mut(gone) {
                hosts.remove(&id);
                if hosts.is_empty() {
                    self.images.remove(gone);
                }
            }
        }
        for image in &images {
            self.images.entry(*image).or_default().insert(id);
        }
        host.images = images;
    }

    /// The families whose master lives on a host, if it has said them.
    pub fn masters_mut(&mut self, id: HostId) -> Option<&mut BTreeSet<Uuid>> {
        self.hosts.get_mut(&id)?.masters.as_mut()
    }

    /// When it is suspect, given up or forgotten. Returns when it would have been.
    pub fn set_deadline(&mut self, id: HostId, deadline: Option<UnixMs>) -> Option<UnixMs> {
        let host = self.hosts.get_mut(&id)?;
        std::mem::replace(&mut host.deadline, deadline)
    }

    /// Forgets a host that was given up, holds nothing, and of which no operator wants anything.
    /// Returns whether it was forgotten.
    pub fn forget(&mut self, id: HostId) -> bool {
        let is_over = |host: &Host| {
            host.link == Link::Lost && host.tickets.is_empty() && host.scheduling == Scheduling::Open
        };
        let Some(host) = self.hosts.get(&id).filter(|host| is_over(host)) else { return false };
        self.closed.subtract(host.closed());
        self.set_images(id, BTreeSet::new());
        self.hosts.remove(&id).is_some()
    }
}
