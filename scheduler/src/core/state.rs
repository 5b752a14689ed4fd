//! What the core tells of itself, for lists and metrics.

use super::api::{HostInfo, UnixMs};

/// A host as the core knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// As it described itself.
    pub info: HostInfo,
    /// It is connected, and its lease runs.
    pub alive: bool,
    /// Of its registration.
    pub epoch: u64,
    /// Capacity, overcommit included.
    pub cpus: u32,
    /// Capacity, overcommit included.
    pub memory_mib: u64,
    /// By tickets, and by clones that run without one.
    pub held_cpus: u32,
    /// Likewise.
    pub held_memory_mib: u64,
    /// Likewise.
    pub held_vms: u32,
    /// Its last sign of life.
    pub seen_unix_ms: UnixMs,
}

/// How many there are of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait.
    pub waiting: u64,
    /// Tickets.
    pub granted: u64,
    /// Tickets.
    pub used: u64,
    /// Tickets that are remembered.
    pub released: u64,
    /// Tickets that are remembered.
    pub expired: u64,
    /// Tickets that are remembered.
    pub fenced: u64,
    /// Of what clones left.
    pub data_bytes: u64,
    /// Hosts that are known.
    pub hosts: u64,
    /// Of them, those that live.
    pub hosts_alive: u64,
}
