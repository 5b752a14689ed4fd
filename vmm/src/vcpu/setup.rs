//! A vCPU's state before its first instruction.

use super::cpuid;
use crate::boot::{kernel::Entry, layout};
use crate::memory::Memory;
use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// One of KVM's calls failed.
    #[error("make vCPU {vcpu}: {call}")]
    Kvm {
        /// The vCPU's number.
        vcpu: u8,
        /// The KVM call that failed.
        call: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM accepted fewer MSRs than it was given.
    #[error("make vCPU {vcpu}: KVM accepted {taken} of {given} MSRs")]
    Msrs {
        /// The vCPU's number.
        vcpu: u8,
        /// How many MSRs KVM accepted.
        taken: usize,
        /// How many MSRs KVM was given.
        given: usize,
    },
    /// The descriptor table has no room.
    #[error("make vCPU {vcpu}: write its descriptor table")]
    Gdt {
        /// The vCPU's number.
        vcpu: u8,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
}

/// Makes vCPU `index`; number 0 is about to enter the kernel, the others wait to be started by it.
///
/// # Errors
/// KVM refuses a part of the state.
pub fn create(
    vm: &VmFd,
    memory: &Memory,
    supported: &CpuId,
    (index, vcpus): (u8, u8),
    entry: Entry,
) -> Result<VcpuFd, SetupError> {
    let kvm = |call| move |source| SetupError::Kvm { vcpu: index, call, source };
    let vcpu = vm.create_vcpu(u64::from(index)).map_err(kvm("KVM_CREATE_VCPU"))?;
    let cpuid = cpuid::for_vcpu(supported, index, vcpus);
    vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
    set_msrs(&vcpu, index)?;
    set_lapic(&vcpu, index)?;
    if index == 0 {
        let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        let regs = match entry {
            Entry::Pvh(address) => pvh(&mut sregs, address),
            Entry::Linux64(address) => linux64(&mut sregs, address),
        };
        write_gdt(memory, &mut sregs).map_err(|source| SetupError::Gdt { vcpu: index, source })?;
        vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
        vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() };
        vcpu.set_fpu(&fpu).map_err(kvm("KVM_SET_FPU"))?;
    }
    Ok(vcpu)
}

fn set_msrs(vcpu: &VcpuFd, index: u8) -> Result<(), SetupError> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entries = [(MISC_ENABLE, FAST_STRINGS), (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let kvm = |source| SetupError::Kvm { vcpu: index, call: "KVM_SET_MSRS", source };
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm(kvm_ioctls::Error::new(libc::ENOMEM)))?;
    let taken = vcpu.set_msrs(&msrs).map_err(kvm)?;
    if taken != entries.len() {
        return Err(SetupError::Msrs { vcpu: index, taken, given: entries.len() });
    }
    Ok(())
}

/// LINT0 takes the PIC's interrupts, LINT1 the NMI, as firmware leaves them.
fn set_lapic(vcpu: &VcpuFd, index: u8) -> Result<(), SetupError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE: u32 = 7 << 8;
    const EXT_INT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let mut lapic: kvm_lapic_state =
        vcpu.get_lapic().map_err(|source| SetupError::Kvm { vcpu: index, call: "KVM_GET_LAPIC", source })?;
    for (at, mode) in [(LVT_LINT0, EXT_INT), (LVT_LINT1, NMI)] {
        let bytes = [0, 1, 2, 3].map(|byte| lapic.regs[at + byte] as u8);
        let value = u32::from_le_bytes(bytes) & !MODE | mode;
        for (byte, new) in value.to_le_bytes().into_iter().enumerate() {
            lapic.regs[at + byte] = new as std::ffi::c_char;
        }
    }
    vcpu.set_lapic(&lapic).map_err(|source| SetupError::Kvm { vcpu: index, call: "KVM_SET_LAPIC", source })
}

const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

/// A flat segment; `long` for 64-bit code.
fn flat(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    sregs.cs = flat(1, CODE, long);
    let data = kvm_segment { db: 1, ..flat(2, DATA, false) };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..flat(3, TSS_BUSY, false) };
}

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const RFLAGS_RESERVED: u64 = 2;

fn pvh(sregs: &mut kvm_sregs, entry: u32) -> kvm_regs {
    set_segments(sregs, false);
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: u64::from(entry),
        rbx: layout::START_INFO,
        ..kvm_regs::default()
    }
}

fn linux64(sregs: &mut kvm_sregs, entry: u64) -> kvm_regs {
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    set_segments(sregs, true);
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_PG;
    sregs.efer = EFER_LME_LMA;
    kvm_regs { rflags: RFLAGS_RESERVED, rip: entry, rsi: layout::ZERO_PAGE, ..kvm_regs::default() }
}

/// Writes the descriptors of the segments in `sregs` where their selectors point.
fn write_gdt(memory: &Memory, sregs: &mut kvm_sregs) -> Result<(), vm_memory::GuestMemoryError> {
    let table = [0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr)];
    let bytes: Vec<u8> = table.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(layout::GDT))?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = bytes.len() as u16 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    Ok(())
}

/// A segment as the eight bytes of a descriptor table (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    let base = segment.base;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_the_manual_draws_them() {
        assert_eq!(descriptor(&flat(1, CODE, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(1, CODE, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(2, DATA, false)), 0x00cf_9300_0000_ffff);
    }
}
