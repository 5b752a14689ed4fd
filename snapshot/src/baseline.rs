//! The CPU features that several hosts have in common: a VM that is offered no more can go on on
//! each of them, though their processors differ.
//!
//! | fact | the baseline has |
//! | --- | --- |
//! | CPUID: features, and XCR0 | what all hosts offer |
//! | CPUID: width of physical addresses | the least |
//! | place of PKRU in the XSAVE area | neither PKRU nor protection keys, if the hosts have it in different places |
//! | place of any other state in the XSAVE area | the place; the hosts must agree |
//! | kind of KVM, CPU vendor and family, page size | the hosts must agree |
//! | CPU model and stepping, XCR0 on software KVM | the hosts must agree: there a guest reads them from the CPU |
//! | TSC | the frequency of the host on which the VM boots; the others must have it, or scale it |
//!
//! [`of`] makes a baseline. [`mask`] applies it to what a host offers.

use crate::cpuid::{self, CpuidEntry, Register, compared, feature_bits, register, register_mut};
use crate::facts::{self, HostFacts, is_another_speed};
use patina_control::config::KvmKind;

/// A host and what it offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The host's name, for errors.
    pub host: &'a str,
    /// What a VM that is made on it would need of a host.
    pub facts: &'a HostFacts,
}

/// Two hosts whose offers have no baseline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hosts {one} and {other} have no CPU baseline: {why}; leave one of them out")]
pub struct BaselineError {
    /// The host on which the VM is to boot.
    pub one: String,
    /// The other host.
    pub other: String,
    /// In what they differ, with both sides.
    pub why: String,
}

/// PKRU's bit in XCR0. Unlike that of other state, its place depends on what else a CPU has.
const PKRU: u32 = 9;
/// Leaf 7, ECX: protection keys for user pages, and that the kernel has enabled them.
const PROTECTION_KEYS: u32 = 1 << 3 | 1 << 4;
/// Leaf 7, ECX: linear addresses of 57 bits.
const LA57: u32 = 1 << 16;
/// Leaves that describe one feature, each with the register and bit that say whether the CPU has
/// it: SGX, processor trace, key locker, AMX (two leaves), AVX10.
const DESCRIPTIONS: [(u32, (u32, u32, Register), u32); 6] = [
    (0x12, (7, 0, Register::Ebx), 2),
    (0x14, (7, 0, Register::Ebx), 25),
    (0x19, (7, 0, Register::Ecx), 23),
    (0x1d, (7, 0, Register::Edx), 24),
    (0x1e, (7, 0, Register::Edx), 24),
    (0x24, (7, 1, Register::Edx), 19),
];

/// What a VM needs that boots on `first` and is offered only what `others` offer, too. Its CPUID
/// has only what is compared.
///
/// # Errors
/// What the first host and one of the others must have in common differs.
pub fn of(first: Offer<'_>, others: &[Offer<'_>]) -> Result<HostFacts, BaselineError> {
    let mut baseline = HostFacts {
        cpuid: compared(&first.facts.cpuid, first.facts.xcr0),
        can_scale_tsc: others.iter().all(|other| other.facts.can_scale_tsc) && first.facts.can_scale_tsc,
        ..first.facts.clone()
    };
    for other in others {
        let differ = |why| BaselineError { one: first.host.to_owned(), other: other.host.to_owned(), why };
        if let Some(why) = difference(first.facts, other.facts) {
            return Err(differ(why));
        }
        intersect(&mut baseline, other.facts).map_err(differ)?;
        // The rule by which a host judges a VM when it arrives has the last word.
        other.facts.check(&baseline).map_err(|error| differ(error.to_string()))?;
    }
    // Others may have taken away what was there when an earlier one was compared.
    baseline.cpuid = compared(&baseline.cpuid, baseline.xcr0);
    Ok(baseline)
}

/// What no baseline can make good, with both sides.
fn difference(one: &HostFacts, other: &HostFacts) -> Option<String> {
    let sides = |what: &str, sides: [String; 2]| Some(format!("{what} {} and {}", sides[0], sides[1]));
    let both = |of: fn(&HostFacts) -> String| [of(one), of(other)];
    if one.kvm_kind != other.kvm_kind {
        return sides("they have", both(|facts| facts::name(facts.kvm_kind).to_owned()));
    }
    let sees_cpu = one.kvm_kind == KvmKind::Software;
    let family = |facts: &HostFacts| (facts.vendor, facts.family);
    let cpu = |facts: &HostFacts| (facts.model, facts.stepping);
    if family(one) != family(other) || sees_cpu && cpu(one) != cpu(other) {
        return sides("their CPUs are", both(HostFacts::cpu));
    }
    if sees_cpu && one.xcr0 != other.xcr0 {
        return sides("they offer the CPU state (XCR0)", both(|facts| format!("{:#x}", facts.xcr0)));
    }
    if one.page_bytes != other.page_bytes {
        return sides("their pages have, in bytes,", both(|facts| facts.page_bytes.to_string()));
    }
    if is_another_speed(one.tsc_khz, other.tsc_khz) && !other.can_scale_tsc {
        let [one, other] = both(|facts| facts.tsc_khz.to_string());
        return Some(format!("their TSCs have {one} and {other} kHz, and the second cannot scale its own"));
    }
    None
}

/// Takes away what a host does not offer.
fn intersect(baseline: &mut HostFacts, host: &HostFacts) -> Result<(), String> {
    baseline.xcr0 &= host.xcr0;
    for component in cpuid::components(baseline.xcr0) {
        let place = |entries: &[CpuidEntry]| {
            [Register::Eax, Register::Ebx].map(|name| register(entries, 0xd, component, name))
        };
        let (one, other) = (place(&baseline.cpuid), place(&host.cpuid));
        if one == other {
            continue;
        }
        if component != PKRU {
            return Err(format!(
                "they keep CPU state {component} in {} bytes at offset {} of the XSAVE area and in {} bytes at {}",
                one[0], one[1], other[0], other[1]
            ));
        }
        baseline.xcr0 &= !(1 << PKRU);
        if let Some(ecx) = register_mut(&mut baseline.cpuid, 7, 0, Register::Ecx) {
            *ecx &= !PROTECTION_KEYS;
        }
    }
    let xcr0 = baseline.xcr0;
    cpuid::each_feature(|leaf, subleaf, name| {
        if let Some(value) = register_mut(&mut baseline.cpuid, leaf, subleaf, name) {
            *value &= register(&host.cpuid, leaf, subleaf, name);
        }
    });
    set_xcr0(&mut baseline.cpuid, xcr0);
    if let Some(eax) = register_mut(&mut baseline.cpuid, 0x8000_0008, 0, Register::Eax) {
        *eax = narrower(*eax, register(&host.cpuid, 0x8000_0008, 0, Register::Eax));
    }
    Ok(())
}

/// Of what a host offers, leaves only what the baseline has, too. What is only described stays,
/// such as topology and caches; but not the description of a feature that is gone.
pub fn mask(offered: &mut [CpuidEntry], baseline: &HostFacts) {
    let of = |leaf, subleaf, name| register(&baseline.cpuid, leaf, subleaf, name);
    cpuid::each_feature(|leaf, subleaf, name| {
        if let Some(value) = register_mut(offered, leaf, subleaf, name) {
            *value &= of(leaf, subleaf, name) | !feature_bits(leaf, subleaf, name);
        }
    });
    for (described, (leaf, subleaf, name), bit) in DESCRIPTIONS {
        if register(offered, leaf, subleaf, name) >> bit & 1 == 0 {
            offered.iter_mut().filter(|entry| entry.function == described).for_each(clear);
        }
    }
    let word = |leaf, subleaf, name| u64::from(register(offered, leaf, subleaf, name));
    let xcr0 = baseline.xcr0 & (word(0xd, 0, Register::Edx) << 32 | word(0xd, 0, Register::Eax));
    let supervisor = word(0xd, 1, Register::Edx) << 32 | word(0xd, 1, Register::Ecx);
    set_xcr0(offered, xcr0);
    let is_gone = |entry: &&mut CpuidEntry| {
        entry.function == 0xd && entry.index > 1 && (xcr0 | supervisor) >> entry.index.min(63) & 1 == 0
    };
    offered.iter_mut().filter(is_gone).for_each(clear);
    set_area(offered, xcr0);
    let has_57_bits = register(offered, 7, 0, Register::Ecx) & LA57 != 0;
    if let Some(eax) = register_mut(offered, 0x8000_0008, 0, Register::Eax) {
        *eax = narrower(*eax, of(0x8000_0008, 0, Register::Eax));
        let linear = *eax >> 8 & 0xff;
        if !has_57_bits && linear > 48 {
            *eax = *eax & !0xff00 | 48 << 8;
        }
    }
}

/// The largest XSAVE area, as leaf 0xd has it in ECX. KVM computes EBX, the area of what a guest
/// has enabled.
fn set_area(offered: &mut [CpuidEntry], xcr0: u64) {
    // x87, SSE and the header of the area.
    const LEAST: u32 = 576;
    let end = |component| {
        let of = |name| register(offered, 0xd, component, name);
        of(Register::Eax).saturating_add(of(Register::Ebx))
    };
    let bytes = cpuid::components(xcr0).map(end).fold(LEAST, u32::max);
    if let Some(ecx) = register_mut(offered, 0xd, 0, Register::Ecx) {
        *ecx = (*ecx).min(bytes);
    }
}

/// The state components that leaf 0xd lists.
fn set_xcr0(entries: &mut [CpuidEntry], xcr0: u64) {
    let low = u32::try_from(xcr0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let high = u32::try_from(xcr0 >> 32).unwrap_or(u32::MAX);
    for (name, bits) in [(Register::Eax, low), (Register::Edx, high)] {
        if let Some(value) = register_mut(entries, 0xd, 0, name) {
            *value &= bits;
        }
    }
}

/// The first value, with the width of physical addresses of the one that has fewer bits.
fn narrower(value: u32, other: u32) -> u32 {
    value & !0xff | (value & 0xff).min(other & 0xff)
}

/// The CPU does not have the leaf.
fn clear(entry: &mut CpuidEntry) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

#[cfg(test)]
#[path = "baseline_test.rs"]
mod tests;
