//! Saves and restores all of a vCPU's state, in the orders that KVM requires.
//!
//! The order of a save:
//! - The multiprocessing state comes first: KVM then handles a pending INIT or SIPI, which changes
//!   the registers.
//! - The events come last: earlier calls may turn a pending exception into an injected one.
//!
//! The order of a restore:
//! 1. CPUID, because it decides which values KVM accepts in everything else.
//! 2. The multiprocessing state, then the general registers.
//! 3. The special registers, before the local APIC: they hold its base address and whether it is
//!    enabled.
//! 4. The extended state (XSAVE), XCR0 and the debug registers.
//! 5. The local APIC, before the MSRs: the TSC deadline starts the APIC's timer, in the mode that
//!    the APIC is in.
//! 6. The TSC, before the MSRs: the deadline is compared with it.
//! 7. The MSRs, with the TSC deadline as the last of them ([`msr_indices`] sorts them so).
//! 8. The events, last: earlier calls drop pending events.
//!
//! All of this comes before the VM's interrupt controllers (`machine/persist.rs`), which send
//! pending interrupts to the APICs.

use super::registers::{
    DebugRegs, Events, Lapic, Msr, Regs, Sregs, Xcrs, Xsave, cpuid_from, cpuid_to, lapic_from, lapic_to,
    xsave_from, xsave_to,
};
use super::tsc::{TSC, TscStart, TscState};
use crate::note::note;
use crate::persist::Persist;
use crate::persist::mirror::Mirror;
use crate::sys::kvm_state;
use kvm_bindings::{Msrs, kvm_mp_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use patina_snapshot::cpuid::CpuidEntry;

/// A vCPU between two instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuState {
    pub(crate) cpuid: Vec<CpuidEntry>,
    pub(crate) mp_state: u32,
    pub(crate) regs: Regs,
    pub(crate) sregs: Sregs,
    /// Of a kernel of 32 bits.
    pub(crate) pdptrs: Option<[u64; 4]>,
    pub(crate) tsc: Option<TscState>,
    pub(crate) xsave: Xsave,
    pub(crate) xcrs: Xcrs,
    pub(crate) debug_regs: DebugRegs,
    pub(crate) lapic: Lapic,
    pub(crate) msrs: Vec<Msr>,
    pub(crate) events: Events,
}

patina_snapshot::layout!(VcpuState {
    cpuid: Vec<CpuidEntry>,
    mp_state: u32,
    regs: Regs,
    sregs: Sregs,
    pdptrs: Option<[u64; 4]>,
    tsc: Option<TscState>,
    xsave: Xsave,
    xcrs: Xcrs,
    debug_regs: DebugRegs,
    lapic: Lapic,
    msrs: Vec<Msr>,
    events: Events,
});

/// Why a vCPU's state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// One of KVM's calls failed.
    #[error("{operation} vCPU {vcpu}: {call}")]
    Kvm {
        /// `save` or `restore`.
        operation: &'static str,
        /// The vCPU's number.
        vcpu: u8,
        /// The KVM call that failed.
        call: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM saved or restored fewer MSRs than requested.
    #[error("{operation} vCPU {vcpu}: KVM handled {moved} of {asked} MSRs and stopped at MSR {index:#x}")]
    Msrs {
        /// `save` or `restore`.
        operation: &'static str,
        /// The vCPU's number.
        vcpu: u8,
        /// How many MSRs KVM took or gave.
        moved: usize,
        /// How many MSRs it was to take or give.
        asked: usize,
        /// The index of the MSR at which KVM stopped.
        index: u32,
    },
}

/// Most CPUID entries that KVM gives.
const CPUID_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// MSRs that KVM has and does not list: which memory is cached how. Variable ranges, fixed ranges,
/// the default.
const UNLISTED: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// The MSRs of a vCPU's state, in the order of a restore: those of KVM's list, and some more, that
/// a vCPU of this host has. All `vcpus` are alike, so only the first one is read.
///
/// # Errors
/// KVM refuses for another reason than that an MSR does not exist.
pub fn msr_indices(listed: &[u32], vcpus: &[VcpuFd]) -> Result<Vec<u32>, kvm_ioctls::Error> {
    const TSC_DEADLINE: u32 = 0x6e0;
    let Some(vcpu) = vcpus.first() else { return Ok(Vec::new()) };
    let mut indices = Vec::new();
    let unlisted = UNLISTED.into_iter().flatten().filter(|index| !listed.contains(index));
    for index in listed.iter().copied().chain(unlisted) {
        let mut one = msrs(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }])?;
        if vcpu.get_msrs(&mut one)? == 1 {
            indices.push(index);
        }
    }
    // The deadline is compared with the TSC, so it comes last, after the TSC.
    indices.sort_by_key(|index| *index == TSC_DEADLINE);
    Ok(indices)
}

fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))
}

impl Persist for VcpuState {
    /// A paused vCPU, its number, and [`msr_indices`].
    type Source<'a> = (&'a VcpuFd, u8, &'a [u32]);
    /// A fresh vCPU, its number, and what sets the TSCs of its VM.
    type Target<'a> = (&'a VcpuFd, u8, &'a TscStart);
    /// The MSRs that KVM refused. Their values were 0.
    type Restored = Vec<u32>;
    type SaveError = PersistError;
    type RestoreError = PersistError;

    fn save((vcpu, index, indices): (&VcpuFd, u8, &[u32])) -> Result<Self, PersistError> {
        let kvm = |call| move |source| PersistError::Kvm { operation: "save", vcpu: index, call, source };
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?.mp_state,
            cpuid: cpuid_from(&vcpu.get_cpuid2(CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?),
            regs: Regs::of(&vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?),
            sregs: Sregs::of(&vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?),
            pdptrs: kvm_state::pdptrs(vcpu),
            tsc: TscState::save(vcpu),
            xsave: xsave_from(&vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?),
            xcrs: Xcrs::of(&vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?),
            debug_regs: DebugRegs::of(&vcpu.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?),
            lapic: lapic_from(&vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?),
            msrs: save_msrs(vcpu, index, indices)?,
            events: Events::of(&vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?),
        })
    }

    fn restore(&self, (vcpu, index, tsc): (&VcpuFd, u8, &TscStart)) -> Result<Vec<u32>, PersistError> {
        let kvm = |call| move |source| PersistError::Kvm { operation: "restore", vcpu: index, call, source };
        let cpuid = cpuid_to(&self.cpuid).ok_or_else(|| kvm_ioctls::Error::new(libc::E2BIG));
        cpuid.and_then(|cpuid| vcpu.set_cpuid2(&cpuid)).map_err(kvm("KVM_SET_CPUID2"))?;
        vcpu.set_mp_state(kvm_mp_state { mp_state: self.mp_state }).map_err(kvm("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs.original()).map_err(kvm("KVM_SET_REGS"))?;
        let sregs = self.sregs.original();
        match self.pdptrs {
            None => vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?,
            Some(pdptrs) => {
                kvm_state::set_sregs_with_pdptrs(vcpu, &sregs, pdptrs).map_err(kvm("KVM_SET_SREGS2"))?
            }
        }
        crate::sys::xstate::set_area(vcpu, &xsave_to(&self.xsave)).map_err(kvm("KVM_SET_XSAVE"))?;
        vcpu.set_xcrs(&self.xcrs.original()).map_err(kvm("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug_regs.original()).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&lapic_to(&self.lapic)).map_err(kvm("KVM_SET_LAPIC"))?;
        let has_tsc = tsc.set(vcpu, self.tsc).map_err(kvm("KVM_VCPU_TSC_OFFSET"))?;
        let refused = self.restore_msrs(vcpu, index, has_tsc)?;
        vcpu.set_vcpu_events(&self.events.original()).map_err(kvm("KVM_SET_VCPU_EVENTS"))?;
        Ok(refused)
    }
}

impl VcpuState {
    /// Its TSC, if KVM reports the offset.
    #[must_use]
    pub fn tsc(&self) -> Option<TscState> {
        self.tsc
    }

    /// The state components that the vCPU has enabled.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        let count = usize::try_from(self.xcrs.nr_xcrs).unwrap_or(usize::MAX);
        let xcr0 = self.xcrs.xcrs.iter().take(count).find(|register| register.xcr == 0);
        xcr0.map_or(0, |register| register.value)
    }

    /// The MSRs in the state. A clone saves the same ones, and not the host's list: so an MSR that
    /// KVM shows only for some vCPUs is not lost.
    #[must_use]
    pub fn msr_indices(&self) -> Vec<u32> {
        self.msrs.iter().map(|msr| msr.index).collect()
    }

    /// Restores the MSRs, except the TSC if that is set already. KVM stops at an MSR that it
    /// refuses. An MSR whose value was 0 may be refused, because a vCPU without it behaves the
    /// same. Any other must be accepted.
    fn restore_msrs(&self, vcpu: &VcpuFd, index: u8, has_tsc: bool) -> Result<Vec<u32>, PersistError> {
        const OPERATION: &str = "restore";
        let kvm =
            |source| PersistError::Kvm { operation: OPERATION, vcpu: index, call: "KVM_SET_MSRS", source };
        let left_out = |msr: &&Msr| has_tsc && msr.index == TSC || is_unused_hyperv(msr);
        let given: Vec<_> = self.msrs.iter().filter(|msr| !left_out(msr)).map(Msr::original).collect();
        let set = |left: &[kvm_msr_entry]| vcpu.set_msrs(&msrs(left).map_err(kvm)?).map_err(kvm);
        let refused = set_leniently(&given, set, |moved, index_refused| PersistError::Msrs {
            operation: OPERATION,
            vcpu: index,
            moved,
            asked: given.len(),
            index: index_refused,
        })?;
        if index == 0 && !refused.is_empty() {
            note(&format!(
                "restore vCPU 0: KVM refuses these MSRs, whose values were 0; they are left out: {refused:#x?}"
            ));
        }
        Ok(refused)
    }
}

/// Sets all of `given`. `set` accepts some of the first MSRs of its argument and returns how many.
/// Returns the MSRs that `set` refused and whose values are 0.
fn set_leniently<E>(
    given: &[kvm_msr_entry],
    mut set: impl FnMut(&[kvm_msr_entry]) -> Result<usize, E>,
    failed: impl FnOnce(usize, u32) -> E,
) -> Result<Vec<u32>, E> {
    let mut refused = Vec::new();
    let mut left = given;
    loop {
        let moved = if left.is_empty() { 0 } else { set(left)? };
        match left.get(moved..) {
            None | Some([]) => return Ok(refused),
            Some([one, rest @ ..]) if one.data == 0 => {
                refused.push(one.index);
                left = rest;
            }
            Some([one, rest @ ..]) => return Err(failed(given.len() - rest.len() - 1, one.index)),
        }
    }
}

/// Whether this is one of Hyper-V's MSRs that the guest does not use. It is 0 in a new vCPU, and to
/// set it would make KVM allocate what Hyper-V's interrupts need.
fn is_unused_hyperv(msr: &Msr) -> bool {
    (0x4000_0000..=0x4000_0fff).contains(&msr.index) && msr.data == 0
}

fn save_msrs(vcpu: &VcpuFd, index: u8, indices: &[u32]) -> Result<Vec<Msr>, PersistError> {
    const OPERATION: &str = "save";
    let kvm = |source| PersistError::Kvm { operation: OPERATION, vcpu: index, call: "KVM_GET_MSRS", source };
    let wanted: Vec<_> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
    let mut values = msrs(&wanted).map_err(kvm)?;
    let moved = vcpu.get_msrs(&mut values).map_err(kvm)?;
    match indices.get(moved) {
        None => Ok(values.as_slice().iter().map(Msr::of).collect()),
        Some(stopped_at) => Err(PersistError::Msrs {
            operation: OPERATION,
            vcpu: index,
            moved,
            asked: indices.len(),
            index: *stopped_at,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A KVM that takes all MSRs but these.
    fn without(missing: &[u32]) -> impl Fn(&[kvm_msr_entry]) -> Result<usize, (usize, u32)> {
        |left| Ok(left.iter().position(|msr| missing.contains(&msr.index)).unwrap_or(left.len()))
    }

    #[test]
    fn an_msr_that_was_zero_may_be_missing_and_any_other_not() {
        let given: Vec<_> = (1..=6)
            .map(|index| kvm_msr_entry { index, data: u64::from(index % 2), ..kvm_msr_entry::default() })
            .collect();
        let restore =
            |missing: &[u32]| set_leniently(&given, without(missing), |moved, index| (moved, index));
        assert_eq!(restore(&[]), Ok(vec![]));
        assert_eq!(restore(&[2, 6]), Ok(vec![2, 6]));
        assert_eq!(restore(&[2, 4, 5]), Err((4, 5)), "the fifth, after four, is not 0");
        assert_eq!(restore(&[1]), Err((0, 1)));
        assert_eq!(set_leniently(&[], without(&[]), |moved, index| (moved, index)), Ok(vec![]));
    }
}
