//! The core's state, for lists and metrics.

use super::{
    present::{HostInfo, Image, UnixMs},
    record::Scheduling,
};
use std::collections::BTreeSet;

/// Whether a host lives, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is registered, and has given a sign of life within its lease.
    Up,
    /// Its connection has ended, or it is silent for longer than its lease: nothing new is granted
    /// there, and nothing is ended.
    Suspect,
    /// It was given up: its tickets are fenced.
    Lost,
}

impl HostState {
    /// Whether the host may be granted something.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_up() && self.scheduling == Scheduling::Open
    }

    /// Whether the host is registered.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.standing == Standing::Up
    }
}

/// A host as the core knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// The host, as it described itself.
    pub info: HostInfo,
    /// Whether the host lives, as far as is known.
    pub standing: Standing,
    /// Since when it is so.
    pub since_unix_ms: UnixMs,
    /// What an operator wants of it.
    pub scheduling: Scheduling,
    /// Since when; 0: from the beginning.
    pub scheduling_unix_ms: UnixMs,
    /// When a suspect host is given up; None: it is not suspect, or is never given up.
    pub lost_unix_ms: Option<UnixMs>,
    /// The epoch of the host's registration.
    pub epoch: u64,
    /// CPUs that may be granted on it, overcommit included.
    pub cpus: u32,
    /// Memory that may be granted on it, overcommit included, MiB.
    pub memory_mib: u64,
    /// CPUs that tickets hold, and clones that run without one.
    pub held_cpus: u32,
    /// Memory that tickets hold, and clones that run without one, MiB.
    pub held_memory_mib: u64,
    /// How many VMs tickets hold, and clones that run without one.
    pub held_vms: u32,
    /// When the host last gave a sign of life.
    pub seen_unix_ms: UnixMs,
    /// The memory that was really free there then, MiB; None: it is not known.
    pub free_memory_mib: Option<u64>,
    /// The kernels and root file systems that are there.
    pub images: BTreeSet<Image>,
}

/// How many requests, tickets and hosts the core knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait.
    pub waiting: u64,
    /// Tickets that are granted and not used yet.
    pub granted: u64,
    /// Tickets that are used.
    pub used: u64,
    /// Tickets that were released and are still remembered.
    pub released: u64,
    /// Tickets that have expired and are still remembered.
    pub expired: u64,
    /// Tickets that were fenced and are still remembered.
    pub fenced: u64,
    /// The length of all that clones left and that is kept, bytes.
    pub data_bytes: u64,
    /// Hosts that are known.
    pub hosts: u64,
    /// Of them, those that live.
    pub hosts_alive: u64,
}
