#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use proptest::prelude::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
}

const AVX512: u32 = 1 << 16;

/// Of an AMD CPU with AVX-512 and protection keys.
fn large() -> HostFacts {
    let cpuid = vec![
        entry(0, 0, [16, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x00a1_0f11, 0x0001_0800, 0xf6f8_3203, 0x078b_fbff]),
        entry(7, 0, [2, 0x0020_0008 | AVX512, LA57 | PROTECTION_KEYS, 0x10]),
        entry(0xb, 0, [0, 1, 0x100, 0]),
        entry(0xd, 0, [0x2e7, 832, 2440, 0]),
        entry(0xd, 1, [0xf, 832, 0x1800, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0xd, 5, [64, 832, 0, 0]),
        entry(0xd, 6, [512, 896, 0, 0]),
        entry(0xd, 7, [1024, 1408, 0, 0]),
        entry(0xd, 9, [8, 2432, 0, 0]),
        entry(0xd, 11, [16, 0, 1, 0]),
        entry(0x12, 0, [1, 1, 1, 1]),
        entry(0x8000_0001, 0, [0, 0, 0x75c2_37ff, 0x2fd3_fbff]),
        entry(0x8000_0008, 0, [0x3934, 0x0117_6257, 0x7, 0]),
    ];
    let facts = HostFacts::of_cpuid(KvmKind::Svm, cpuid);
    let kernel = "6.18.1-patina".into();
    HostFacts { page_bytes: 4096, tsc_khz: 2_600_000, can_scale_tsc: true, kernel, ..facts }
}

/// Of the same family, without AVX-512: protection keys lie where that has its state there.
fn small() -> HostFacts {
    let mut facts = large();
    facts.cpuid[2] = entry(7, 0, [0, 0x0020_0008, PROTECTION_KEYS, 0x4]);
    facts.cpuid[4] = entry(0xd, 0, [0x207, 832, 840, 0]);
    facts.cpuid[10] = entry(0xd, 9, [8, 832, 0, 0]);
    facts.cpuid[14] = entry(0x8000_0008, 0, [0x3030, 0x0111_0000, 0x3, 0]);
    facts.cpuid.drain(7..10);
    HostFacts { xcr0: 0x207, model: 1, tsc_khz: 3_000_000, ..facts }
}

fn offers(facts: &[HostFacts]) -> Vec<Offer<'_>> {
    facts.iter().zip(["a", "b", "c", "d"]).map(|(facts, host)| Offer { host, facts }).collect()
}

fn of_all(facts: &[HostFacts]) -> Result<HostFacts, BaselineError> {
    let offers = offers(facts);
    of(offers[0], &offers[1..])
}

#[test]
fn a_baseline_has_what_all_hosts_offer() {
    let baseline = of_all(&[large(), small()]).unwrap();
    let of = |leaf, subleaf, name| register(&baseline.cpuid, leaf, subleaf, name);
    assert_eq!(of(7, 0, Register::Ebx), 0x0020_0008, "AVX-512 is gone");
    assert_eq!(of(7, 0, Register::Ecx), 0, "and protection keys, whose state lies elsewhere");
    assert_eq!(of(7, 0, Register::Edx), 0);
    assert_eq!((baseline.xcr0, of(0xd, 0, Register::Eax)), (7, 7));
    assert_eq!(of(0x8000_0008, 0, Register::Eax), 0x30, "the narrower physical addresses");
    assert_eq!(of(0x8000_0008, 0, Register::Ebx), 0x0111_0000);
    assert_eq!((baseline.model, baseline.tsc_khz), (17, 2_600_000), "as where the VM boots");
    assert_eq!(small().check(&baseline), Ok(()));
    assert_eq!(large().check(&baseline), Ok(()));
    assert!(small().check(&large()).is_err(), "a VM without a baseline does not fit");
    // One host is its own baseline.
    let alone = of_all(&[large()]).unwrap();
    assert_eq!(alone.cpuid, compared(&large().cpuid, large().xcr0));
}

#[test]
fn what_cannot_be_made_good_is_an_error_with_both_hosts() {
    let refused = |change: &dyn Fn(&mut HostFacts), why: &str| {
        let mut other = HostFacts { can_scale_tsc: false, ..large() };
        change(&mut other);
        let error = of_all(&[large(), large(), other]).unwrap_err().to_string();
        assert_eq!(error, format!("hosts a and c have no CPU baseline: {why}; leave one of them out"));
    };
    refused(&|host| host.kvm_kind = KvmKind::Vmx, "they have AMD-V and VT-x");
    refused(
        &|host| host.vendor = *b"GenuineIntel",
        "their CPUs are AuthenticAMD family 25 model 17 stepping 1 and GenuineIntel family 25 model 17 stepping 1",
    );
    refused(
        &|host| host.family = 23,
        "their CPUs are AuthenticAMD family 25 model 17 stepping 1 and AuthenticAMD family 23 model 17 stepping 1",
    );
    refused(&|host| host.page_bytes = 16_384, "their pages have, in bytes, 4096 and 16384");
    refused(
        &|host| host.tsc_khz = 3_000_000,
        "their TSCs have 2600000 and 3000000 kHz, and the second cannot scale its own",
    );
    refused(
        &|host| host.cpuid[6].ebx = 1024,
        "they keep CPU state 2 in 256 bytes at offset 576 of the XSAVE area and in 256 bytes at 1024",
    );
}

/// There a guest reads from the CPU which one it is, and which state it has.
#[test]
fn on_software_kvm_the_cpu_and_its_state_must_be_the_same() {
    let software = |facts| HostFacts { kvm_kind: KvmKind::Software, ..facts };
    let error = of_all(&[software(large()), software(small())]).unwrap_err();
    assert!(error.why.starts_with("their CPUs are"), "{error}");
    let less = HostFacts { xcr0: 7, ..software(large()) };
    let error = of_all(&[software(large()), less]).unwrap_err();
    assert_eq!(error.why, "they offer the CPU state (XCR0) 0x2e7 and 0x7");
    let mut less = software(large());
    less.cpuid[2].ebx = 8;
    let baseline = of_all(&[software(large()), less]).unwrap();
    assert_eq!(register(&baseline.cpuid, 7, 0, Register::Ebx), 8);
}

#[test]
fn a_mask_leaves_what_is_only_described_and_no_trace_of_what_is_gone() {
    let baseline = of_all(&[large(), small()]).unwrap();
    let mut offered = large().cpuid;
    mask(&mut offered, &baseline);
    let of = |leaf, subleaf| offered.iter().find(|e| (e.function, e.index) == (leaf, subleaf)).unwrap();
    assert_eq!(*of(7, 0), entry(7, 0, [2, 0x0020_0008, 0, 0]));
    assert_eq!(*of(0xd, 0), entry(0xd, 0, [7, 832, 832, 0]), "the area ends with AVX");
    assert_eq!(*of(0xd, 2), entry(0xd, 2, [256, 576, 0, 0]));
    for component in [5, 6, 7, 9] {
        assert_eq!(*of(0xd, component), entry(0xd, component, [0; 4]));
    }
    assert_eq!(*of(0xd, 11), entry(0xd, 11, [16, 0, 1, 0]), "state of the guest's kernel");
    assert_eq!(*of(0x12, 0), entry(0x12, 0, [0; 4]), "the description of SGX");
    assert_eq!(*of(0xb, 0), large().cpuid[3], "the topology");
    assert_eq!(of(0x8000_0008, 0).eax, 0x3030, "linear addresses of 48 bits without LA57");
    assert_eq!(of(1, 0).eax, large().cpuid[1].eax, "which CPU it is");
    // What is left is the baseline, as a host judges it.
    let vm = HostFacts { xcr0: baseline.xcr0, cpuid: offered, ..large() };
    assert_eq!(compared(&vm.cpuid, vm.xcr0), baseline.cpuid);
    assert_eq!(small().check(&vm), Ok(()));
}

#[test]
fn how_many_cpus_a_vm_has_is_no_feature() {
    let mut vm = large();
    vm.cpuid[1].edx |= 1 << 28;
    vm.cpuid[13].ecx |= 1 << 1;
    let mut one = large();
    one.cpuid[13].ecx &= !(1 << 1);
    assert_eq!(one.check(&vm), Ok(()));
    assert_eq!(compared(&vm.cpuid, vm.xcr0), compared(&one.cpuid, one.xcr0));
    let mut offered = vm.cpuid.clone();
    mask(&mut offered, &of_all(&[one.clone()]).unwrap());
    assert_eq!(register(&offered, 0x8000_0001, 0, Register::Ecx) & 2, 2, "it keeps its own");
}

/// A host with some of the features and state of the large one, some more, and another TSC.
fn host() -> impl Strategy<Value = HostFacts> {
    let words = proptest::collection::vec(any::<u32>(), 8);
    (words, any::<u64>(), 36_u32..=52, 2_000_000_u32..3_000_000).prop_map(|(words, xcr0, bits, tsc_khz)| {
        let mut facts = large();
        facts.xcr0 = xcr0 & 0x2e7 | 3;
        let low = u32::try_from(facts.xcr0).unwrap();
        facts.cpuid[1].ecx = words[0];
        facts.cpuid[1].edx = words[1];
        (facts.cpuid[2].ebx, facts.cpuid[2].ecx, facts.cpuid[2].edx) = (words[2], words[3], words[4]);
        facts.cpuid[4].eax = low;
        // Where protection keys have their state depends on what lies before it.
        facts.cpuid[10].ebx = if low & 0x80 == 0 { 832 } else { 2432 };
        (facts.cpuid[13].ecx, facts.cpuid[13].edx) = (words[5], words[6]);
        facts.cpuid[14].eax = 0x3900 | bits;
        facts.cpuid[14].ebx = words[7];
        facts.tsc_khz = tsc_khz;
        facts
    })
}

proptest! {
    #[test]
    fn a_vm_with_the_baseline_is_taken_by_every_host_of_it(
        hosts in proptest::collection::vec(host(), 1..=4),
    ) {
        let baseline = of_all(&hosts).unwrap();
        // As the vmm of the first host makes it.
        let mut offered = hosts[0].cpuid.clone();
        mask(&mut offered, &baseline);
        let vm = HostFacts { cpuid: offered, xcr0: baseline.xcr0, ..hosts[0].clone() };
        for host in &hosts {
            prop_assert_eq!(host.check(&baseline), Ok(()));
            prop_assert_eq!(host.check(&vm), Ok(()));
        }
        // And it is no less than it must be.
        let all = |name| hosts.iter().fold(u32::MAX, |bits, host| bits & register(&host.cpuid, 7, 0, name));
        prop_assert_eq!(register(&vm.cpuid, 7, 0, Register::Ebx), all(Register::Ebx));
    }
}
