use super::*;
use crate::persist::mirror::Mirror;
use patina_snapshot::layout::{from_bytes, to_bytes};

/// Each byte of KVM's struct another one, as far as KVM gives it a meaning.
#[test]
fn nothing_that_kvm_gives_is_lost() {
    let mut regs = kvm_regs { rax: 1, r15: 2, rflags: 3, ..kvm_regs::default() };
    regs.rsi = u64::MAX;
    assert_eq!(Regs::of(&regs).original(), regs);
    let segment = |seed: u8| kvm_segment {
        base: u64::from(seed) << 40,
        limit: 0x1000 + u32::from(seed),
        selector: 8 * u16::from(seed),
        type_: seed,
        present: seed + 1,
        dpl: seed + 2,
        db: seed + 3,
        s: seed + 4,
        l: seed + 5,
        g: seed + 6,
        avl: seed + 7,
        unusable: seed + 8,
        padding: 0,
    };
    let sregs = kvm_sregs {
        cs: segment(1),
        ldt: segment(20),
        gdt: kvm_dtable { base: 0x5000, limit: 31, padding: [0; 3] },
        cr8: 8,
        efer: 0xd01,
        interrupt_bitmap: [1, 2, 3, 4],
        ..kvm_sregs::default()
    };
    assert_eq!(Sregs::of(&sregs).original(), sregs);
    let mut events = kvm_vcpu_events { flags: 0x1f, exception_payload: 9, ..kvm_vcpu_events::default() };
    events.exception.error_code = 7;
    events.nmi.masked = 1;
    events.triple_fault.pending = 1;
    events.exception_has_payload = 1;
    assert_eq!(Events::of(&events).original(), events);
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0].value = 7;
    assert_eq!(Xcrs::of(&xcrs).original(), xcrs);
}

#[test]
fn areas_are_the_bytes_that_kvm_has() {
    let mut kvm = kvm_xsave::default();
    (0..).zip(&mut kvm.region).for_each(|(index, word)| *word = 0x0403_0201 + index);
    let area = xsave_from(&kvm);
    assert_eq!(area.0[..8], [1, 2, 3, 4, 2, 2, 3, 4]);
    assert_eq!(xsave_to(&area).region, kvm.region);
    let mut page = kvm_lapic_state::default();
    page.regs[1023] = -1;
    assert_eq!(lapic_from(&page).0[1023], 255);
    assert_eq!(lapic_to(&lapic_from(&page)).regs[1023], -1);
}

/// A list of registers that would not fit into KVM's calls is refused before there is a vCPU.
#[test]
fn more_registers_than_kvm_takes_are_refused() {
    let msrs = |count| from_bytes::<Vec<Msr>>(&to_bytes(&vec![Msr { index: 16, data: 1 }; count]));
    assert!(msrs(256).is_ok());
    assert_eq!(msrs(257).map_err(|error| error.to_string()), Err("it has 257 MSRs; the limit is 256".into()));
    let cpuid = |count| from_bytes::<Vec<CpuidEntry>>(&to_bytes(&vec![CpuidEntry::default(); count]));
    let most = cpuid(256).expect("as many as KVM has");
    assert!(cpuid_to(&most).is_some_and(|kvm| cpuid_from(&kvm) == most));
    let error = cpuid(257).expect_err("one too many").to_string();
    assert_eq!(error, "it has 257 CPUID entries; the limit is 256");
}
