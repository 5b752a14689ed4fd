//! Gets and sets KVM state with calls for which kvm-ioctls has no functions on x86.

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr,
    kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_reinject_control, kvm_sregs, kvm_sregs2,
};
use kvm_ioctls::{Error, VcpuFd, VmFd};
use patina_jail::ioctl::{NONE, READ, WRITE, request};
use std::os::fd::AsRawFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

const KVM: u8 = KVMIO as u8;
const SET_DEVICE_ATTR: u64 = request(WRITE, KVM, 0xe1, size_of::<kvm_device_attr>());
const GET_DEVICE_ATTR: u64 = request(WRITE, KVM, 0xe2, size_of::<kvm_device_attr>());
const GET_SREGS2: u64 = request(READ, KVM, 0xcc, size_of::<kvm_sregs2>());
const SET_SREGS2: u64 = request(WRITE, KVM, 0xcd, size_of::<kvm_sregs2>());
const REINJECT_CONTROL: u64 = request(NONE, KVM, 0x71, 0);

const _: () = {
    assert!(size_of::<kvm_device_attr>() == 24);
    assert!(SET_DEVICE_ATTR == 0x4018_aee1 && GET_DEVICE_ATTR == 0x4018_aee2);
    assert!(size_of::<kvm_sregs2>() == 320);
    assert!(GET_SREGS2 == 0x8140_aecc && SET_SREGS2 == 0x4140_aecd);
    // Its number does not hold the size of its struct.
    assert!(REINJECT_CONTROL == 0xae71 && size_of::<kvm_reinject_control>() == 32);
};

fn done(result: libc::c_int) -> Result<(), Error> {
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

fn tsc_offset_at(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(value) as u64,
        flags: 0,
    }
}

/// The offset of this vCPU's TSC to the host's TSC, modulo 2^64. KVM reports it since Linux 5.16.
///
/// # Errors
/// KVM does not report it.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut offset = 0;
    let attribute = tsc_offset_at(&mut offset);
    // SAFETY: KVM reads the attribute and writes 8 bytes where it points, which is `offset`; both
    // are live.
    done(unsafe { ioctl_with_ref(vcpu, GET_DEVICE_ATTR, &attribute) })?;
    Ok(offset)
}

/// Sets the offset that [`tsc_offset`] returns.
///
/// # Errors
/// KVM refuses the offset.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), Error> {
    let attribute = tsc_offset_at(&mut offset);
    // SAFETY: KVM reads the attribute and the 8 bytes where it points, which is `offset`; both are
    // live.
    done(unsafe { ioctl_with_ref(vcpu, SET_DEVICE_ATTR, &attribute) })
}

/// The page directory pointers of a CPU in 32-bit PAE paging mode. None in any other mode, and
/// before Linux 5.14, where KVM reads them from memory again at the restore.
#[must_use]
pub fn pdptrs(vcpu: &VcpuFd) -> Option<[u64; 4]> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes one `kvm_sregs2`, which is live.
    done(unsafe { ioctl_with_mut_ref(vcpu, GET_SREGS2, &mut sregs) }).ok()?;
    (sregs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0).then_some(sregs.pdptrs)
}

/// Sets the special registers with [`pdptrs`].
///
/// # Errors
/// KVM refuses: the registers are not of a CPU in 32-bit PAE paging mode.
pub fn set_sregs_with_pdptrs(vcpu: &VcpuFd, sregs: &kvm_sregs, pdptrs: [u64; 4]) -> Result<(), Error> {
    let all = with_pdptrs(sregs, pdptrs);
    // SAFETY: KVM reads one `kvm_sregs2`, which is live.
    done(unsafe { ioctl_with_ref(vcpu, SET_SREGS2, &all) })
}

fn with_pdptrs(sregs: &kvm_sregs, pdptrs: [u64; 4]) -> kvm_sregs2 {
    let kvm_sregs {
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, ..
    } = *sregs;
    let flags = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    }
}

/// Size of an interrupt controller's registers in KVM's struct, bytes.
pub const IRQCHIP_BYTES: usize = 512;

const _: () = assert!(size_of::<kvm_irqchip__bindgen_ty_1>() == IRQCHIP_BYTES);

/// The registers of an interrupt controller that KVM filled in.
#[must_use]
pub fn irqchip_bytes(chip: &kvm_irqchip) -> [u8; IRQCHIP_BYTES] {
    // SAFETY: the member covers the whole union, and all bytes of it were initialized: with zeros,
    // or by KVM.
    let registers = unsafe { chip.chip.dummy };
    registers.map(|byte| byte as u8)
}

/// The struct from which KVM takes the registers of an interrupt controller.
#[must_use]
pub fn irqchip(chip_id: u32, registers: [u8; IRQCHIP_BYTES]) -> kvm_irqchip {
    let dummy = registers.map(|byte| byte as std::ffi::c_char);
    kvm_irqchip { chip_id, pad: 0, chip: kvm_irqchip__bindgen_ty_1 { dummy } }
}

/// Makes the PIT drop ticks that the guest missed, instead of sending them later. To send them
/// later, KVM must see the acknowledgement of each PIT interrupt, which disables AMD's AVIC.
///
/// # Errors
/// KVM refuses.
pub fn drop_late_pit_ticks(vm: &VmFd) -> Result<(), Error> {
    let control = kvm_reinject_control { pit_reinject: 0, ..kvm_reinject_control::default() };
    // SAFETY: KVM reads one `kvm_reinject_control`, which is live.
    done(unsafe { ioctl_with_ref(&vm.as_raw_fd(), REINJECT_CONTROL, &control) })
}
