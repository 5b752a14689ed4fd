//! The CPUID of the guest's CPUs: what is offered ([`super::offer`]), with each CPU's own number.
//! Nested virtualization is not offered, because its state is not saved.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The entry of a leaf, if it exists.
#[must_use]
pub fn find(cpuid: &CpuId, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid.as_slice().iter().find(|entry| entry.function == leaf && entry.index == subleaf)
}

/// The CPUID of vCPU `index` of `vcpus`, one socket, one thread a core.
#[must_use]
pub fn for_vcpu(supported: &CpuId, index: u8, vcpus: u8) -> CpuId {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HTT: u32 = 1 << 28;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const CMP_LEGACY: u32 = 1 << 1;
    let mut cpuid = supported.clone();
    let (apic_id, count) = (u32::from(index), u32::from(vcpus));
    let is_amd = is_amd(supported);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | apic_id << 24;
                entry.ecx = entry.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
                if vcpus > 1 {
                    entry.edx |= HTT;
                }
            }
            // Cores a package, and no cache shared between them.
            4 => entry.eax = entry.eax & 0x3fff | (count.next_power_of_two() - 1) << 26,
            0xb | 0x1f => set_topology(entry, apic_id, count),
            0x8000_0001 => {
                entry.ecx &= !SVM;
                // HTT counts cores, not threads of a core.
                if is_amd && vcpus > 1 {
                    entry.ecx |= CMP_LEGACY;
                }
            }
            // In these leaves KVM shows the host CPU's values: its number of cores, how many share
            // a cache, and the number of the core that ran the call.
            0x8000_0008 if is_amd => {
                let id_bits = count.next_power_of_two().trailing_zeros();
                entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (count - 1);
            }
            0x8000_001d if is_amd => entry.eax &= !(0xfff << 14),
            0x8000_001e if is_amd => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (apic_id, apic_id, 0, 0),
            // The same by levels, as 0xb has it, with the host's dies.
            0x8000_0026 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // What SVM has.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // No counters are offered.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    cpuid
}

fn is_amd(cpuid: &CpuId) -> bool {
    // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
    const VENDORS: [u32; 2] = [0x6874_7541, 0x6f67_7948];
    find(cpuid, 0, 0).is_some_and(|entry| VENDORS.contains(&entry.ebx))
}

/// Removes AMX unless all of it is present. From Linux 5.17 to 6.2, KVM offers the tile
/// configuration without the tile data to processes that have not enabled AMX, such as the vmm. A
/// guest would then fail when it sets XCR0.
#[must_use]
pub fn without_half_amx(mut supported: CpuId) -> CpuId {
    const TILES: u32 = 1 << 17 | 1 << 18;
    if find(&supported, 0xd, 0).is_some_and(|entry| entry.eax & TILES == TILES) {
        return supported;
    }
    // AMX-BF16, AMX-TILE, AMX-INT8; AMX-FP16; AMX-COMPLEX.
    const LEAF_7_EDX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const LEAF_7_1_EAX: u32 = 1 << 21;
    const LEAF_7_1_EDX: u32 = 1 << 8;
    for entry in supported.as_mut_slice() {
        match (entry.function, entry.index) {
            (0xd, 0) => entry.eax &= !TILES,
            (0xd, 17 | 18) | (0x1d | 0x1e, _) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            (7, 0) => entry.edx &= !LEAF_7_EDX,
            (7, 1) => (entry.eax, entry.edx) = (entry.eax & !LEAF_7_1_EAX, entry.edx & !LEAF_7_1_EDX),
            _ => {}
        }
    }
    supported
}

fn set_topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32) {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, THREADS << 8),
        1 => (count.next_power_of_two().trailing_zeros(), count, CORES << 8 | 1),
        level => (0, 0, level),
    };
    entry.edx = apic_id;
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
