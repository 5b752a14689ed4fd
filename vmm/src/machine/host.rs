//! The facts of this host, as a VM that is made on it needs them.

use crate::vcpu::registers::cpuid_from;
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use patina_control::PAGE_BYTES;
use patina_control::config::KvmKind;
use patina_snapshot::facts::HostFacts;

/// Gathers the facts before the process enters its jail. `offered` is the CPUID of the VM's first
/// vCPU, and `vcpu` any of its vCPUs that has not run.
#[must_use]
pub fn gather(kvm: &Kvm, kind: KvmKind, offered: &CpuId, vcpu: Option<&VcpuFd>) -> HostFacts {
    HostFacts {
        page_bytes: u32::try_from(PAGE_BYTES).unwrap_or(u32::MAX),
        // KVM reports none if the host's TSC is not stable.
        tsc_khz: vcpu.and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0),
        can_scale_tsc: kvm.check_extension(Cap::TscControl),
        // Only for users to read, so a host that does not tell it has none.
        kernel: patina_daemon::kernel::release().unwrap_or_default(),
        ..HostFacts::of_cpuid(kind, cpuid_from(offered))
    }
}
