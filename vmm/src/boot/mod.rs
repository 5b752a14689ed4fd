//! Loads a kernel file into a VM, so that the first vCPU can run its first instruction.
//!
//! - [`kernel`]: loads the kernel into guest RAM.
//! - [`bzimage`]: takes the ELF out of a bzImage, so that the guest need not unpack it.
//! - [`cmdline`]: the kernel command line.
//! - [`tables`]: the boot data in RAM: PVH start info or zero page, memory map, command line.
//! - [`mptable`]: the table that describes CPUs and interrupts to a kernel without ACPI.
//! - [`layout`]: the addresses of all of these in guest RAM.

pub mod bzimage;
pub mod cmdline;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod tables;
