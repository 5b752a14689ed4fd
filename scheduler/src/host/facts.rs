//! What a host has for VMs of other hosts, as it says it to its scheduler.

use patina_control::config::KvmKind;
use patina_proto::v1;
use patina_snapshot::{
    cpuid::{CpuidEntry, compared},
    facts::HostFacts,
};

/// Longest name of a kernel's release that a scheduler takes.
const KERNEL_CHARS: usize = 64;

/// What a host has; of its CPUID only what is compared. A scheduler takes it whatever the host is
/// like: with facts that it refuses, the host could not register.
#[must_use]
pub fn message(host: &HostFacts, lazy_memory: bool) -> v1::HostFacts {
    let kvm_kind = match host.kvm_kind {
        KvmKind::Vmx => v1::KvmKind::Vmx,
        KvmKind::Svm => v1::KvmKind::Svm,
        KvmKind::Software => v1::KvmKind::Software,
    };
    let leaf = |entry: &CpuidEntry| {
        let CpuidEntry { function: leaf, index: subleaf, eax, ebx, ecx, edx, .. } = *entry;
        v1::CpuidLeaf { leaf, subleaf, eax, ebx, ecx, edx }
    };
    v1::HostFacts {
        cpu_vendor: host.vendor.to_vec(),
        cpu_family: host.family.into(),
        cpu_model: host.model.into(),
        cpu_stepping: host.stepping.into(),
        kvm_kind: kvm_kind.into(),
        page_bytes: host.page_bytes,
        xcr0: host.xcr0,
        tsc_khz: host.tsc_khz,
        can_scale_tsc: host.can_scale_tsc,
        kernel: host.kernel.chars().filter(|c| !c.is_control()).take(KERNEL_CHARS).collect(),
        cpuid: compared(&host.cpuid, host.xcr0).iter().map(leaf).collect(),
        lazy_memory,
    }
}
