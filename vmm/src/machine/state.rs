//! Writes the state of a VM as a container ([`patina_snapshot::container`]), and reads it.
//!
//! | section | index | content |
//! | --- | --- | --- |
//! | `HOST` | 0 | [`HostFacts`] |
//! | `MACH` | 0 | `Shape` |
//! | `RAM` | 0 | [`Extents`] |
//! | `VCPU` | number of the vCPU | [`VcpuState`] |
//! | `IRQC` | number of the chip | the registers of an interrupt controller |
//! | `PIT` | 0 | the timer |
//! | `CLCK` | 0 | the clock |
//! | `VIRT` | number of the device's window | [`TransportState`] |
//! | `CONS` | 0 | [`ConsoleState`] |
//!
//! The layout of each content is the list of [`patina_snapshot::layout!`] or `mirror!` at its type.
//! If a list changes, the version of its section changes in [`patina_snapshot::sections`]. The
//! golden files of the tests fail otherwise.

use super::generation::MachineState;
use super::persist::VmState;
use crate::devices::console::persist::ConsoleState;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::memory::extents::Extents;
use crate::vcpu::persist::VcpuState;
use patina_snapshot::container::{Container, ContainerError, Kind, Writer};
use patina_snapshot::facts::{FactsError, HostFacts};
use patina_snapshot::layout::Layout;
use patina_snapshot::sections::{CLOCK, CONSOLE, IRQCHIP, KNOWN, MACHINE, PIT, RAM, VCPU, VIRTIO};

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// This host does not have what the VM needs.
    #[error(transparent)]
    Host(#[from] FactsError),
}

/// What has to be known before the other sections are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    memory_mib: u32,
    is_held: bool,
    vcpus: u16,
    transports: u16,
}

patina_snapshot::layout!(Shape { memory_mib: u32, is_held: bool, vcpus: u16, transports: u16 });

/// Writes a state. `facts` is what the VM needs of a host, as far as it does not follow from the
/// state.
///
/// # Errors
/// The state is too long.
pub fn write(state: &MachineState, facts: &HostFacts) -> Result<Vec<u8>, ContainerError> {
    let mut writer = Writer::new(&facts_of(state, facts));
    let count = |length| u16::try_from(length).unwrap_or(u16::MAX);
    let MachineState { memory_mib, memory, is_held, vcpus, vm, transports, console } = state;
    let shape = Shape {
        memory_mib: *memory_mib,
        is_held: *is_held,
        vcpus: count(vcpus.len()),
        transports: count(transports.len()),
    };
    writer.section(&MACHINE, 0, &shape);
    writer.section(&RAM, 0, memory);
    each(&mut writer, &VCPU, vcpus);
    each(&mut writer, &IRQCHIP, &vm.irqchips);
    writer.section(&PIT, 0, &vm.pit);
    writer.section(&CLOCK, 0, &vm.clock);
    each(&mut writer, &VIRTIO, transports);
    writer.section(&CONSOLE, 0, console);
    writer.finish()
}

/// Reads a state for a VM on a host with these facts. Also returns what the VM needs of a host.
///
/// # Errors
/// The state cannot be read, or the host does not fit.
pub fn read(bytes: &[u8], host: &HostFacts) -> Result<(MachineState, HostFacts), StateError> {
    let container = Container::read(bytes)?;
    host.check(container.facts())?;
    container.refuse_foreign(&KNOWN)?;
    let Shape { memory_mib, is_held, vcpus, transports } = container.one(&MACHINE)?;
    let state = MachineState {
        memory_mib,
        memory: container.one::<Extents>(&RAM)?,
        is_held,
        vcpus: container.all::<VcpuState>(&VCPU, vcpus)?,
        vm: VmState {
            irqchips: container.array(&IRQCHIP)?,
            pit: container.one(&PIT)?,
            clock: container.one(&CLOCK)?,
        },
        transports: container.all::<TransportState>(&VIRTIO, transports)?,
        console: container.one::<ConsoleState>(&CONSOLE)?,
    };
    Ok((state, container.facts().clone()))
}

/// With what the vCPUs use now: state components, and the frequency of the TSC.
fn facts_of(state: &MachineState, facts: &HostFacts) -> HostFacts {
    let xcr0 = state.vcpus.iter().fold(0, |xcr0, vcpu| xcr0 | vcpu.xcr0());
    let tsc_khz = state.vcpus.first().and_then(VcpuState::tsc).map_or(0, |tsc| tsc.khz);
    HostFacts { xcr0, tsc_khz, ..facts.clone() }
}

fn each<T: Layout>(writer: &mut Writer, kind: &Kind, contents: &[T]) {
    for (index, content) in (0..).zip(contents) {
        writer.section(kind, index, content);
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
