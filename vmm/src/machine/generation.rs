//! What a VM is frozen into, and what a clone starts from.

use super::persist::VmState;
use crate::devices::console::persist::ConsoleState;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::memory::extents::Extents;
use crate::memory::layers::Layers;
use crate::vcpu::persist::VcpuState;
use patina_control::messages::Frozen;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::sync::Arc;

/// All of a VM but its pages.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// The VM's RAM, MiB.
    pub memory_mib: u32,
    /// Which layer has which page.
    pub memory: Extents,
    /// Nobody but the agent runs in a clone before it is ready: what it writes till then, every clone of its image writes.
    pub is_held: bool,
    /// The states of the vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// What KVM keeps of the VM.
    pub vm: VmState,
    /// The virtio devices, in the order of their windows.
    pub transports: Vec<TransportState>,
    /// The serial console.
    pub console: ConsoleState,
}

/// A generation: an immutable image of a VM at one instant.
#[derive(Debug)]
pub struct Generation {
    /// [`MachineState`], encoded with postcard.
    pub state: Vec<u8>,
    /// The memfds of the RAM. Nothing can write to them any more.
    pub layers: Vec<Arc<File>>,
    /// What it has cost.
    pub frozen: Frozen,
}

/// What a VM's RAM is.
#[derive(Debug)]
pub enum Ram {
    /// Its own memfd, mapped shared.
    Shared(File),
    /// A private view of a generation.
    View(Layers),
    /// Reserved address space.
    Reserved,
}
