//! Switches off features of KVM that are on by default and that these VMs do not need.

use crate::note::note;
use crate::sys::kvm_state;
use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_PMU_CAP_DISABLE,
    kvm_enable_cap,
};
use kvm_ioctls::VmFd;

/// Switches off the features below. If KVM cannot switch one off, it stays on. Afterwards a pending
/// triple fault is part of the saved state.
///
/// - Counters for `perf` in the guest: none are offered (`vcpu/cpuid.rs`), but on AMD a guest finds
///   them without asking.
/// - Polling for up to 200 us whenever a vCPU halts: many VMs share a host, and most of them are
///   idle.
/// - Late ticks of the PIT: see [`kvm_state::drop_late_pit_ticks`].
pub fn tune(vm: &VmFd) {
    for (cap, argument, what) in [
        (KVM_CAP_PMU_CAPABILITY, u64::from(KVM_PMU_CAP_DISABLE), "KVM_CAP_PMU_CAPABILITY"),
        (KVM_CAP_HALT_POLL, 0, "KVM_CAP_HALT_POLL"),
        (KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"),
    ] {
        if vm.check_extension_raw(cap.into()) <= 0 {
            continue;
        }
        let enable = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..kvm_enable_cap::default() };
        if let Err(error) = vm.enable_cap(&enable) {
            note(&format!("make the VM: {what}: {error}; the VM runs without this setting"));
        }
    }
    if let Err(error) = kvm_state::drop_late_pit_ticks(vm) {
        note(&format!("make the VM: KVM_REINJECT_CONTROL: {error}; the VM runs without this setting"));
    }
}
