//! Detects the kind of KVM that the host has, and adapts the guest to it. Software KVM (no VT-x, no
//! AMD-V) does not intercept CPUID: the guest kernel sees the host CPU's own feature bits, and
//! would use features that KVM cannot run. So the guest's command line clears the features that a
//! kernel uses itself and KVM does not offer. XSAVE is an exception: the VMM finishes XSAVE and
//! XRSTOR (`software`), so that the kernel saves the AVX registers of every process.

use super::cpuid::find;
use crate::sys::host_cpu;
use kvm_bindings::CpuId;
use patina_control::config::KvmKind;

/// Guesses the kind from the CPU. Without VMX and SVM, a working /dev/kvm can only be software.
/// With them it may still be software, so [`patina_control::config::VmConfig::kvm_kind`] names the
/// kernel module's kind if vmmd could see it.
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

/// The part of KVM's supported CPUID that a guest is offered.
///
/// Software KVM never finishes a hypercall of the guest's kernel: its emulator replaces the
/// instruction by the host's kind of hypercall instruction and runs it again, which it emulates
/// again. So no hypercall is offered that a kernel may make by itself: to wake a CPU that waits for
/// a lock, to send interrupts to several CPUs, to yield to a CPU, to report page states.
///
/// Asynchronous page faults are not offered either. Every restored vCPU would be told that all of
/// them are done, which costs an interrupt and a table search in its emulated kernel. They help
/// only on hosts that page guests out.
#[must_use]
pub fn offered(kind: KvmKind, mut supported: CpuId) -> CpuId {
    // KVM's own features (leaf 0x4000_0001, EAX): PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD,
    // MAP_GPA_RANGE, MIGRATION_CONTROL.
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
    // Per-CPU memory in small pages: otherwise the kernel clears 2 MiB for each CPU, which takes
    // 0.6 s at emulated speed. The kernel's own pages stay writable: protecting them splits large
    // pages, which takes 1.3 s or more. A busy CPU's timer interrupts every 40 ms, because each
    // interrupt costs a millisecond or two. Kernels other than Patina's ignore this option.
    // The clock is KVM's and not the TSC: user mode reads the host's TSC, which no offset moves. By
    // the TSC, the time between a freeze and a start from its generation would pass at once.
    let mut line = "percpu_alloc=page rodata=off patina.tick_stride=4 clocksource=kvm-clock".to_owned();
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
    /// The bits for which a Linux kernel itself uses other instructions. Others only tell programs.
    used: &'static [u32],
}

/// Linux accepts at most 127 characters of `clearcpuid`, so this does not list every feature that
/// KVM may lack. AVX and its extensions are left out on purpose: they tell the kernel which
/// registers to save.
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

/// Linux's numbers of the features that the CPU shows, the kernel would use, and KVM does not
/// offer.
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

    /// Linux reads the option into a buffer of 128 bytes and silently cuts the rest, in the middle
    /// of a number.
    #[test]
    fn all_that_can_be_cleared_fits_into_what_linux_reads() {
        let all: Vec<String> = WORDS
            .iter()
            .flat_map(|word| word.used.iter().map(|bit| (word.number * 32 + bit).to_string()))
            .collect();
        assert!(all.join(",").len() < 128, "{}", all.join(",").len());
    }
}
