//! Saves and restores what KVM keeps of a VM: interrupt controllers, timer and clock. Memory, vCPUs
//! and devices are saved elsewhere.

use crate::persist::Persist;
use crate::persist::mirror::{Mirror, mirror};
use crate::sys::kvm_state::{IRQCHIP_BYTES, irqchip, irqchip_bytes};
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_irqchip, kvm_pit_channel_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use patina_snapshot::layout::Blob;

/// Why the state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the VM: {call}")]
pub struct VmPersistError {
    operation: &'static str,
    call: &'static str,
    source: kvm_ioctls::Error,
}

/// KVM's interrupt controllers: the two PICs and the IOAPIC.
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state that KVM keeps of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmState {
    /// Of [`IRQCHIPS`].
    pub(crate) irqchips: [Irqchip; 3],
    pub(crate) pit: Pit,
    pub(crate) clock: Clock,
}

/// The registers of an interrupt controller, as KVM has them.
pub(crate) type Irqchip = Blob<IRQCHIP_BYTES>;

mirror! {
    /// A counter of the PIT.
    #[derive(Copy)]
    PitChannel of kvm_pit_channel_state {
        count: u32, latched_count: u16, count_latched: u8, status_latched: u8, status: u8, read_state: u8,
        write_state: u8, write_latch: u8, rw_mode: u8, mode: u8, bcd: u8, gate: u8, count_load_time: i64,
    }
}

mirror! {
    /// The PIT.
    Pit of kvm_pit_state2 { channels: [PitChannel; 3], flags: u32 }
}

mirror! {
    /// The clock that KVM keeps for the guest.
    Clock of kvm_clock_data { clock: u64, flags: u32, realtime: u64, host_tsc: u64 }
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
        let registers = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map_err(failed("save", "KVM_GET_IRQCHIP"))?;
            Ok(Blob(irqchip_bytes(&chip)))
        };
        let [master, slave, ioapic] = IRQCHIPS;
        Ok(Self {
            irqchips: [registers(master)?, registers(slave)?, registers(ioapic)?],
            pit: Pit::of(&vm.get_pit2().map_err(failed("save", "KVM_GET_PIT2"))?),
            clock: Clock::of(&vm.get_clock().map_err(failed("save", "KVM_GET_CLOCK"))?),
        })
    }

    fn restore(&self, (vm, since_ns): (&VmFd, u64)) -> Result<(), VmPersistError> {
        for (chip_id, registers) in IRQCHIPS.into_iter().zip(&self.irqchips) {
            vm.set_irqchip(&irqchip(chip_id, registers.0)).map_err(failed("restore", "KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit.original()).map_err(failed("restore", "KVM_SET_PIT2"))?;
        // With the flags of the save, KVM would add the time that has passed since. A clone's clock
        // continues from the time of its parent's freeze.
        let clock = Clock { flags: 0, clock: self.clock.clock.saturating_add(since_ns), ..self.clock };
        vm.set_clock(&clock.original()).map_err(failed("restore", "KVM_SET_CLOCK"))
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
