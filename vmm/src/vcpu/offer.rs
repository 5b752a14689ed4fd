//! What a guest is offered of the CPUID that KVM supports.

use super::cpuid::without_half_amx;
use super::kind;
use super::registers::{cpuid_from, cpuid_to};
use kvm_bindings::CpuId;
use patina_control::config::KvmKind;
use patina_snapshot::baseline;
use patina_snapshot::facts::HostFacts;
use patina_snapshot::layout::{LayoutError, from_bytes};

/// Why nothing can be offered to a guest.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It is of another release.
    #[error("read the CPU baseline; install a vmm and a vmmd of the same release")]
    Baseline(#[from] LayoutError),
    /// KVM takes fewer entries than it gave.
    #[error("KVM gave {0} CPUID entries, which are more than it takes; update the kernel")]
    Entries(usize),
}

/// What the guests of this host are offered of what KVM supports: all that can be run and saved; or
/// the part of it that a CPU baseline has, see
/// [`patina_control::config::VmConfig::cpu_baseline`].
///
/// # Errors
/// The baseline cannot be read.
pub fn offered(kind: KvmKind, supported: CpuId, baseline: Option<&[u8]>) -> Result<CpuId, OfferError> {
    let all = without_half_amx(kind::offered(kind, supported));
    let Some(baseline) = baseline else { return Ok(all) };
    let baseline: HostFacts = from_bytes(baseline)?;
    let mut entries = cpuid_from(&all);
    baseline::mask(&mut entries, &baseline);
    cpuid_to(&entries).ok_or(OfferError::Entries(entries.len()))
}
