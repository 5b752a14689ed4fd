//! The CPUID that a VM was offered, and whether a host offers it.
//!
//! Compared is what programs rely on: feature bits, the layout of the XSAVE area, and the width of
//! physical addresses. Topology, caches, names and performance counters differ between hosts, and
//! are only described: a VM keeps the values that it has seen.

use crate::layout::Item;
use serde::{Deserialize, Serialize};

/// Most entries that KVM gives or takes.
pub const ENTRIES_MAX: usize = 256;

/// What CPUID returns for one leaf and subleaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf: EAX before the instruction.
    pub function: u32,
    /// The subleaf: ECX before the instruction.
    pub index: u32,
    /// KVM's: bit 0 says that the subleaf counts.
    pub flags: u32,
    /// The register after the instruction, as are the next ones.
    pub eax: u32,
    /// See `eax`.
    pub ebx: u32,
    /// See `eax`.
    pub ecx: u32,
    /// See `eax`.
    pub edx: u32,
}

crate::layout!(CpuidEntry { function: u32, index: u32, flags: u32, eax: u32, ebx: u32, ecx: u32, edx: u32 });

impl Item for CpuidEntry {
    const WHAT: &'static str = "CPUID entries";
    const MOST: usize = ENTRIES_MAX;
}

/// A register that CPUID writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Why a host does not offer a CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CpuidError {
    /// A feature is missing.
    #[error(
        "the VM was offered CPU features that this host does not offer: CPUID {leaf:#x}.{subleaf} {register:?} was \
         {vm:#010x}, and is {host:#010x} here; use a host with a CPU and a kernel that offer them"
    )]
    Features {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// The register's value for the VM.
        vm: u32,
        /// Its value on this host.
        host: u32,
    },
    /// A component of the XSAVE area lies elsewhere or has another size.
    #[error(
        "the VM keeps CPU state {component} in {vm_bytes} bytes at offset {vm_offset} of the XSAVE area, and this host \
         in {host_bytes} bytes at {host_offset}; use a host with the same kind of CPU"
    )]
    Xsave {
        /// The bit of the component in XCR0.
        component: u32,
        /// The component's size for the VM.
        vm_bytes: u32,
        /// Its offset for the VM.
        vm_offset: u32,
        /// Its size on this host.
        host_bytes: u32,
        /// Its offset on this host.
        host_offset: u32,
    },
    /// Physical addresses are narrower than the VM's.
    #[error(
        "the VM has physical addresses of {vm} bits, and this host of {host}; use a host with at least {vm}"
    )]
    AddressBits {
        /// The VM's.
        vm: u32,
        /// This host's.
        host: u32,
    },
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Leaf, subleaf and registers whose bits each are a feature, or a state component (leaf 0xd).
const FEATURES: [(u32, u32, &[Register]); 12] = [
    (0x1, 0, &[Ecx, Edx]),
    (0x6, 0, &[Eax]),
    (0x7, 0, &[Ebx, Ecx, Edx]),
    (0x7, 1, &[Eax, Ebx, Ecx, Edx]),
    (0x7, 2, &[Edx]),
    (0xd, 0, &[Eax, Edx]),
    (0xd, 1, &[Eax, Ecx, Edx]),
    (0x4000_0001, 0, &[Eax]),
    (0x8000_0001, 0, &[Ecx, Edx]),
    (0x8000_0007, 0, &[Edx]),
    (0x8000_0008, 0, &[Ebx]),
    (0x8000_0021, 0, &[Eax]),
];

/// HTT of leaf 1 and CMP_LEGACY of leaf 0x8000_0001: how many CPUs a VM has. Each VM has its own.
const HTT: u32 = 1 << 28;
const CMP_LEGACY: u32 = 1 << 1;

/// Calls `each` with leaf, subleaf and register wherever bits are features.
pub(crate) fn each_feature(mut each: impl FnMut(u32, u32, Register)) {
    for (leaf, subleaf, registers) in FEATURES {
        registers.iter().for_each(|name| each(leaf, subleaf, *name));
    }
}

/// The bits that are features in a register of [`FEATURES`].
pub(crate) fn feature_bits(leaf: u32, subleaf: u32, name: Register) -> u32 {
    match (leaf, subleaf, name) {
        (0x1, 0, Edx) => !HTT,
        (0x8000_0001, 0, Ecx) => !CMP_LEGACY,
        _ => u32::MAX,
    }
}

/// A register of an entry; 0 if the CPU does not have the entry.
#[must_use]
pub fn register(entries: &[CpuidEntry], leaf: u32, subleaf: u32, register: Register) -> u32 {
    let entry = entries.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
    entry.map_or(0, |entry| match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    })
}

/// A register of an entry, to be changed; None if the CPU does not have the entry.
pub(crate) fn register_mut(
    entries: &mut [CpuidEntry],
    leaf: u32,
    subleaf: u32,
    register: Register,
) -> Option<&mut u32> {
    let entry = entries.iter_mut().find(|entry| (entry.function, entry.index) == (leaf, subleaf))?;
    Some(match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    })
}

/// Of a CPUID only what [`check`] looks at: the same is the outcome with it, on either side. `xcr0`
/// has the state components that the host offers.
#[must_use]
pub fn compared(entries: &[CpuidEntry], xcr0: u64) -> Vec<CpuidEntry> {
    let mut compared: Vec<CpuidEntry> = Vec::new();
    let mut keep = |leaf, subleaf, name, mask| {
        let value = register(entries, leaf, subleaf, name) & mask;
        if value == 0 {
            return;
        }
        if !compared.iter().any(|entry| (entry.function, entry.index) == (leaf, subleaf)) {
            compared.push(CpuidEntry { function: leaf, index: subleaf, ..CpuidEntry::default() });
        }
        if let Some(kept) = register_mut(&mut compared, leaf, subleaf, name) {
            *kept |= value;
        }
    };
    for (leaf, subleaf, registers) in FEATURES {
        registers.iter().for_each(|name| keep(leaf, subleaf, *name, feature_bits(leaf, subleaf, *name)));
    }
    for component in components(xcr0) {
        [Eax, Ebx].iter().for_each(|name| keep(0xd, component, *name, u32::MAX));
    }
    keep(0x8000_0008, 0, Eax, 0xff);
    compared
}

/// The components of the XSAVE area whose place counts: 0 and 1 are where they always were.
pub(crate) fn components(xcr0: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |bit| xcr0 >> bit & 1 != 0)
}

/// Family, model and stepping from EAX of leaf 1, as Linux computes them.
#[must_use]
pub fn signature(eax: u32) -> (u16, u16, u16) {
    let (base, extended) = (eax >> 8 & 0xf, eax >> 20 & 0xff);
    let family = if base == 0xf { base + extended } else { base };
    let extended = if family >= 6 { eax >> 16 & 0xf } else { 0 };
    let short = |number| u16::try_from(number).unwrap_or(u16::MAX);
    (short(family), short(extended << 4 | eax >> 4 & 0xf), short(eax & 0xf))
}

/// Whether a host that offers `host` has all that a VM with `vm` relies on. `xcr0` has the state
/// components that the VM uses.
///
/// # Errors
/// See [`CpuidError`].
pub fn check(host: &[CpuidEntry], vm: &[CpuidEntry], xcr0: u64) -> Result<(), CpuidError> {
    for (leaf, subleaf, registers) in FEATURES {
        for name in registers {
            let bits = feature_bits(leaf, subleaf, *name);
            let of = |entries| register(entries, leaf, subleaf, *name) & bits;
            let (vm, host) = (of(vm), of(host));
            if vm & !host != 0 {
                return Err(CpuidError::Features { leaf, subleaf, register: *name, vm, host });
            }
        }
    }
    for component in components(xcr0) {
        let of = |entries, name| register(entries, 0xd, component, name);
        let (vm_bytes, vm_offset) = (of(vm, Eax), of(vm, Ebx));
        let (host_bytes, host_offset) = (of(host, Eax), of(host, Ebx));
        if (vm_bytes, vm_offset) != (host_bytes, host_offset) {
            return Err(CpuidError::Xsave { component, vm_bytes, vm_offset, host_bytes, host_offset });
        }
    }
    let address_bits = |entries| register(entries, 0x8000_0008, 0, Eax) & 0xff;
    let (vm, host) = (address_bits(vm), address_bits(host));
    if vm > host { Err(CpuidError::AddressBits { vm, host }) } else { Ok(()) }
}
