//! Room on hosts, and hosts in the order of their room.

use super::ticket::HostId;
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
    /// How many VMs of a size fit in.
    pub fn fit(&self, vcpus: u32, memory_mib: u32) -> u32 {
        let by_memory = self.memory_mib / u64::from(memory_mib.max(1));
        let by_memory = u32::try_from(by_memory).unwrap_or(u32::MAX);
        (self.cpus / vcpus.max(1)).min(by_memory).min(self.vms)
    }
}

/// Hosts by their room. Hosts with the same number of CPUs are together: there are few such numbers, and among those hosts the ones
/// with memory enough follow each other.
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
