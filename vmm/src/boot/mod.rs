//! From a kernel file to a VM whose first vCPU is about to run its first instruction.
//!
//! - [`kernel`]: loading it into guest RAM.
//! - [`bzimage`]: takes the ELF out of a bzImage, so that the guest need not unpack it.
//! - [`cmdline`]: the kernel command line.
//! - [`tables`]: what the kernel finds in RAM: PVH start info or zero page, memory map, command line.
//! - [`mptable`]: the table that tells a kernel without ACPI of its CPUs and interrupts.
//! - [`layout`]: where in guest RAM each of these lies.

pub mod bzimage;
pub mod cmdline;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod tables;
