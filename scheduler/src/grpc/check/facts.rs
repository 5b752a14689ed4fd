//! Checks what a host says of its CPU, KVM and kernel.

use super::{Check, TEXT_MAX_CHARS};
use crate::core::present::Facts;
use patina_control::config::KvmKind;
use patina_proto::v1;
use patina_snapshot::{cpuid::CpuidEntry, facts::HostFacts};
use tonic::Status;

/// Most leaves of CPUID: those with features, and one for each state component.
pub(super) const LEAVES_MAX: usize = 80;
/// Sizes of pages that Linux has on any CPU.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 4096..=65_536;
/// Greatest family, model and stepping.
const SIGNATURE: std::ops::RangeInclusive<u32> = 0..=65_535;

/// What a host has or a VM needs, as a message says it.
///
/// # Errors
/// A field is out of its range.
pub fn facts(facts: v1::HostFacts) -> Result<HostFacts, Status> {
    let mut check = Check::default();
    let facts = check.facts("facts", facts).host;
    check.done(facts)
}

impl Check {
    /// All of it within its limits, if nothing is said to be wrong. `within` is the message's
    /// field.
    pub(super) fn facts(&mut self, within: &str, facts: v1::HostFacts) -> Facts {
        let field = |name: &str| format!("{within}.{name}");
        let kvm_kind = self.kvm_kind(&field("kvm_kind"), &facts);
        let mut short = |name, value| {
            let value = self.range(&field(name), value, SIGNATURE);
            u16::try_from(value).unwrap_or(u16::MAX)
        };
        let family = short("cpu_family", facts.cpu_family);
        let model = short("cpu_model", facts.cpu_model);
        let stepping = short("cpu_stepping", facts.cpu_stepping);
        let vendor = facts.cpu_vendor.as_slice().try_into().unwrap_or_else(|_| {
            self.wrong(&field("cpu_vendor"), "write 12 bytes, as CPUID leaf 0 has them");
            [0; 12]
        });
        self.count(&field("cpuid"), &facts.cpuid, LEAVES_MAX);
        let cpuid = facts.cpuid.iter().take(LEAVES_MAX).map(|leaf| {
            let v1::CpuidLeaf { leaf: function, subleaf: index, eax, ebx, ecx, edx } = *leaf;
            CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
        });
        let host = HostFacts {
            vendor,
            family,
            model,
            stepping,
            kvm_kind,
            page_bytes: self.range(&field("page_bytes"), facts.page_bytes, PAGE_BYTES),
            xcr0: facts.xcr0,
            tsc_khz: facts.tsc_khz,
            can_scale_tsc: facts.can_scale_tsc,
            kernel: self.text(&field("kernel"), facts.kernel, TEXT_MAX_CHARS),
            cpuid: cpuid.collect(),
        };
        Facts { host, lazy_memory: facts.lazy_memory }
    }

    fn kvm_kind(&mut self, field: &str, facts: &v1::HostFacts) -> KvmKind {
        match facts.kvm_kind() {
            v1::KvmKind::Vmx => KvmKind::Vmx,
            v1::KvmKind::Svm => KvmKind::Svm,
            v1::KvmKind::Software => KvmKind::Software,
            v1::KvmKind::None | v1::KvmKind::Unspecified => {
                self.wrong(field, "say VMX, SVM or SOFTWARE");
                KvmKind::Software
            }
        }
    }
}
