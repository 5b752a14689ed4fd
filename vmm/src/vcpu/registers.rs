//! The parts of a vCPU's state, with their layouts.

use crate::persist::mirror::mirror;
use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1, kvm_vcpu_events__bindgen_ty_2,
    kvm_vcpu_events__bindgen_ty_3, kvm_vcpu_events__bindgen_ty_4, kvm_vcpu_events__bindgen_ty_5, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use patina_snapshot::cpuid::CpuidEntry;
use patina_snapshot::layout::{Blob, Item};

mirror! {
    /// The general registers.
    Regs of kvm_regs {
        rax: u64, rbx: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64, rsp: u64, rbp: u64,
        r8: u64, r9: u64, r10: u64, r11: u64, r12: u64, r13: u64, r14: u64, r15: u64,
        rip: u64, rflags: u64,
    }
}

mirror! {
    /// A segment register.
    Segment of kvm_segment {
        base: u64, limit: u32, selector: u16, type_: u8, present: u8, dpl: u8, db: u8, s: u8, l: u8, g: u8, avl: u8,
        unusable: u8,
    }
}

mirror! {
    /// Where a descriptor table is.
    Table of kvm_dtable { base: u64, limit: u16 }
}

mirror! {
    /// The special registers.
    Sregs of kvm_sregs {
        cs: Segment, ds: Segment, es: Segment, fs: Segment, gs: Segment, ss: Segment, tr: Segment, ldt: Segment,
        gdt: Table, idt: Table,
        cr0: u64, cr2: u64, cr3: u64, cr4: u64, cr8: u64, efer: u64, apic_base: u64, interrupt_bitmap: [u64; 4],
    }
}

mirror! {
    /// The debug registers.
    DebugRegs of kvm_debugregs { db: [u64; 4], dr6: u64, dr7: u64, flags: u64 }
}

mirror! {
    /// An extended control register.
    #[derive(Copy)]
    Xcr of kvm_xcr { xcr: u32, value: u64 }
}

mirror! {
    /// The extended control registers; the first `nr_xcrs` count.
    Xcrs of kvm_xcrs { nr_xcrs: u32, flags: u32, xcrs: [Xcr; 16] }
}

mirror! {
    /// A model-specific register.
    Msr of kvm_msr_entry { index: u32, data: u64 }
}

impl Item for Msr {
    const WHAT: &'static str = "MSRs";
    const MOST: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;
}

mirror! {
    /// An exception that is on its way.
    Exception of kvm_vcpu_events__bindgen_ty_1 {
        injected: u8, nr: u8, has_error_code: u8, pending: u8, error_code: u32,
    }
}

mirror! {
    /// An interrupt that is on its way.
    Interrupt of kvm_vcpu_events__bindgen_ty_2 { injected: u8, nr: u8, soft: u8, shadow: u8 }
}

mirror! {
    /// A non-maskable interrupt that is on its way.
    Nmi of kvm_vcpu_events__bindgen_ty_3 { injected: u8, pending: u8, masked: u8 }
}

mirror! {
    /// System management mode.
    Smi of kvm_vcpu_events__bindgen_ty_4 { smm: u8, pending: u8, smm_inside_nmi: u8, latched_init: u8 }
}

mirror! {
    /// A triple fault that is on its way.
    TripleFault of kvm_vcpu_events__bindgen_ty_5 { pending: u8 }
}

mirror! {
    /// All that is on its way to a vCPU.
    Events of kvm_vcpu_events {
        exception: Exception, interrupt: Interrupt, nmi: Nmi, sipi_vector: u32, flags: u32, smi: Smi,
        triple_fault: TripleFault, exception_has_payload: u8, exception_payload: u64,
    }
}

/// The XSAVE area, as KVM has it.
pub(crate) type Xsave = Blob<4096>;
/// The page of the local APIC's registers.
pub(crate) type Lapic = Blob<1024>;

pub(crate) fn xsave_from(kvm: &kvm_xsave) -> Xsave {
    let mut bytes = [0; 4096];
    for (to, word) in bytes.chunks_exact_mut(4).zip(&kvm.region) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Blob(bytes)
}

pub(crate) fn xsave_to(bytes: &Xsave) -> kvm_xsave {
    let mut kvm = kvm_xsave::default();
    let (words, _) = bytes.0.as_chunks();
    for (to, word) in kvm.region.iter_mut().zip(words) {
        *to = u32::from_le_bytes(*word);
    }
    kvm
}

pub(crate) fn lapic_from(kvm: &kvm_lapic_state) -> Lapic {
    Blob(kvm.regs.map(|byte| byte as u8))
}

pub(crate) fn lapic_to(bytes: &Lapic) -> kvm_lapic_state {
    kvm_lapic_state { regs: bytes.0.map(|byte| byte as std::ffi::c_char) }
}

/// The entries that KVM gave.
#[must_use]
pub fn cpuid_from(kvm: &CpuId) -> Vec<CpuidEntry> {
    let entry = |entry: &kvm_cpuid_entry2| {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. } = *entry;
        CpuidEntry { function, index, flags, eax, ebx, ecx, edx }
    };
    kvm.as_slice().iter().map(entry).collect()
}

/// The entries that KVM takes. `None`: there are too many.
pub(crate) fn cpuid_to(entries: &[CpuidEntry]) -> Option<CpuId> {
    let entry = |entry: &CpuidEntry| {
        let CpuidEntry { function, index, flags, eax, ebx, ecx, edx } = *entry;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    };
    CpuId::from_entries(&entries.iter().map(entry).collect::<Vec<_>>()).ok()
}

#[cfg(test)]
#[path = "registers_test.rs"]
mod tests;
