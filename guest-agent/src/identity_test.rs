use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn identity() -> Identity {
    Identity {
        vmid: 7,
        family: "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11".into(),
        ip: Ipv4Addr::new(100, 64, 0, 8),
        prefix: 20,
        gateway: Ipv4Addr::new(100, 64, 15, 254),
        mac: "02:00:00:00:00:07".into(),
        hostname: "web-7".into(),
        clock_ns: 1,
        seed: String::new(),
        ticket: "5d1f3a3c-6f0b-4b8e-9a53-2d1f3a3c1b11".into(),
    }
}

#[test]
fn the_file_reads_back() {
    let text = render(&identity()).unwrap();
    for (key, value) in [
        ("vmid", "7"),
        ("ip", "100.64.0.8"),
        ("prefix", "20"),
        ("gateway", "100.64.15.254"),
        ("mac", "02:00:00:00:00:07"),
        ("hostname", "web-7"),
        ("family", "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11"),
        ("ticket", "5d1f3a3c-6f0b-4b8e-9a53-2d1f3a3c1b11"),
    ] {
        assert_eq!(lookup(&text, key), Some(value));
    }
    assert_eq!(lookup(&text, "vm"), None);
    let master = render(&Identity { ticket: String::new(), ..identity() }).unwrap();
    assert_eq!(lookup(&master, "ticket"), Some(""));
}

proptest! {
    /// What `vmmd` takes as the name of a VM.
    #[test]
    fn every_name_of_a_vm_is_a_host_name(name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}") {
        let text = render(&Identity { hostname: name.clone(), ..identity() }).unwrap();
        prop_assert_eq!(lookup(&text, "hostname"), Some(name.as_str()));
    }
}

#[test]
fn a_field_that_could_forge_a_line_is_refused() {
    let hostname = Identity { hostname: "a\nvmid=0".into(), ..identity() };
    assert!(matches!(render(&hostname), Err(IdentityError::Hostname(_))));
    let long = Identity { hostname: "a".repeat(65), ..identity() };
    assert!(matches!(render(&long), Err(IdentityError::Hostname(_))));
    let family = Identity { family: "x\n".into(), ..identity() };
    assert!(matches!(render(&family), Err(IdentityError::Family(_))));
    let ticket = Identity { ticket: "5d1f3a3c\nvmid=0".into(), ..identity() };
    assert!(matches!(render(&ticket), Err(IdentityError::Ticket(_))));
    let long = Identity { family: "a".repeat(IDENTITY_MAX_BYTES), ..identity() };
    assert!(matches!(render(&long), Err(IdentityError::Size(_))));
    let mac = Identity { mac: "02:00:00:00:00:0g".into(), ..identity() };
    assert!(matches!(render(&mac), Err(IdentityError::Mac(_))));
    let prefix = Identity { prefix: 33, ..identity() };
    assert!(matches!(render(&prefix), Err(IdentityError::Prefix(33))));
}

#[test]
fn mac_addresses() {
    assert_eq!(parse_mac("02:0a:00:00:ff:07"), Some([2, 10, 0, 0, 255, 7]));
    for bad in ["", "02:0a:00:00:ff", "02:0a:00:00:ff:07:00", "2:0a:00:00:ff:07", "+2:0a:00:00:ff:07"] {
        assert_eq!(parse_mac(bad), None, "{bad}");
    }
}

#[test]
fn hosts_keeps_the_users_lines_and_replaces_ours() {
    let first = render_hosts("127.0.0.1 localhost\n10.0.0.1 db", &identity());
    assert_eq!(first, "127.0.0.1 localhost\n10.0.0.1 db\n100.64.0.8 web-7 # patina\n");
    let next = Identity { hostname: "web-8".into(), ..identity() };
    let second = render_hosts(&first, &next);
    assert_eq!(second, "127.0.0.1 localhost\n10.0.0.1 db\n100.64.0.8 web-8 # patina\n");
    assert_eq!(render_hosts("", &next), "127.0.0.1 localhost\n100.64.0.8 web-8 # patina\n");
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    assert_eq!(read_small(&path, 10).unwrap(), "");
    replace(&path, "one\n").unwrap();
    replace(&path, "two\n").unwrap();
    assert_eq!(read_small(&path, 10).unwrap(), "two\n");
    assert_eq!(read_small(&path, 3), Err(Errno::FBIG));
    let missing = dir.path().join("no/such");
    let error = replace(&missing, "x").unwrap_err();
    assert!(error.to_string().starts_with("replace "), "{error}");
}

#[test]
fn seeds_are_64_hex_digits_or_none() {
    let seed = parse_seed(&format!("{}ff", "01".repeat(31))).expect("a seed");
    assert_eq!((seed[0], seed[30], seed[31]), (1, 1, 255));
    for bad in ["", "01", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
        assert_eq!(parse_seed(bad), None, "{bad}");
    }
}
