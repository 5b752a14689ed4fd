//! What a VM needs of a host, and whether a host has it.
//!
//! A host has facts of the same form as a VM: those of a VM that would be made on it now. Both are
//! compared before any vCPU of the VM runs:
//!
//! | fact | a host has what the VM needs if | reason |
//! | --- | --- | --- |
//! | kind of KVM | it is equal | Each kind keeps state of its own in the same structs, and a guest is adapted to its kind when it boots. |
//! | CPU vendor, family | they are equal | A guest chooses errata and instructions (`vmcall`, `vmmcall`) by them, once. |
//! | CPU model, stepping | they are equal, on software KVM | There a guest reads CPUID from the CPU itself. With VT-x or AMD-V it reads what the VM was offered. |
//! | XCR0 | the host offers every component that the VM has enabled | XRSTOR of any other faults. |
//! | CPUID offered | the host offers every feature ([`crate::cpuid`]) | Programs look once, and use what they have found. |
//! | page size | it is equal | Layers are made of pages. |
//! | TSC | the frequencies differ by at most 250 ppm, or the CPU can scale it | A guest measures its clock once. |
//! | kernel | always | It is only shown. KVM refuses what an older kernel does not have. |

use crate::cpuid::{self, CpuidEntry, CpuidError, Register};
use crate::layout::{Decoder, Encoder, Layout, LayoutError};
use patina_control::config::KvmKind;
use serde::{Deserialize, Serialize};

/// What a VM needs of a host. Of a host: what a VM made on it would need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// CPUID leaf 0: `GenuineIntel`, for example.
    pub vendor: [u8; 12],
    /// The CPU's family, as Linux shows it.
    pub family: u16,
    /// The CPU's model, as Linux shows it.
    pub model: u16,
    /// The CPU's stepping.
    pub stepping: u16,
    /// What runs the guest's instructions.
    pub kvm_kind: KvmKind,
    /// Size of a page, bytes.
    pub page_bytes: u32,
    /// The state components that the VM's vCPUs have enabled. Of a host: those that it offers.
    pub xcr0: u64,
    /// The frequency of the VM's TSC, kHz. Of a host: of its own. 0: not known.
    pub tsc_khz: u32,
    /// Whether the host can give a VM another frequency than its own.
    pub can_scale_tsc: bool,
    /// The release of the host's kernel, as `uname -r` prints it. At most 64 bytes are kept.
    pub kernel: String,
    /// The CPUID that the VM's first vCPU was offered.
    pub cpuid: Vec<CpuidEntry>,
}

/// Why a host cannot run a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// The kinds of KVM differ.
    #[error("the VM ran on {vm}, and this host has {host}; use a host with {vm}", vm = name(*vm), host = name(*host))]
    KvmKind {
        /// The VM's.
        vm: KvmKind,
        /// This host's.
        host: KvmKind,
    },
    /// The CPUs differ too much.
    #[error("the VM ran on a CPU {vm}, and this host has {host}; use a host with {needed}")]
    Cpu {
        /// The VM's: vendor, family, model and stepping.
        vm: String,
        /// This host's.
        host: String,
        /// How much has to be equal.
        needed: &'static str,
    },
    /// A page has another size.
    #[error(
        "the VM's memory has pages of {vm} bytes, and this host's has pages of {host}; use a host with {vm}"
    )]
    PageSize {
        /// The VM's, bytes.
        vm: u32,
        /// This host's, bytes.
        host: u32,
    },
    /// The VM uses CPU state that this host does not have.
    #[error(
        "the VM has enabled the CPU state {vm:#x} (XCR0), and this host offers {host:#x}; use a host with a CPU that \
         has all of it"
    )]
    Xcr0 {
        /// What the VM has enabled.
        vm: u64,
        /// What this host offers.
        host: u64,
    },
    /// The VM was offered what this host does not have.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The VM's TSC has another frequency.
    #[error(
        "the VM's TSC has {vm} kHz, this host's has {host} kHz, and its CPU cannot scale it; use a host with {vm} kHz"
    )]
    Tsc {
        /// The VM's, kHz.
        vm: u32,
        /// This host's, kHz.
        host: u32,
    },
}

/// Most bytes of [`HostFacts::kernel`].
const KERNEL_MAX_BYTES: usize = 64;
const VMX: u8 = 1;
const SVM: u8 = 2;
const SOFTWARE: u8 = 3;

impl HostFacts {
    /// Facts with what CPUID says: CPU and state components. The others are empty.
    #[must_use]
    pub fn of_cpuid(kvm_kind: KvmKind, cpuid: Vec<CpuidEntry>) -> Self {
        let register = |leaf, subleaf, register| cpuid::register(&cpuid, leaf, subleaf, register);
        let mut vendor = [0; 12];
        for (bytes, from) in vendor.chunks_exact_mut(4).zip([Register::Ebx, Register::Edx, Register::Ecx]) {
            bytes.copy_from_slice(&register(0, 0, from).to_le_bytes());
        }
        let (family, model, stepping) = cpuid::signature(register(1, 0, Register::Eax));
        let xcr0 = xcr0_of(&cpuid);
        Self {
            vendor,
            family,
            model,
            stepping,
            kvm_kind,
            page_bytes: 0,
            xcr0,
            tsc_khz: 0,
            can_scale_tsc: false,
            kernel: String::new(),
            cpuid,
        }
    }

    /// Whether a VM with these needs can run on this host.
    ///
    /// # Errors
    /// The first fact that does not fit, with both sides.
    pub fn check(&self, vm: &Self) -> Result<(), FactsError> {
        if self.kvm_kind != vm.kvm_kind {
            return Err(FactsError::KvmKind { vm: vm.kvm_kind, host: self.kvm_kind });
        }
        let family = |facts: &Self| (facts.vendor, facts.family);
        let cpu = |facts: &Self| (family(facts), facts.model, facts.stepping);
        let sees_cpu = vm.kvm_kind == KvmKind::Software;
        if family(self) != family(vm) || sees_cpu && cpu(self) != cpu(vm) {
            let needed = if sees_cpu { "the same CPU" } else { "a CPU of the same vendor and family" };
            return Err(FactsError::Cpu { vm: vm.cpu(), host: self.cpu(), needed });
        }
        if self.page_bytes != vm.page_bytes {
            return Err(FactsError::PageSize { vm: vm.page_bytes, host: self.page_bytes });
        }
        if vm.xcr0 & !self.xcr0 != 0 {
            return Err(FactsError::Xcr0 { vm: vm.xcr0, host: self.xcr0 });
        }
        cpuid::check(&self.cpuid, &vm.cpuid, vm.xcr0)?;
        if is_another_speed(vm.tsc_khz, self.tsc_khz) && !self.can_scale_tsc {
            return Err(FactsError::Tsc { vm: vm.tsc_khz, host: self.tsc_khz });
        }
        Ok(())
    }

    /// Of the CPUID what is compared, with all state components that it lists, whether a VM has
    /// enabled them or not.
    #[must_use]
    pub fn features(&self) -> Vec<CpuidEntry> {
        cpuid::compared(&self.cpuid, xcr0_of(&self.cpuid))
    }

    /// What a VM with these needs was offered: it may come to need all of it.
    #[must_use]
    pub fn offered(&self) -> Self {
        Self { cpuid: self.features(), xcr0: xcr0_of(&self.cpuid), ..self.clone() }
    }

    /// Vendor, family, model and stepping of the CPU, in words.
    #[must_use]
    pub fn cpu(&self) -> String {
        let Self { vendor, family, model, stepping, .. } = self;
        format!("{} family {family} model {model} stepping {stepping}", vendor.escape_ascii())
    }
}

/// The state components that leaf 0xd lists.
fn xcr0_of(entries: &[CpuidEntry]) -> u64 {
    let register = |name| u64::from(cpuid::register(entries, 0xd, 0, name));
    register(Register::Edx) << 32 | register(Register::Eax)
}

/// A kind of KVM, in words.
#[must_use]
pub fn name(kind: KvmKind) -> &'static str {
    match kind {
        KvmKind::Vmx => "VT-x",
        KvmKind::Svm => "AMD-V",
        KvmKind::Software => "KVM without hardware virtualization",
    }
}

/// Whether two frequencies of a TSC differ by more than 250 ppm, as KVM sees it. A smaller
/// difference is one host's TSC, measured twice. 0 is a frequency that is not known.
#[must_use]
pub fn is_another_speed(vm_khz: u32, host_khz: u32) -> bool {
    let differ = u64::from(vm_khz.abs_diff(host_khz)) * 1_000_000 > u64::from(host_khz) * 250;
    vm_khz != 0 && host_khz != 0 && differ
}

/// The layout of the section [`crate::container::FACTS`]: the fields in the order in which they are
/// declared. The kind of KVM is a `u8`: 1 VT-x, 2 AMD-V, 3 software. The kernel is a list of `u8`.
impl Layout for HostFacts {
    fn encode(&self, to: &mut Encoder) {
        self.vendor.encode(to);
        self.family.encode(to);
        self.model.encode(to);
        self.stepping.encode(to);
        let kind = match self.kvm_kind {
            KvmKind::Vmx => VMX,
            KvmKind::Svm => SVM,
            KvmKind::Software => SOFTWARE,
        };
        kind.encode(to);
        self.page_bytes.encode(to);
        self.xcr0.encode(to);
        self.tsc_khz.encode(to);
        self.can_scale_tsc.encode(to);
        let kernel = self.kernel.get(..self.kernel.floor_char_boundary(KERNEL_MAX_BYTES)).unwrap_or_default();
        kernel.as_bytes().to_vec().encode(to);
        self.cpuid.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        Ok(Self {
            vendor: Layout::decode(from)?,
            family: Layout::decode(from)?,
            model: Layout::decode(from)?,
            stepping: Layout::decode(from)?,
            kvm_kind: from.code("kind of KVM", |byte| match byte {
                VMX => Some(KvmKind::Vmx),
                SVM => Some(KvmKind::Svm),
                SOFTWARE => Some(KvmKind::Software),
                _ => None,
            })?,
            page_bytes: Layout::decode(from)?,
            xcr0: Layout::decode(from)?,
            tsc_khz: Layout::decode(from)?,
            can_scale_tsc: Layout::decode(from)?,
            kernel: decode_kernel(from)?,
            cpuid: Layout::decode(from)?,
        })
    }
}

/// It is shown to users, and a hostile host may have written it.
fn decode_kernel(from: &mut Decoder<'_>) -> Result<String, LayoutError> {
    let bytes = Vec::<u8>::decode(from)?;
    if bytes.len() > KERNEL_MAX_BYTES {
        let found = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        return Err(LayoutError::Many {
            what: "bytes of the kernel's release",
            found,
            most: KERNEL_MAX_BYTES,
        });
    }
    Ok(String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
#[path = "facts_test.rs"]
mod tests;
