use super::*;
use crate::commands::doctor::facts::default_range;
use std::path::PathBuf;

/// A machine on which everything is well.
fn healthy() -> Facts {
    Facts {
        kvm: Ok(12),
        cpu_flags: vec!["fpu".into(), "vmx".into()],
        userfaultfd_sysctl: Some("0".into()),
        userfaultfd_node: Ok(()),
        pager: Some(PathBuf::from("/usr/bin/pager")),
        shmem_huge: Some("never".into()),
        tun: Ok(()),
        memory_mib: Some((24_000, 20_000)),
        cgroup_v2: true,
        cgroup_v1: false,
        kernel: "6.12.9-amd64".into(),
        root: true,
        foreign: Ok(Vec::new()),
        network: default_range(),
        dropping: Ok(Vec::new()),
        vmmd: Ok("0.1.0".into()),
        host: "unix:/run/patina/vmmd.sock".into(),
        images: vec![("PATINA_KERNEL", PathBuf::from("/k"), true)],
    }
}

fn verdict(facts: &Facts, name: &str) -> Verdict {
    all(facts).iter().find(|check| check.name == name).unwrap().verdict
}

#[test]
fn a_healthy_machine_passes_and_needs_no_fix() {
    let checks = all(&healthy());
    assert!(checks.iter().all(|check| check.verdict == Verdict::Pass && check.fix.is_none()), "{checks:?}");
}

#[test]
fn a_pager_that_is_missing_or_cannot_work_warns_with_a_fix() {
    let pager = |facts: Facts| all(&facts).into_iter().find(|check| check.name == "pager").unwrap();
    let missing = pager(Facts { pager: None, ..healthy() });
    assert_eq!(missing.verdict, Verdict::Warn, "{missing:?}");
    assert!(missing.fix.is_some_and(|fix| fix.contains("--pager")));
    for (kind, fix) in [(io::ErrorKind::NotFound, "6.7"), (io::ErrorKind::PermissionDenied, "root")] {
        let refused = pager(Facts { userfaultfd_node: Err(kind.into()), ..healthy() });
        assert_eq!(refused.verdict, Verdict::Warn, "{refused:?}");
        assert!(
            refused.found.contains("/dev/userfaultfd") && refused.fix.is_some_and(|text| text.contains(fix))
        );
    }
}

#[test]
fn the_kind_of_kvm_is_named() {
    for (flags, word) in [(vec!["vmx"], "VT-x"), (vec!["svm"], "AMD-V"), (vec![], "software KVM")] {
        let cpu_flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let check = kvm(&Facts { cpu_flags, ..healthy() });
        assert!(check.verdict == Verdict::Pass && check.found.starts_with(word), "{check:?}");
    }
}

#[test]
fn what_keeps_guests_from_running_fails_with_a_fix() {
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let broken = [
        ("kvm", Facts { kvm: Err(io::ErrorKind::NotFound.into()), ..healthy() }),
        ("kvm", Facts { kvm: Err(denied()), ..healthy() }),
        ("tun", Facts { tun: Err(denied()), ..healthy() }),
        ("memory", Facts { memory_mib: Some((512, 100)), ..healthy() }),
    ];
    for (name, facts) in broken {
        let check = all(&facts).into_iter().find(|check| check.name == name).unwrap();
        assert_eq!(check.verdict, Verdict::Fail, "{check:?}");
        assert!(check.fix.is_some_and(|fix| !fix.is_empty()), "{name}");
    }
}

#[test]
fn what_guests_can_do_without_warns() {
    assert_eq!(verdict(&Facts { vmmd: Err("gone".into()), ..healthy() }, "vmmd"), Verdict::Warn);
    assert_eq!(verdict(&Facts { root: false, ..healthy() }, "rights"), Verdict::Warn);
    assert_eq!(verdict(&Facts { cgroup_v2: false, ..healthy() }, "cgroups"), Verdict::Warn);
}

#[test]
fn shared_memory_with_huge_pages_warns() {
    let with = |mode: &str| Facts { shmem_huge: Some(mode.into()), ..healthy() };
    for mode in ["always", "within_size", "force"] {
        assert_eq!(verdict(&with(mode), "huge pages"), Verdict::Warn, "{mode}");
    }
    for mode in ["never", "advise", "deny"] {
        assert_eq!(verdict(&with(mode), "huge pages"), Verdict::Pass, "{mode}");
    }
    assert_eq!(verdict(&Facts { shmem_huge: None, ..healthy() }, "huge pages"), Verdict::Pass);
}

#[test]
fn what_makes_later_clones_pause_longer_is_said() {
    let check = |facts: Facts, name: &str| all(&facts).into_iter().find(|check| check.name == name).unwrap();
    for (kernel, good) in
        [("6.7.0", true), ("6.6.99-1", false), ("5.14.0", false), ("7.0-rc1", true), ("x", false)]
    {
        let check = check(Facts { kernel: kernel.into(), ..healthy() }, "kernel");
        assert_eq!(check.verdict == Verdict::Pass, good, "{check:?}");
        assert!(good || kernel == "x" || check.found.contains("all its pages are copied"), "{check:?}");
    }
    let userfaultfd = |sysctl: Option<&str>, root| {
        let facts = Facts { userfaultfd_sysctl: sysctl.map(str::to_owned), root, ..healthy() };
        check(facts, "userfaultfd").verdict
    };
    assert_eq!([Some("0"), Some("1")].map(|sysctl| userfaultfd(sysctl, true)), [Verdict::Pass; 2]);
    assert_eq!((userfaultfd(Some("0"), false), userfaultfd(None, true)), (Verdict::Warn, Verdict::Warn));
    assert_eq!(userfaultfd(Some("1"), false), Verdict::Pass);
}

#[test]
fn another_network_in_the_range_and_a_firewall_that_drops_warn_with_a_remedy() {
    let check = |facts: Facts, name: &str| all(&facts).into_iter().find(|check| check.name == name).unwrap();
    let foreign = Ok(vec!["address 100.101.102.103/32 on tailscale0".to_owned()]);
    let found = check(Facts { foreign, ..healthy() }, "addresses");
    assert_eq!(found.verdict, Verdict::Warn);
    assert!(found.found.contains("100.64.0.0/10") && found.found.contains("tailscale0"), "{found:?}");
    assert!(found.fix.unwrap().contains("--network"));
    let dropping = Dropping { chain: "the chain FORWARD".into(), remedy: "iptables -I FORWARD".into() };
    let found = check(Facts { dropping: Ok(vec![dropping]), ..healthy() }, "firewall");
    assert_eq!(found.verdict, Verdict::Warn);
    assert!(found.found.contains("the chain FORWARD"), "{found:?}");
    assert_eq!(found.fix.as_deref(), Some("`iptables -I FORWARD`"));
    for (name, facts) in [
        ("addresses", Facts { foreign: Err("no".into()), ..healthy() }),
        ("firewall", Facts { dropping: Err("no".into()), ..healthy() }),
    ] {
        assert_eq!(check(facts, name).verdict, Verdict::Warn, "{name}");
    }
}
