use super::*;

#[test]
fn all_that_kvm_offers_is_shown_but_vms_in_vms() {
    let entry = |function| kvm_cpuid_entry2 {
        function,
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
        ..kvm_cpuid_entry2::default()
    };
    let supported = CpuId::from_entries(&[1, 7, 0x8000_0001, 0x8000_000a].map(entry)).expect("entries");
    let cpuid = for_vcpu(&supported, 3, 4);
    let leaf = |leaf| *find(&cpuid, leaf, 0).expect("it is there");
    assert_eq!((leaf(1).ecx, leaf(1).ebx), (!(1 << 5), 3 << 24 | 4 << 16 | 0xffff));
    assert_eq!(leaf(0x8000_0001), kvm_cpuid_entry2 { ecx: !(1 << 2), ..entry(0x8000_0001) });
    assert_eq!(leaf(7), entry(7));
    assert_eq!(leaf(0x8000_000a).edx, 0);
}

/// What a host with 64 cores of two threads each, AMD's or Intel's, shows of one of them.
fn host(vendor: &[u8; 4]) -> CpuId {
    let entry = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    let entries = [
        entry(0, [0x10, u32::from_le_bytes(*vendor), 0, 0]),
        entry(1, [0, 0x2780_0800, 0, 0]),
        entry(0x8000_0001, [0, 0, 0x40_0000, 0]),
        entry(0x8000_0008, [0x3030, 0, 0x2_707f, 0]),
        entry(0x8000_001d, [0x4121 | 15 << 14, 0, 0, 0]),
        entry(0x8000_001e, [0x27, 0x113, 0x301, 0]),
        entry(0x8000_0026, [1, 2, 0x100, 0x27]),
    ];
    CpuId::from_entries(&entries).expect("entries")
}

#[test]
fn an_amd_guest_has_as_many_cores_as_vcpus_each_with_one_thread() {
    for (vcpus, id_bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (16, 4)] {
        for index in 0..vcpus {
            let cpuid = for_vcpu(&host(b"Auth"), index, vcpus);
            let leaf = |leaf| *find(&cpuid, leaf, 0).expect("it is there");
            let (count, id) = (u32::from(vcpus), u32::from(index));
            assert_eq!(leaf(1).ebx >> 16, id << 8 | count, "{vcpus}");
            // Cores less one, bits of an APIC id; the width of the time-stamp counter stays.
            assert_eq!(leaf(0x8000_0008).ecx, 0x2_0000 | id_bits << 12 | (count - 1), "{vcpus}");
            assert_eq!(leaf(0x8000_0008).eax, 0x3030);
            assert_eq!(leaf(0x8000_001d).eax >> 14 & 0xfff, 0, "no cache is shared");
            assert_eq!(leaf(0x8000_001d).eax & 0x3fff, 0x121);
            let of_1e = leaf(0x8000_001e);
            assert_eq!([of_1e.eax, of_1e.ebx, of_1e.ecx, of_1e.edx], [id, id, 0, 0]);
            assert_eq!(leaf(0x8000_0026), kvm_cpuid_entry2 { function: 0x8000_0026, ..Default::default() });
            // HTT, and that it means cores.
            assert_eq!(
                (leaf(1).edx >> 28 & 1, leaf(0x8000_0001).ecx >> 1 & 1),
                match vcpus {
                    1 => (0, 0),
                    _ => (1, 1),
                }
            );
        }
    }
    let intel = for_vcpu(&host(b"Genu"), 1, 2);
    assert_eq!(find(&intel, 0x8000_0008, 0), find(&host(b"Genu"), 0x8000_0008, 0), "AMD's alone");
}

#[test]
fn an_intel_guest_has_as_many_cores_as_vcpus_each_with_one_thread() {
    let level = |index| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        eax: 7,
        ebx: 128,
        ecx: 9,
        edx: 77,
        ..Default::default()
    };
    let caches = kvm_cpuid_entry2 { function: 4, eax: 63 << 26 | 1 << 14 | 0x121, ..Default::default() };
    let host = CpuId::from_entries(&[caches, level(0), level(1), level(2)]).expect("entries");
    for (vcpus, id_bits, ids) in [(1, 0, 0), (2, 1, 1), (4, 2, 3)] {
        let index = vcpus - 1;
        let cpuid = for_vcpu(&host, index, vcpus);
        let level = |level| {
            let entry = find(&cpuid, 0xb, level).expect("it is there");
            [entry.eax, entry.ebx, entry.ecx, entry.edx]
        };
        let (count, id) = (u32::from(vcpus), u32::from(index));
        assert_eq!([level(0), level(1)], [[0, 1, 0x100, id], [id_bits, count, 0x201, id]]);
        assert_eq!(level(2), [0, 0, 2, id]);
        assert_eq!(find(&cpuid, 4, 0).expect("it is there").eax, ids << 26 | 0x121);
    }
}

#[test]
fn half_of_amx_is_none() {
    let entry =
        |function, index, eax, edx| kvm_cpuid_entry2 { function, index, eax, edx, ..Default::default() };
    let host = |tiles: u32| {
        let entries = [
            entry(0xd, 0, 0xe7 | tiles << 17, 0),
            entry(0xd, 17, 64, 0),
            entry(7, 0, 1, 1 << 22 | 1 << 24 | 1 << 25 | 1 << 4),
            entry(7, 1, 1 << 21 | 1 << 4, 1 << 8 | 1),
            entry(0x1d, 1, 8192, 0),
        ];
        CpuId::from_entries(&entries).expect("entries")
    };
    let all = host(0b11);
    assert_eq!(without_half_amx(all.clone()).as_slice(), all.as_slice());
    for tiles in [0b00, 0b01, 0b10] {
        let left = without_half_amx(host(tiles));
        let found: Vec<_> = left.as_slice().iter().map(|entry| (entry.eax, entry.edx)).collect();
        assert_eq!(found, [(0xe7, 0), (0, 0), (1, 1 << 4), (1 << 4, 1), (0, 0)]);
    }
}
