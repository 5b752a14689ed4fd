#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::cpuid::CpuidEntry;
use crate::layout::{from_bytes, to_bytes};

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
}

/// As of an EPYC of family 25, model 17, stepping 1, with x87, SSE and AVX.
fn host() -> HostFacts {
    let cpuid = vec![
        entry(0, 0, [16, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x00a1_0f11, 0x0001_0800, 0xf6f8_3203, 0x178b_fbff]),
        entry(7, 0, [2, 0x0020_0008, 4, 0x10]),
        entry(0xd, 0, [7, 832, 832, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
    ];
    let facts = HostFacts::of_cpuid(KvmKind::Svm, cpuid);
    HostFacts {
        page_bytes: 4096,
        tsc_khz: 2_600_000,
        can_scale_tsc: true,
        kernel: "6.18.1-patina".into(),
        ..facts
    }
}

#[test]
fn cpuid_says_which_cpu_it_is() {
    let facts = host();
    assert_eq!(facts.cpu(), "AuthenticAMD family 25 model 17 stepping 1");
    assert_eq!(facts.xcr0, 7);
    // Family 6, model 0x9e: the extended model counts there, too.
    assert_eq!(cpuid::signature(0x0009_06ea), (6, 0x9e, 10));
    assert_eq!(cpuid::signature(0x0000_0543), (5, 4, 3));
}

#[test]
fn facts_read_back_and_are_cut_to_what_can_be_shown() {
    assert_eq!(from_bytes(&to_bytes(&host())), Ok(host()));
    let long = HostFacts { kernel: "ä".repeat(100), ..host() };
    let read: HostFacts = from_bytes(&to_bytes(&long)).unwrap();
    assert_eq!(read.kernel, "ä".repeat(32));
    let escape = HostFacts { kernel: "6.1\x1b[2J\n".into(), ..host() };
    let read: HostFacts = from_bytes(&to_bytes(&escape)).unwrap();
    assert_eq!(read.kernel, "6.1[2J");
}

/// Each is what a VM may have otherwise than the host on which it is to run.
#[test]
fn a_host_runs_what_fits_it() {
    let fits = |vm: &HostFacts| assert_eq!(host().check(vm), Ok(()), "{vm:?}");
    fits(&host());
    fits(&HostFacts { kernel: "5.10.0".into(), ..host() });
    fits(&HostFacts { model: 1, stepping: 0, ..host() });
    fits(&HostFacts { xcr0: 3, ..host() });
    fits(&HostFacts { tsc_khz: 3_000_000, ..host() });
    fits(&HostFacts { tsc_khz: 0, ..host() });
    let unscaled = HostFacts { can_scale_tsc: false, ..host() };
    assert_eq!(unscaled.check(&HostFacts { tsc_khz: 2_600_650, ..host() }), Ok(()), "250 ppm");
    // A feature less, and another core's numbers.
    let mut vm = host();
    vm.cpuid[1] = entry(1, 0, [0x00a1_0f11, 0x0301_0800, 0x0000_3203, 0x178b_fbff]);
    vm.cpuid[5] = entry(0x8000_0008, 0, [0x302f, 0, 0x1007, 0]);
    fits(&vm);
    // Where AVX is laid out does not matter to a VM that has not enabled it.
    vm.cpuid[4] = entry(0xd, 2, [256, 1024, 0, 0]);
    vm.xcr0 = 3;
    fits(&vm);
}

#[test]
fn a_host_refuses_what_does_not_fit_it_and_names_both_sides() {
    let refused = |change: &dyn Fn(&mut HostFacts), words: &str| {
        let mut vm = host();
        change(&mut vm);
        let host = HostFacts { can_scale_tsc: false, ..host() };
        assert_eq!(host.check(&vm).unwrap_err().to_string(), words);
    };
    refused(
        &|vm| vm.kvm_kind = KvmKind::Software,
        "the VM ran on KVM without hardware virtualization, and this host has AMD-V; use a host with KVM without \
         hardware virtualization",
    );
    let intel = "the VM ran on a CPU GenuineIntel family 25 model 17 stepping 1, and this host has AuthenticAMD family \
                 25 model 17 stepping 1; use a host with a CPU of the same vendor and family";
    refused(&|vm| vm.vendor = *b"GenuineIntel", intel);
    refused(
        &|vm| vm.family = 23,
        "the VM ran on a CPU AuthenticAMD family 23 model 17 stepping 1, and this host has AuthenticAMD family 25 model \
         17 stepping 1; use a host with a CPU of the same vendor and family",
    );
    refused(
        &|vm| vm.page_bytes = 16_384,
        "the VM's memory has pages of 16384 bytes, and this host's has pages of 4096; use a host with 16384",
    );
    refused(
        &|vm| vm.xcr0 = 0xe7,
        "the VM has enabled the CPU state 0xe7 (XCR0), and this host offers 0x7; use a host with a CPU that has all of it",
    );
    refused(
        &|vm| vm.tsc_khz = 2_600_651,
        "the VM's TSC has 2600651 kHz, this host's has 2600000 kHz, and its CPU cannot scale it; use a host with \
         2600651 kHz",
    );
    refused(
        &|vm| vm.cpuid[2].ebx |= 1 << 16,
        "the VM was offered CPU features that this host does not offer: CPUID 0x7.0 Ebx was 0x00210008, and is \
         0x00200008 here; use a host with a CPU and a kernel that offer them",
    );
    // A leaf that the host does not have at all.
    refused(
        &|vm| vm.cpuid.push(entry(0x8000_0021, 0, [1, 0, 0, 0])),
        "the VM was offered CPU features that this host does not offer: CPUID 0x80000021.0 Eax was 0x00000001, and is \
         0x00000000 here; use a host with a CPU and a kernel that offer them",
    );
    refused(
        &|vm| vm.cpuid[4].ebx = 1024,
        "the VM keeps CPU state 2 in 256 bytes at offset 1024 of the XSAVE area, and this host in 256 bytes at 576; use \
         a host with the same kind of CPU",
    );
    refused(
        &|vm| vm.cpuid[5].eax = 0x3034,
        "the VM has physical addresses of 52 bits, and this host of 48; use a host with at least 52",
    );
}

/// What a host says of its CPUID to its scheduler decides as the whole of it does.
#[test]
fn what_is_compared_of_cpuid_is_enough_to_decide() {
    let compared = |mut facts: HostFacts| {
        facts.cpuid = cpuid::compared(&facts.cpuid, facts.xcr0);
        facts
    };
    let small = compared(host());
    assert_eq!(small.cpuid.len(), 5, "{:?}", small.cpuid);
    assert_eq!(small.cpuid[0], entry(1, 0, [0, 0, 0xf6f8_3203, 0x078b_fbff]));
    assert_eq!(cpuid::compared(&small.cpuid, small.xcr0), small.cpuid);
    let changes: [&dyn Fn(&mut HostFacts); 7] = [
        &|_| {},
        &|vm| vm.cpuid[1].ecx |= 4,
        &|vm| vm.cpuid[1].ebx |= 1 << 31,
        &|vm| vm.cpuid[2].ebx &= 8,
        &|vm| vm.cpuid[4].ebx = 1024,
        &|vm| vm.cpuid[5].eax = 0x3034,
        &|vm| vm.cpuid[5].eax = 0x3430,
    ];
    let mut refused = 0;
    for change in changes {
        let mut vm = host();
        change(&mut vm);
        let whole = host().check(&vm);
        assert_eq!(small.check(&compared(vm)), whole);
        refused += u32::from(whole.is_err());
    }
    assert_eq!(refused, 3);
}

/// CPUID is not intercepted there: a guest has seen this very CPU.
#[test]
fn on_software_kvm_the_cpu_is_the_same() {
    let software = HostFacts { kvm_kind: KvmKind::Software, ..host() };
    assert_eq!(software.check(&software), Ok(()));
    for vm in [HostFacts { model: 1, ..software.clone() }, HostFacts { stepping: 2, ..software.clone() }] {
        let error = software.check(&vm).unwrap_err().to_string();
        assert!(error.ends_with("use a host with the same CPU"), "{error}");
    }
}

#[test]
fn frequencies_that_are_not_known_do_not_differ() {
    assert!(!is_another_speed(0, 2_000_000) && !is_another_speed(2_000_000, 0));
    assert!(!is_another_speed(2_000_500, 2_000_000) && is_another_speed(2_000_501, 2_000_000));
    assert!(!is_another_speed(u32::MAX, u32::MAX));
}
