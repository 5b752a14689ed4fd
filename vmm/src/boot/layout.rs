//! The layout of guest-physical memory.
//!
//! ```text
//! 0x0000_0500  GDT for the boot state        0x0009_fc00  MP table, to 640 KiB
//! 0x0000_6000  PVH start info                0x0010_0000  kernel, RAM up to the hole
//! 0x0000_7000  zero page (64-bit boot)       0xc000_0000  hole for devices
//! 0x0000_8000  memory map (PVH)              0xd000_0000  virtio-mmio windows, 4 KiB each
//! 0x0000_9000  page tables (64-bit boot)     0xfec0_0000  IOAPIC, 0xfee0_0000 local APICs
//! 0x0002_0000  kernel command line           0x1_0000_0000  RAM again
//! ```

/// Global descriptor table of the boot state.
pub const GDT: u64 = 0x500;
/// PVH start info.
pub const START_INFO: u64 = 0x6000;
/// Linux boot parameters.
pub const ZERO_PAGE: u64 = 0x7000;
/// PVH memory map.
pub const MEMORY_MAP: u64 = 0x8000;
/// Top-level page table; the two below follow.
pub const PML4: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// Page directory: 512 pages of 2 MiB, the first GiB.
pub const PD: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line with its final zero, bytes (the limit of x86 Linux).
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// End of the low RAM that the kernel may use; the MP table follows.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The MP table: the last KiB below 640 KiB, where kernels look for it.
pub const MPTABLE: u64 = LOW_RAM_END;
/// Greatest size of the MP table, bytes.
pub const MPTABLE_MAX_BYTES: usize = 0x400;
/// Where high memory, and the kernel, begins.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The first virtio-mmio window; the next ones follow.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// The interrupt of the first virtio device; the next ones follow.
pub const MMIO_FIRST_IRQ: u32 = 5;
/// Where KVM keeps its task-state segment on VMX hosts: three pages in the hole.
pub const KVM_TSS: usize = 0xfffb_d000;
/// The IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
