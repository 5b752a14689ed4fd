//! The sections of a VM's state, with the versions of their layouts that this release writes and
//! reads. The vmm has the layouts. `vmmd` refuses a state of another release by this list, before
//! it makes anything of a snapshot.

use crate::container::{Kind, Tag};

/// A section without which the state cannot be used.
#[must_use]
pub const fn required(tag: [u8; 4], version: u16) -> Kind {
    Kind { tag: Tag(tag), version, is_required: true }
}

/// The size of the VM, and how many parts it has.
pub const MACHINE: Kind = required(*b"MACH", 1);
/// The map from pages to layers.
pub const RAM: Kind = required(*b"RAM ", 1);
/// A vCPU.
pub const VCPU: Kind = required(*b"VCPU", 1);
/// The registers of an interrupt controller.
pub const IRQCHIP: Kind = required(*b"IRQC", 1);
/// The timer.
pub const PIT: Kind = required(*b"PIT ", 1);
/// The clock.
pub const CLOCK: Kind = required(*b"CLCK", 1);
/// A virtio device.
pub const VIRTIO: Kind = required(*b"VIRT", 1);
/// The console.
pub const CONSOLE: Kind = required(*b"CONS", 1);
/// All of them.
pub const KNOWN: [Kind; 8] = [MACHINE, RAM, VCPU, IRQCHIP, PIT, CLOCK, VIRTIO, CONSOLE];
