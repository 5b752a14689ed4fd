//! The free capacity of hosts, and the hosts in its order.

use super::{
    api::{HostInfo, Options},
    ticket::{HostId, Ticket},
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What a host has, or has free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// VMs; `u32::MAX`: no limit of its own.
    pub vms: u32,
}

impl Room {
    /// What a host has that may be granted, overcommit included.
    pub fn of(info: &HostInfo, options: &Options) -> Self {
        let percent = |number: u64, percent: u32| number.saturating_mul(percent.into()) / 100;
        let cpus = percent(info.cpus.into(), info.cpu_percent.unwrap_or(options.cpu_percent));
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: percent(info.memory_mib, info.memory_percent.unwrap_or(options.memory_percent)),
            vms: info.max_vms.unwrap_or(u32::MAX),
        }
    }

    /// How many VMs of a size fit in.
    pub fn fit(&self, vcpus: u32, memory_mib: u32) -> u32 {
        let by_memory = self.memory_mib / u64::from(memory_mib.max(1));
        let by_memory = u32::try_from(by_memory).unwrap_or(u32::MAX);
        (self.cpus / vcpus.max(1)).min(by_memory).min(self.vms)
    }
}

impl Room {
    /// What remains beside what is held.
    pub fn without(self, held: &Held) -> Self {
        let cpus = u64::from(self.cpus).saturating_sub(held.cpus);
        let vms = match self.vms {
            u32::MAX => u64::from(u32::MAX),
            limit => u64::from(limit).saturating_sub(held.vms),
        };
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: self.memory_mib.saturating_sub(held.memory_mib),
            vms: u32::try_from(vms).unwrap_or(u32::MAX),
        }
    }
}

/// What is held of a host; it may be more than there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory_mib: u64,
    /// VMs.
    pub vms: u64,
}

impl Held {
    /// So many VMs of a size.
    pub fn of(vms: u32, vcpus: u32, memory_mib: u32) -> Self {
        let vms = u64::from(vms);
        Self {
            cpus: vms.saturating_mul(vcpus.into()),
            memory_mib: vms.saturating_mul(memory_mib.into()),
            vms,
        }
    }

    /// More is held.
    pub fn add(&mut self, more: Self) {
        self.cpus = self.cpus.saturating_add(more.cpus);
        self.memory_mib = self.memory_mib.saturating_add(more.memory_mib);
        self.vms = self.vms.saturating_add(more.vms);
    }

    /// Less is held.
    pub fn subtract(&mut self, less: Self) {
        self.cpus = self.cpus.saturating_sub(less.cpus);
        self.memory_mib = self.memory_mib.saturating_sub(less.memory_mib);
        self.vms = self.vms.saturating_sub(less.vms);
    }
}

/// For which ticket VMs are held, and of which size they are.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The ticket's number.
    pub ticket: Uuid,
    /// The family that has the ticket.
    pub family: Uuid,
    /// CPUs of each VM.
    pub vcpus: u32,
    /// Memory of each VM, MiB.
    pub memory_mib: u32,
}

impl Load {
    /// Of a ticket.
    pub fn of(ticket: &Ticket) -> Self {
        let Ticket { id, family, vcpus, memory_mib, .. } = *ticket;
        Self { ticket: id, family, vcpus, memory_mib }
    }

    /// What this many VMs of the ticket hold.
    pub fn times(&self, vms: u32) -> Held {
        Held::of(vms, self.vcpus, self.memory_mib)
    }
}

/// Hosts by their room. Hosts with the same number of CPUs are together: there are few such
/// numbers, and among those hosts the ones with memory enough follow each other.
#[derive(Debug, Default)]
pub struct ByRoom(BTreeMap<u32, BTreeSet<(u64, u32, HostId)>>);

impl ByRoom {
    /// A host has this room. One that takes no more VMs is not kept.
    pub fn insert(&mut self, id: HostId, room: Room) {
        if room.vms > 0 {
            self.0.entry(room.cpus).or_default().insert((room.memory_mib, room.vms, id));
        }
    }

    /// A host does not have this room any more.
    pub fn remove(&mut self, id: HostId, room: Room) {
        if let Some(hosts) = self.0.get_mut(&room.cpus) {
            hosts.remove(&(room.memory_mib, room.vms, id));
            if hosts.is_empty() {
                self.0.remove(&room.cpus);
            }
        }
    }

    /// Hosts with at least these CPUs and memory, those with the fewest CPUs first.
    pub fn fullest(&self, cpus: u32, memory_mib: u64) -> impl Iterator<Item = (HostId, Room)> {
        let of = move |(cpus, hosts)| with_memory(cpus, hosts, memory_mib);
        self.0.range(cpus..).flat_map(of)
    }

    /// Hosts with at least these CPUs and memory, those with the most CPUs first.
    pub fn emptiest(&self, cpus: u32, memory_mib: u64) -> impl Iterator<Item = (HostId, Room)> {
        let of = move |(cpus, hosts)| with_memory(cpus, hosts, memory_mib).rev();
        self.0.range(cpus..).rev().flat_map(of)
    }
}

fn with_memory<'a>(
    cpus: &'a u32,
    hosts: &'a BTreeSet<(u64, u32, HostId)>,
    least_mib: u64,
) -> impl DoubleEndedIterator<Item = (HostId, Room)> + 'a {
    let hosts = hosts.range((least_mib, 0, Uuid::nil())..);
    hosts.map(|(memory_mib, vms, id)| (*id, Room { cpus: *cpus, memory_mib: *memory_mib, vms: *vms }))
}
