//! Saves and restores what KVM keeps of a VM: interrupt controllers, timer and clock. Memory, vCPUs
//! and devices are saved elsewhere.

use crate::persist::Persist;
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// Why the state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the VM: {call}")]
pub struct VmPersistError {
    operation: &'static str,
    call: &'static str,
    source: kvm_ioctls::Error,
}

/// The state that KVM keeps of a VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

fn failed(operation: &'static str, call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmPersistError {
    move |source| VmPersistError { operation, call, source }
}

impl Persist for VmState {
    type Source<'a> = &'a VmFd;
    /// A new VM whose vCPUs are restored already, since a pending interrupt in the IOAPIC goes to a
    /// local APIC at once. And for how many nanoseconds its TSCs have run since the save: the clock
    /// is set ahead by them.
    type Target<'a> = (&'a VmFd, u64);
    type Restored = ();
    type SaveError = VmPersistError;
    type RestoreError = VmPersistError;

    fn save(vm: &VmFd) -> Result<Self, VmPersistError> {
        let irqchip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map_err(failed("save", "KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        Ok(Self {
            irqchips: chips.into_iter().map(irqchip).collect::<Result<_, _>>()?,
            pit: vm.get_pit2().map_err(failed("save", "KVM_GET_PIT2"))?,
            clock: vm.get_clock().map_err(failed("save", "KVM_GET_CLOCK"))?,
        })
    }

    fn restore(&self, (vm, since_ns): (&VmFd, u64)) -> Result<(), VmPersistError> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip).map_err(failed("restore", "KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(failed("restore", "KVM_SET_PIT2"))?;
        // With the flags of the save, KVM would add the time that has passed since. A clone's clock
        // continues from the time of its parent's freeze.
        let clock =
            kvm_clock_data { flags: 0, clock: self.clock.clock.saturating_add(since_ns), ..self.clock };
        vm.set_clock(&clock).map_err(failed("restore", "KVM_SET_CLOCK"))
    }
}

impl VmState {
    /// The host's TSC when the clock was read. KVM reports it since Linux 5.16, if the TSC is
    /// stable.
    #[must_use]
    pub fn clock_tsc(&self) -> Option<u64> {
        (self.clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(self.clock.host_tsc)
    }
}
