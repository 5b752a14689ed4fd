//! Which kind of KVM the host has. On software KVM (no VT-x, no AMD-V) CPUID is not intercepted: the guest
//! kernel sees the host CPU's own bits and would use what KVM cannot run. Those that a kernel uses itself and KVM does
//! not offer are therefore cleared on the guest's command line, all but XSAVE: the VMM finishes XSAVE and XRSTOR
//! (`software`), so that the kernel saves the AVX registers of every process.

use super::cpuid::find;
use crate::sys::host_cpu;
use kvm_bindings::CpuId;
use patina_control::config::KvmKind;

/// Looks at the CPU: without VMX and SVM, a working /dev/kvm can only be software. With them it need not be hardware: which
/// module serves is told in [`patina_control::config::VmConfig::kvm_kind`], where that can be seen.
#[must_use]
pub fn detect() -> KvmKind {
    const VMX_ECX: u32 = 1 << 5;
    const SVM_ECX: u32 = 1 << 2;
    if host_cpu::cpuid(1, 0).ecx & VMX_ECX != 0 {
        KvmKind::Vmx
    } else if host_cpu::cpuid(0x8000_0001, 0).ecx & SVM_ECX != 0 {
        KvmKind::Svm
    } else {
        KvmKind::Software
    }
}

/// Of what KVM supports, what a guest may be told.
///
/// Software KVM never comes to the end of a hypercall of the guest's kernel: its emulator writes the host's kind of
/// call instruction over it and has it run again, which it again emulates. So no call is offered that a kernel may
/// make unasked: waking a CPU that waits for a lock, interrupts to several CPUs, yielding to one, telling of pages.
///
/// Nor are asynchronous page faults: every restored vCPU is told that all of them are done, which is an interrupt
/// and a search through a table in its emulated kernel; and a host that pages guests out is no place for them.
#[must_use]
pub fn offered(kind: KvmKind, mut supported: CpuId) -> CpuId {
    // KVM's own features (leaf 0x4000_0001, EAX): PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD, MAP_GPA_RANGE, MIGRATION_CONTROL.
    const HYPERCALLS: u32 = 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16 | 1 << 17;
    // ASYNC_PF, ASYNC_PF_VMEXIT, ASYNC_PF_INT.
    const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;
    if kind == KvmKind::Software {
        let features = supported.as_mut_slice().iter_mut().filter(|entry| entry.function == 0x4000_0001);
        features.for_each(|entry| entry.eax &= !(HYPERCALLS | ASYNC_PAGE_FAULTS));
    }
    supported
}

/// What this kind needs on the guest's command line.
#[must_use]
pub fn cmdline(kind: KvmKind, supported: &CpuId) -> String {
    if kind != KvmKind::Software {
        return String::new();
    }
    // Per-CPU memory in small pages: the other way clears 2 MiB for each CPU, 0.6 s at emulated speed. The kernel's
    // own pages stay writable: protecting them splits large pages, 1.3 s and more.
    // A busy CPU's timer interrupts every 40 ms: each costs a millisecond or two, and a kernel that is not ours takes no notice.
    let mut line = "percpu_alloc=page rodata=off patina.tick_stride=4".to_owned();
    let bits: Vec<String> = unsupported(supported).iter().map(u32::to_string).collect();
    if !bits.is_empty() {
        line.push_str(" clearcpuid=");
        line.push_str(&bits.join(","));
    }
    line
}

/// A register of CPUID that Linux keeps as one word of its feature bits.
struct Word {
    /// Linux's number of the word: a feature is word * 32 + bit.
    number: u32,
    leaf: u32,
    subleaf: u32,
    register: fn(u32, u32, u32, u32) -> u32,
    /// The bits that a Linux kernel acts on itself, by the instructions it then uses. Others only tell programs.
    used: &'static [u32],
}

/// Linux takes at most 127 characters of `clearcpuid`, so this is no list of all that KVM may lack. AVX and its
/// kin are left out on purpose: the kernel takes from them which registers to save.
const WORDS: [Word; 6] = [
    // 1 GiB pages, RDTSCP
    Word { number: 1, leaf: 0x8000_0001, subleaf: 0, register: |_, _, _, d| d, used: &[26, 27] },
    // PCLMULQDQ, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, POPCNT, AES, RDRAND
    Word {
        number: 4,
        leaf: 1,
        subleaf: 0,
        register: |_, _, c, _| c,
        used: &[1, 9, 13, 17, 19, 20, 23, 25, 30],
    },
    // FSGSBASE, SMEP, ERMS, INVPCID, RDSEED, SMAP, CLFLUSHOPT, CLWB, SHA
    Word {
        number: 9,
        leaf: 7,
        subleaf: 0,
        register: |_, b, _, _| b,
        used: &[0, 7, 9, 10, 18, 20, 23, 24, 29],
    },
    // XSAVEOPT, XSAVEC, XGETBV1, XSAVES
    Word { number: 10, leaf: 0xd, subleaf: 1, register: |a, _, _, _| a, used: &[0, 1, 2, 3] },
    // UMIP, PKU, RDPID
    Word { number: 16, leaf: 7, subleaf: 0, register: |_, _, c, _| c, used: &[2, 3, 22] },
    // FSRM, SERIALIZE, AMX-TILE
    Word { number: 18, leaf: 7, subleaf: 0, register: |_, _, _, d| d, used: &[4, 14, 24] },
];

/// Linux's numbers of the features that the CPU shows, the kernel would use, and KVM does not offer.
fn unsupported(supported: &CpuId) -> Vec<u32> {
    let mut features = Vec::new();
    for word in &WORDS {
        let host = host_cpu::cpuid(word.leaf, word.subleaf);
        let host = (word.register)(host.eax, host.ebx, host.ecx, host.edx);
        let offered = find(supported, word.leaf, word.subleaf)
            .map_or(0, |entry| (word.register)(entry.eax, entry.ebx, entry.ecx, entry.edx));
        let missing = host & !offered;
        features.extend(
            word.used.iter().filter(|bit| missing & (1 << **bit) != 0).map(|bit| word.number * 32 + bit),
        );
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn no_hypercall_and_no_asynchronous_page_fault_is_offered_where_kernels_are_emulated() {
        let every = kvm_cpuid_entry2 { function: 0x4000_0001, eax: !0, ..kvm_cpuid_entry2::default() };
        let supported = CpuId::from_entries(&[every]).expect("one entry");
        let eax = |kind: KvmKind| offered(kind, supported.clone()).as_slice()[0].eax;
        assert_eq!([eax(KvmKind::Vmx), eax(KvmKind::Svm)], [!0; 2]);
        // PV_SEND_IPI goes, the clock (bits 0, 3 and 24) stays.
        assert_eq!(eax(KvmKind::Software) & (1 << 11 | 1 << 24 | 0b1001), 1 << 24 | 0b1001);
        assert_eq!(eax(KvmKind::Software) & (1 << 4 | 1 << 10 | 1 << 14), 0, "asynchronous page faults");
    }

    /// Linux reads the option into a buffer of 128 bytes and silently cuts the rest, in the middle of a number.
    #[test]
    fn all_that_can_be_cleared_fits_into_what_linux_reads() {
        let all: Vec<String> = WORDS
            .iter()
            .flat_map(|word| word.used.iter().map(|bit| (word.number * 32 + bit).to_string()))
            .collect();
        assert!(all.join(",").len() < 128, "{}", all.join(",").len());
    }
}
