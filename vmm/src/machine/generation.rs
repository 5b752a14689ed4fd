//! The image that a freeze makes of a VM, and that a clone starts from.

use super::persist::VmState;
use crate::devices::console::persist::ConsoleState;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::memory::extents::Extents;
use crate::memory::layers::Layers;
use crate::vcpu::persist::VcpuState;
use patina_control::messages::Frozen;
use std::fs::File;
use std::sync::Arc;

/// The state of a VM without its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineState {
    /// The VM's RAM, MiB.
    pub memory_mib: u32,
    /// Which layer has which page.
    pub memory: Extents,
    /// Whether only the agent runs in a clone until the clone is ready. If so, all clones of the
    /// generation write much the same pages until then.
    pub is_held: bool,
    /// The states of the vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// The state that KVM keeps of the VM.
    pub vm: VmState,
    /// The virtio devices, in the order of their windows.
    pub transports: Vec<TransportState>,
    /// The serial console.
    pub console: ConsoleState,
}

/// A generation: an immutable image of a VM at one instant.
#[derive(Debug)]
pub struct Generation {
    /// [`MachineState`], as [`super::state`] writes it.
    pub state: Vec<u8>,
    /// The memfds of the RAM, sealed against writes.
    pub layers: Vec<Arc<File>>,
    /// What the freeze cost: its pause and the pages that it copied.
    pub frozen: Frozen,
}

/// What backs a VM's RAM.
#[derive(Debug)]
pub enum Ram {
    /// Its own memfd, mapped shared.
    Shared(File),
    /// A private view of a generation.
    View(Layers),
    /// Only reserved address space, as in a warm VM.
    Reserved,
}

/// Counts the freezes of a VM, and knows whether its RAM is a view of the last one's generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastFrozen {
    freezes: u64,
    is_view: bool,
}

impl LastFrozen {
    /// The VM is frozen once more. Until its RAM is [a view](Self::note_view) of what comes of it,
    /// it is one of an older generation.
    pub fn note_freeze(&mut self) {
        *self = Self { freezes: self.freezes + 1, is_view: false };
    }

    /// The VM's RAM is a view of the generation.
    pub fn note_view(&mut self) {
        self.is_view = true;
    }

    /// The number of the generation that the VM's RAM is a view of. 0: of none.
    #[must_use]
    pub fn number(self) -> u64 {
        if self.is_view { self.freezes } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_has_a_number_only_while_the_ram_is_a_view_of_it() {
        let mut frozen = LastFrozen::default();
        assert_eq!(frozen.number(), 0, "a clone's RAM is a view of its parent's generation");
        frozen.note_freeze();
        frozen.note_view();
        assert_eq!(frozen.number(), 1);
        frozen.note_freeze();
        assert_eq!(frozen.number(), 0, "the RAM is a view of the first one still");
        frozen.note_view();
        assert_eq!(frozen.number(), 2);
    }
}
