//! What the guest's CPUs say of themselves: what KVM supports, with each CPU's own number. VMs inside the guest are not offered:
//! their state is not saved.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The entry of a leaf, if there.
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
    let mut cpuid = supported.clone();
    let (apic_id, count) = (u32::from(index), u32::from(vcpus));
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
            0x8000_0001 => entry.ecx &= !SVM,
            // What SVM has.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // No counters are offered.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    cpuid
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
mod tests {
    use super::*;

    #[test]
    fn all_that_kvm_offers_is_shown_but_vms_in_vms() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        };
        let supported = CpuId::from_entries(&[1, 7, 0x8000_0001, 0x8000_000a].map(entry)).expect("entries");
        let cpuid = for_vcpu(&supported, 3, 4);
        let leaf = |leaf| *find(&cpuid, leaf, 0).expect("it is there");
        assert_eq!((leaf(1).ecx, leaf(1).ebx), (!(1 << 5), 3 << 24 | 4 << 16 | 0xffff));
        assert_eq!(leaf(0x8000_0001), kvm_cpuid_entry2 { ecx: !(1 << 2), ..entry(0x8000_0001) });
        assert_eq!(leaf(7), entry(7));
        assert_eq!(leaf(0x8000_000a).edx, 0);
    }
}
