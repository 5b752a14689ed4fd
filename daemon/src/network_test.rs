#![allow(unsafe_code, reason = "entering a network namespace")]

use super::*;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;

/// Runs a test on a thread of its own in a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; no memory or descriptor table
        // is affected.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn found() -> Vec<String> {
    foreign(Network::of(Ipv4Addr::new(100, 64, 0, 0), 10)).await.unwrap()
}

#[test]
fn networks_overlap_by_the_bits_that_both_have() {
    let network = |a, b, prefix| Network::of(Ipv4Addr::new(a, b, 3, 4), prefix);
    let range = network(100, 64, 10);
    assert_eq!(range.to_string(), "100.64.0.0/10");
    for within in [network(100, 100, 16), network(100, 127, 32), network(100, 0, 8), network(0, 0, 0)] {
        assert!(within.overlaps(range) && range.overlaps(within), "{within}");
    }
    for outside in [network(100, 128, 9), network(100, 63, 16), network(10, 64, 10), network(101, 64, 32)] {
        assert!(!outside.overlaps(range) && !range.overlaps(outside), "{outside}");
    }
}

#[test]
#[ignore = "needs root"]
fn addresses_and_routes_of_others_in_any_table_are_seen() {
    in_namespace(|| async {
        assert_eq!(found().await, Vec::<String>::new());
        sh("ip link add vpn0 type bridge; ip link set vpn0 up; ip address add 10.1.2.3/24 dev vpn0; \
            ip route add default via 10.1.2.9; ip route add 0.0.0.0/1 via 10.1.2.9");
        assert_eq!(found().await, Vec::<String>::new(), "others, and default routes");
        // As Tailscale does.
        sh("ip address add 100.101.102.103/32 dev vpn0");
        assert_eq!(found().await, ["address 100.101.102.103/32 on vpn0"]);
        sh("ip rule add pref 5270 lookup 52; ip route add 100.100.100.100/32 dev vpn0 table 52");
        let all = ["address 100.101.102.103/32 on vpn0", "route to 100.100.100.100/32 on vpn0 (table 52)"];
        assert_eq!(found().await, all);
        sh("ip address flush dev vpn0; ip address add 10.1.2.3/24 dev vpn0; ip route flush table 52; \
            ip route add 100.64.0.0/10 dev vpn0; ip route add unreachable 100.80.0.0/16 table 1000");
        let all = ["route to 100.64.0.0/10 on vpn0", "unreachable route to 100.80.0.0/16 (table 1000)"];
        let mut seen = found().await;
        seen.sort();
        assert_eq!(seen, all);
    });
}

#[test]
#[ignore = "needs root"]
fn bridges_of_families_are_no_others() {
    in_namespace(|| async {
        for (bridge, mac, address) in
            [("pt0", "06:11:22:33:00:00", "100.64.15.254"), ("pt17", "06:11:22:33:00:11", "100.65.31.254")]
        {
            sh(&format!(
                "ip link add {bridge} address {mac} type bridge; ip link set {bridge} up; \
                ip address add {address}/20 dev {bridge}"
            ));
        }
        assert_eq!(found().await, Vec::<String>::new());
        // Only the name is like one.
        sh("ip link add pt99 address 02:11:22:33:00:01 type bridge; ip address add 100.70.0.1/20 dev pt99");
        sh("ip link add ptp type bridge; ip address add 100.71.0.1/20 dev ptp");
        assert_eq!(found().await, ["address 100.70.0.1/20 on pt99", "address 100.71.0.1/20 on ptp"]);
    });
}

#[test]
#[ignore = "needs root"]
fn a_firewall_that_drops_what_bridges_pass_is_seen_until_its_rule_is_set() {
    in_namespace(|| async {
        let dropped = || -> Vec<String> {
            bridged_frames_dropped().unwrap().into_iter().map(|dropping| dropping.chain).collect()
        };
        sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        assert_eq!(dropped(), Vec::<String>::new(), "without a firewall");
        sh(
            "nft 'add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }'",
        );
        sh("nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }'");
        assert_eq!(dropped(), Vec::<String>::new(), "another hook, another policy");
        sh("iptables-nft -P FORWARD DROP");
        assert_eq!(dropped(), ["the iptables chain FORWARD has the policy DROP"]);
        sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        assert_eq!(dropped(), Vec::<String>::new(), "bridges do not call it");
        sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        sh(&format!("iptables-nft -I {}", RULE.join(" ")));
        assert_eq!(dropped(), Vec::<String>::new(), "the rule lets them through");
        sh("nft 'flush ruleset'; iptables-legacy -P FORWARD DROP");
        assert_eq!(dropped(), ["the iptables chain FORWARD (legacy) has the policy DROP"]);
        sh(
            "iptables-legacy -P FORWARD ACCEPT; nft 'add table bridge b; add chain bridge b f { type filter hook forward priority 0; policy drop; }'",
        );
        assert_eq!(dropped(), ["the nftables chain bridge b f has the policy drop"]);
    });
}
