use super::*;
use crate::machine::testing::{expect_a_network_of_ones_own, run_in_a_network};

#[test]
fn messages_are_as_the_kernel_reads_them() {
    let mut batch = Batch::default();
    batch.link(7);
    batch.add_address(7, Ipv4Addr::new(100, 64, 3, 9));
    batch.routes(7, Ipv4Addr::new(100, 64, 3, 9), 20, Ipv4Addr::new(100, 64, 15, 254));
    let lengths: Vec<u32> = {
        let (mut rest, mut lengths) = (batch.bytes.as_slice(), Vec::new());
        while let Some(word) = rest.first_chunk() {
            let length = u32::from_ne_bytes(*word);
            lengths.push(length);
            rest = &rest[length as usize..];
        }
        lengths
    };
    assert_eq!(lengths, [16 + 16, 16 + 8 + 8, 44, 44, 44]);
    assert_eq!(batch.bytes[32 + 16..32 + 18], [2, 32], "the address stands for itself");
    let last_three = &batch.bytes[batch.bytes.len() - 3 * 44..];
    // Prefix, table, protocol, scope, type; the destination.
    let route = |at: usize| (&last_three[at + 17..at + 24], &last_three[at + 32..at + 36]);
    assert_eq!(route(0), (&[20, 0, 0, 254, 3, 253, 1][..], &[100, 64, 0, 0][..]));
    assert_eq!(route(44), (&[32, 0, 0, 255, 3, 253, 3][..], &[100, 64, 15, 255][..]));
    assert_eq!(route(88), (&[0, 0, 0, 254, 3, 0, 1][..], &[100, 64, 15, 254][..]));
    let mut host = Batch::default();
    host.routes(7, Ipv4Addr::LOCALHOST, 32, Ipv4Addr::LOCALHOST);
    assert_eq!(host.bytes[32..36], [127, 0, 0, 1]);
}

#[test]
fn settings_reach_the_kernel() {
    run_in_a_network("rtnetlink::tests::settings_reach_the_kernel_inside");
}

#[test]
fn what_the_kernel_refuses_is_told_with_its_step() {
    run_in_a_network("rtnetlink::tests::what_the_kernel_refuses_is_told_with_its_step_inside");
}

fn local_addresses() -> String {
    std::fs::read_to_string("/proc/net/fib_trie").unwrap()
}

#[test]
#[ignore = "changes the network: run by settings_reach_the_kernel in one of its own"]
fn settings_reach_the_kernel_inside() {
    expect_a_network_of_ones_own();
    let mut netlink = RtNetlink::open().unwrap();
    let lo = netlink.index("lo").unwrap();
    let [first, second] = [Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 9)];
    let gateway = Ipv4Addr::new(100, 64, 15, 254);
    let mut batch = Batch::default();
    batch.link(lo);
    batch.add_address(lo, first);
    batch.routes(lo, first, 20, gateway);
    netlink.send(batch).unwrap();
    assert!(netlink.failures().is_empty());
    assert!(local_addresses().contains("100.64.0.1\n"));

    // As in a clone; and once more, when nothing is left to do.
    for _ in 0..2 {
        let mut batch = Batch::default();
        batch.add_address(lo, second);
        batch.remove_address(lo, first);
        netlink.send(batch).unwrap();
        let failures = netlink.failures();
        assert!(failures.is_empty(), "{failures:?}");
    }
    let addresses = local_addresses();
    assert!(addresses.contains("100.64.0.9\n") && !addresses.contains("100.64.0.1\n"), "{addresses}");
    let routes = std::fs::read_to_string("/proc/net/route").unwrap();
    // Destination and gateway in the machine's order. They have stayed, and lead out from the new
    // address.
    assert_eq!(routes.matches("lo\t00000000\tFE0F4064\t").count(), 1, "{routes}");
    assert_eq!(routes.matches("lo\t00004064\t00000000\t").count(), 1, "{routes}");
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("100.64.0.77:9").unwrap();
    assert_eq!(socket.local_addr().unwrap().ip(), second);
    let refused = socket.connect("100.64.15.255:9").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "a broadcast address, for which one asks leave");
}

#[test]
#[ignore = "changes the network: run by what_the_kernel_refuses_is_told_with_its_step in one of its own"]
fn what_the_kernel_refuses_is_told_with_its_step_inside() {
    expect_a_network_of_ones_own();
    let mut netlink = RtNetlink::open().unwrap();
    assert_eq!(netlink.index("eth0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    let lo = netlink.index("lo").unwrap();
    let mut batch = Batch::default();
    batch.add_address(lo + 1000, Ipv4Addr::new(100, 64, 0, 1));
    batch.link(lo);
    batch.routes(lo, Ipv4Addr::new(100, 64, 0, 1), 20, Ipv4Addr::new(100, 65, 15, 254));
    netlink.send(batch).unwrap();
    let failures = netlink.failures();
    let told: Vec<_> = failures.iter().map(|(step, error)| (*step, error.raw_os_error().unwrap())).collect();
    assert_eq!(told, [("set the address", libc::ENODEV), ("set the default route", libc::ENETUNREACH)]);
    assert!(netlink.failures().is_empty(), "told once");
}
