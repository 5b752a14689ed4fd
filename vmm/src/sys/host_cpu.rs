//! The CPU that this code runs on.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID of the CPU that this runs on.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    // Every x86-64 CPU has CPUID.
    __cpuid_count(leaf, subleaf)
}
