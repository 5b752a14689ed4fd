//! Registers guest RAM with KVM as memory slots.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// KVM refused a memory slot.
#[derive(Debug, thiserror::Error)]
#[error("give KVM memory slot {slot}, guest address {guest:#x}, {bytes} bytes")]
pub struct SlotError {
    slot: u32,
    guest: u64,
    bytes: u64,
    source: kvm_ioctls::Error,
}

/// A VM together with the memory that its slots point into, so that neither outlives the other.
#[derive(Debug)]
pub struct VmWithMemory {
    vm: VmFd,
    memory: std::sync::Arc<GuestMemoryMmap>,
}

impl VmWithMemory {
    /// Gives each region of `memory` to `vm` as a slot, numbered from 0.
    ///
    /// # Errors
    /// KVM refuses one.
    pub fn new(vm: VmFd, memory: std::sync::Arc<GuestMemoryMmap>) -> Result<Self, SlotError> {
        let vm = Self { vm, memory };
        vm.give_slots()?;
        Ok(vm)
    }

    fn give_slots(&self) -> Result<(), SlotError> {
        for (slot, region) in (0u32..).zip(self.memory.iter()) {
            let (guest, bytes) = (region.start_addr().raw_value(), region.len());
            let entry = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: guest,
                memory_size: bytes,
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the host range is a live mapping of at least `bytes`, owned by `memory`,
            // which this struct keeps as long as the VM.
            unsafe { self.vm.set_user_memory_region(entry) }.map_err(|source| SlotError {
                slot,
                guest,
                bytes,
                source,
            })?;
        }
        Ok(())
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The VM's RAM.
    #[must_use]
    pub fn memory(&self) -> &std::sync::Arc<GuestMemoryMmap> {
        &self.memory
    }
}
