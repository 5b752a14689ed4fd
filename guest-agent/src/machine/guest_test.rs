//! A machine for tests: its network is a namespace of its own, and it changes nothing else on the
//! machine that runs the test.

use super::*;
use crate::machine::testing::{expect_a_network_of_ones_own, run_in_a_network};
use std::process::Command;

fn guest(dir: &Path) -> Guest {
    std::fs::write(dir.join("boot_id"), "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11\n").unwrap();
    Guest {
        cgroup: None,
        hook_cgroup: HookCgroup::default(),
        clock: None,
        clock_set: false,
        marks: Marks::open_at(&dir.join("boot_id"), dir.join("machine-id")),
        generator: None,
        card: None,
        spare: None,
        sockets: 0,
        connections: None,
        stale: None,
        holds: false,
        renews_marks: false,
    }
}

fn identity(vmid: u8) -> Identity {
    Identity {
        vmid: vmid.into(),
        family: "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11".into(),
        ip: Ipv4Addr::new(100, 64, 0, vmid + 1),
        prefix: 20,
        gateway: Ipv4Addr::new(100, 64, 15, 254),
        mac: format!("02:00:00:00:00:{vmid:02x}"),
        hostname: format!("vm-{vmid}"),
        clock_ns: 1,
        seed: "ab".repeat(SEED_BYTES),
        ticket: String::new(),
    }
}

/// The vital steps that did not work, but for the one that nobody may do here.
fn vital(failed: &[ApplyError]) -> Vec<&'static str> {
    let vital = failed.iter().filter(|error| error.is_vital).map(|error| error.step);
    vital.filter(|step| *step != "mix the host's randomness in").collect()
}

fn ip(arguments: &str) -> String {
    let output = Command::new("busybox").arg("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_card_that_was_renamed_becomes_the_clones() {
    run_in_a_network("guest::tests::a_card_that_was_renamed_becomes_the_clones_inside");
}

#[test]
fn what_a_card_refuses_is_vital_and_known_at_once() {
    run_in_a_network("guest::tests::what_a_card_refuses_is_vital_and_known_at_once_inside");
}

#[test]
fn a_restored_master_is_in_its_own_network() {
    run_in_a_network("guest::tests::a_restored_master_is_in_its_own_network_inside");
}

#[test]
#[ignore = "changes the network: run by a_restored_master_is_in_its_own_network in one of its own"]
fn a_restored_master_is_in_its_own_network_inside() {
    expect_a_network_of_ones_own();
    let dir = tempfile::tempdir().unwrap();
    let mut guest = guest(dir.path());
    ip("link add eth0 type bridge");
    let old = identity(0);
    assert_eq!(vital(&guest.apply(&old, None)), [""; 0]);
    assert_eq!(vital(&guest.settle(false)), [""; 0]);
    let boot_id = || std::fs::read_to_string(dir.path().join("boot_id")).unwrap();
    let first = boot_id();
    let new = Identity {
        family: "7c1f0b52-5d43-4a38-9c3e-0f6c5b4f2a11".into(),
        ip: Ipv4Addr::new(100, 64, 16, 1),
        gateway: Ipv4Addr::new(100, 64, 31, 254),
        mac: "02:00:00:01:00:00".into(),
        ..identity(0)
    };
    assert_eq!(vital(&guest.apply(&new, Some(&old))), [""; 0]);
    assert_eq!(guest.stale, Some(old.ip), "its connections are the old VM's");
    assert_eq!(vital(&guest.settle(true)), [""; 0]);
    assert_ne!(boot_id(), first);
    let shown = ip("addr show eth0");
    assert!(shown.contains(" 100.64.16.1/32 ") && shown.contains(" 02:00:00:01:00:00 "), "{shown}");
    let routes = ip("route show");
    assert!(!shown.contains(" 100.64.0.1/32 ") && !routes.contains("100.64.0.0/20"), "{shown}{routes}");
    assert!(routes.contains("100.64.16.0/20") && routes.contains("default via 100.64.31.254"), "{routes}");
    // Again, in a third family that has the numbers of the second: what others are called there is
    // asked anew.
    let third = Identity { family: "5d1f3a3c-9a53-4b8e-8a53-2d1f3a3c1b22".into(), ..new.clone() };
    ip("route add 10.9.0.0/16 via 100.64.31.254");
    let before = boot_id();
    assert_eq!(vital(&guest.apply(&third, Some(&new))), [""; 0]);
    assert_eq!(guest.stale, Some(new.ip));
    assert_eq!(vital(&guest.settle(true)), [""; 0]);
    assert_ne!(boot_id(), before);
    let routes = ip("route show");
    assert!(!routes.contains("10.9.0.0/16") && routes.contains("default via 100.64.31.254"), "{routes}");
    assert!(ip("addr show eth0").contains(" 100.64.16.1/32 "));
    // The same VM again: nothing changes.
    assert_eq!(vital(&guest.apply(&third, Some(&third))), [""; 0]);
    assert_eq!(guest.stale, None);
}

#[test]
#[ignore = "changes the network: run by a_card_that_was_renamed_becomes_the_clones in one of its own"]
fn a_card_that_was_renamed_becomes_the_clones_inside() {
    expect_a_network_of_ones_own();
    let dir = tempfile::tempdir().unwrap();
    let mut guest = guest(dir.path());
    ip("link add eth0 type bridge");
    assert_eq!(vital(&guest.apply(&identity(0), None)), [""; 0]);
    assert_eq!(vital(&guest.settle(false)), [""; 0]);
    for (vmid, name) in [(7, "lan0"), (8, "lan1")] {
        let old = guest.card.as_ref().unwrap().name.clone();
        ip(&format!("link set {old} down"));
        ip(&format!("link set {old} name {name}"));
        // Another has its name by now: it is left alone.
        ip(&format!("link add {old} type bridge"));
        guest.prepare_to_connect();
        let failed = guest.apply(&identity(vmid), Some(&identity(vmid - 1)));
        assert_eq!(vital(&failed), [""; 0], "{failed:?}");
        let link = ip(&format!("addr show {name}"));
        let has = |text: String| link.contains(&text);
        assert!(
            has(format!(" 02:00:00:00:00:{vmid:02x} ")) && has(format!(" 100.64.0.{}/32 ", vmid + 1)),
            "{link}"
        );
        assert!(!ip(&format!("addr show {old}")).contains(" 02:00:00:00:00:"));
    }
    ip("link set lan1 down");
    ip("link set lan1 name lan2");
    // Nobody has asked for its name in time.
    assert_eq!(vital(&guest.apply(&identity(9), Some(&identity(8)))), [""; 0]);
    assert!(ip("link show lan2").contains(" 02:00:00:00:00:09 "));
}

#[test]
#[ignore = "changes the network: run by what_a_card_refuses_is_vital_and_known_at_once in one of its own"]
fn what_a_card_refuses_is_vital_and_known_at_once_inside() {
    expect_a_network_of_ones_own();
    let dir = tempfile::tempdir().unwrap();
    let mut guest = guest(dir.path());
    ip("link add eth0 type bridge");
    guest.apply(&identity(0), None);
    let group = Identity { mac: "01:00:00:00:00:05".into(), ..identity(1) };
    assert_eq!(vital(&guest.apply(&group, Some(&identity(0)))), ["set the MAC address"]);
    ip("link del eth0");
    assert_eq!(
        vital(&guest.apply(&identity(2), Some(&identity(1)))),
        ["set the MAC address", "set the address", "remove the old address"]
    );
    assert!(vital(&guest.settle(true)).is_empty(), "told once");
    let unsown = Identity { seed: String::new(), ..identity(3) };
    let failed = guest.apply(&unsown, Some(&identity(3)));
    let told: Vec<String> = failed.iter().map(|error| patina_daemon::chain(error)).collect();
    assert!(
        failed[0].is_vital && told[0] == "mix the host's randomness in: the host has sent none",
        "{told:?}"
    );
    // What it can be without.
    assert!(!failed[1].is_vital && told[1].starts_with("set the clock: "), "{told:?}");
}

#[test]
fn marks_change_before_a_clone_is_ready_unless_nobody_could_see_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = guest(dir.path());
    let boot_id = || std::fs::read_to_string(dir.path().join("boot_id")).unwrap();
    let mut failed = Failures::default();
    let first = boot_id();
    guest.expect_marks(false, &mut failed);
    assert_eq!(boot_id(), first, "the same machine");
    guest.expect_marks(true, &mut failed);
    let second = boot_id();
    assert_ne!(second, first);
    guest.settle(true);
    assert_eq!(boot_id(), second, "once");
    guest.holds = true;
    guest.expect_marks(true, &mut failed);
    assert_eq!(boot_id(), second, "nobody runs who could look");
    guest.settle(true);
    assert_ne!(boot_id(), second);
    assert!(failed.0.is_empty());
}

#[test]
#[ignore = "needs root: others may keep few pages mapped"]
fn the_agents_pages_stay_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let locked_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert_eq!(locked_kib(), 0);
    guest(dir.path()).keep_resident().unwrap();
    assert!(locked_kib() > 500, "{} KiB are kept mapped", locked_kib());
}
