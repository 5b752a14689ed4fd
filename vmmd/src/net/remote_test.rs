//! Hosts are network namespaces on a switch, and a guest is one more behind its tap's name. Each
//! test has its own.
#![allow(unsafe_code, reason = "entering a network namespace")]

#[path = "hosts_test.rs"]
mod hosts;

use super::*;
use crate::plan::address::VMID_MAX;
use futures::StreamExt;
use hosts::{Space, family, family_on, guest, host, hosts, underlay};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload, packet_route::RouteNetlinkMessage};
use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

/// A test that fails ends, too.
const LIMIT: Duration = Duration::from_secs(20);
/// The longest datagram of a guest that is one packet.
const LONGEST: usize = 1472;

fn ip(vmid: u32) -> Ipv4Addr {
    family(3).ip(vmid).unwrap()
}

/// 1 MiB there, and back.
fn tcp(from: &Space, to: &Space, server: Ipv4Addr) {
    let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let listener = to.on(|| TcpListener::bind((server, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let mut stream = from.on(|| TcpStream::connect_timeout(&address, LIMIT).unwrap());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == bytes, "{} bytes came back", back.len());
    });
}

/// Sockets of two guests that are connected to each other.
fn datagrams(from: (&Space, u32), to: (&Space, u32)) -> (UdpSocket, UdpSocket) {
    let bind = |(space, vmid): (&Space, u32)| space.on(|| UdpSocket::bind((ip(vmid), 0)).unwrap());
    let (a, b) = (bind(from), bind(to));
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    (a, b)
}

/// The longest datagram there, and back; each arrives at once.
fn udp(from: (&Space, u32), to: (&Space, u32)) {
    let (a, b) = datagrams(from, to);
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert_eq!(from.send(&[7; LONGEST]).unwrap(), LONGEST);
        let mut got = [0; 2 * LONGEST];
        assert_eq!(to.recv(&mut got).unwrap(), LONGEST);
        assert_eq!(got[..LONGEST], [7; LONGEST]);
    }
}

fn all_pairs(guests: &[Space], talk: impl Fn((&Space, u32), (&Space, u32))) {
    for (from, vmid) in guests.iter().zip(0..) {
        for (to, other) in guests.iter().zip(0..).filter(|(_, other)| *other != vmid) {
            talk((from, vmid), (to, other));
        }
    }
}

fn received(guest: &Space) -> u64 {
    guest.net("/none", async |net| {
        let link = net.link("eth0").await.unwrap().unwrap();
        let packets = |attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(stats.rx_packets),
            _ => None,
        };
        link.attributes.into_iter().find_map(packets).unwrap()
    })
}

async fn names(net: &Net) -> Vec<String> {
    let links: Vec<LinkMessage> = net.handle.link().get().execute().try_collect().await.unwrap();
    let name = |link: &LinkMessage| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) if name.starts_with("pt") => Some(name.clone()),
            _ => None,
        })
    };
    let mut names: Vec<String> = links.iter().filter_map(name).collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn guests_on_three_hosts_talk_both_ways() {
    for (mtu, v6) in [(1550, false), (1570, true)] {
        let (_switch, hosts) = hosts(3, mtu);
        let guests = family_on(&hosts, family(3), v6);
        all_pairs(&guests, udp);
        all_pairs(&guests, |(from, _), (to, vmid)| tcp(from, to, ip(vmid)));
    }
}

/// VXLAN adds 50 bytes to a guest's 1500.
#[test]
#[ignore = "needs root: makes network namespaces"]
fn hosts_whose_network_has_an_mtu_of_1500_carry_all() {
    let (_switch, hosts) = hosts(2, 1500);
    let guests = family_on(&hosts, family(3), false);
    tcp(&guests[0], &guests[1], ip(1));
    tcp(&guests[1], &guests[0], ip(0));
    // Two others, for which nobody has found the size yet.
    let (net, more) = (family(3), [guest(&hosts[0], family(3), 4), guest(&hosts[1], family(3), 5)]);
    for (space, vmid, there) in [(&hosts[0], 5, 1), (&hosts[1], 4, 0)] {
        space.net("/state", async |own| own.add_remote(net, vmid, host(there, false)).await.unwrap());
    }
    let (a, b) = datagrams((&more[0], 4), (&more[1], 5));
    for (from, to) in [(&a, &b), (&b, &a)] {
        // The first one is answered with the size that fits, which the sender is told.
        assert_eq!(from.send(&[7; LONGEST]).unwrap(), LONGEST);
        let told = from.recv(&mut [0]).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE), "{told}");
        assert_eq!(from.send(&[8; LONGEST]).unwrap(), LONGEST);
        let mut got = [0; 2 * LONGEST];
        assert_eq!(to.recv(&mut got).unwrap(), LONGEST);
        assert_eq!(got[0], 8, "the first one is lost");
    }
    // Datagrams that may be fragmented are.
    for space in &more {
        space.sh("echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc; ip route flush cache");
    }
    udp((&more[0], 4), (&more[1], 5));
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn an_ipv6_network_that_cannot_carry_all_is_refused() {
    let (_switch, hosts) = hosts(1, 1569);
    hosts[0].net("/state", async |net| {
        let error = net.join(family(3), "f", underlay(host(0, true))).await.unwrap_err();
        assert!(
            error.to_string().contains("an MTU of 1569, and what guests send over IPv6 needs 1570"),
            "{error}"
        );
        assert!(names(&net).await.is_empty(), "nothing is left of it");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn what_is_for_all_or_for_nobody_does_not_cross() {
    let (_switch, hosts) = hosts(2, 1550);
    let net = family(3);
    let guests = family_on(&hosts, net, false);
    let near = guest(&hosts[0], net, 2);
    let (far_before, near_before) = (received(&guests[1]), received(&near));
    guests[0].on(|| {
        let socket = UdpSocket::bind((ip(0), 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        // To all, to a MAC that nobody has, a request for an address that nobody has, and to many.
        socket.send_to(b"all", (Ipv4Addr::from(u32::from(net.base) + 4095), 9)).unwrap();
        socket.send_to(b"nobody", (ip(9), 9)).unwrap();
        socket.send_to(b"asked for", (ip(100), 9)).unwrap();
        socket.send_to(b"many", (Ipv4Addr::new(224, 0, 0, 9), 9)).unwrap();
    });
    // Frames stay in order: what was sent before this has arrived, if it crosses.
    udp((&guests[0], 0), (&guests[1], 1));
    assert_eq!(received(&guests[1]) - far_before, 1, "only what was for it");
    // The request is repeated after a second.
    let near_got = received(&near) - near_before;
    assert!(near_got >= 4, "on the host itself they reach all, not {near_got}");
}

/// The link between the hosts is cut, so nobody else can answer.
#[test]
#[ignore = "needs root: makes network namespaces"]
fn requests_for_addresses_are_answered_on_the_own_host() {
    let (_switch, hosts) = hosts(2, 1550);
    let guests = family_on(&hosts, family(3), false);
    hosts[0].sh("ip link set eth0 down");
    guests[0].sh("echo 20 > /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms");
    // What a vmm makes of its guest's request: it goes to the MAC that the address should have.
    let ask = || {
        guests[0].net("/none", async |net| {
            let (connection, _, mut events) =
                rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh]).unwrap();
            let connection = tokio::spawn(connection);
            let index = net.index_of("eth0").await.unwrap().unwrap();
            let entry = net.handle.neighbours().add(index, ip(1).into()).state(NeighbourState::Probe);
            let mac = family(3).mac_bytes(1);
            entry.link_layer_address(&mac).replace().execute().await.unwrap();
            loop {
                let (message, _) = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap();
                let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) = message.payload
                else {
                    continue;
                };
                if entry.header.state != NeighbourState::Probe {
                    connection.abort();
                    return entry.header.state;
                }
            }
        })
    };
    assert_eq!(ask(), NeighbourState::Reachable);
    hosts[0].net("/state", async |net| net.remove_remote(family(3), 1).await.unwrap());
    assert_eq!(ask(), NeighbourState::Failed, "a VM that has ended is not there");
}

/// A frame with a datagram of vmid 1's from another VM, as a host sends it.
fn encapsulated(vni: u32, mac: [u8; 6], port: u16, payload: [u8; 4]) -> Vec<u8> {
    let header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    let mut packet = header.to_vec();
    packet.extend(ip(0).octets().into_iter().chain(ip(1).octets()));
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 9]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 12, 0, 0]);
    packet.extend(payload);
    let mut frame = vec![8, 0, 0, 0];
    frame.extend((vni << 8).to_be_bytes());
    frame.extend(family(3).mac_bytes(1));
    frame.extend(mac);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// Whoever can send to a host's port can send as a VM that is on another host: the hosts' network
/// is trusted.
#[test]
#[ignore = "needs root: makes network namespaces"]
fn frames_of_another_family_or_of_an_unknown_vm_are_dropped() {
    let (switch, hosts) = hosts(2, 1550);
    let (net, other) = (family(3), family(4));
    let guests = family_on(&hosts, net, false);
    // The other family is there, too, with VMs of the same numbers.
    let _others = family_on(&hosts, other, false);
    let to = guests[1].on(|| UdpSocket::bind((ip(1), 0)).unwrap());
    to.set_read_timeout(Some(LIMIT)).unwrap();
    let port = to.local_addr().unwrap().port();
    switch.on(|| {
        let from = UdpSocket::bind("0.0.0.0:0").unwrap();
        for frame in [
            encapsulated(other.vni(), net.mac_bytes(0), port, *b"othr"),
            encapsulated(family(5).vni(), net.mac_bytes(0), port, *b"none"),
            encapsulated(net.vni(), net.mac_bytes(7), port, *b"unkn"),
            encapsulated(net.vni(), net.mac_bytes(1), port, *b"self"),
            encapsulated(net.vni(), net.mac_bytes(0), port, *b"good"),
        ] {
            from.send_to(&frame, (host(1, false), VXLAN_PORT)).unwrap();
        }
    });
    let mut got = [0; 4];
    to.recv(&mut got).unwrap();
    assert_eq!(got, *b"good", "{}", String::from_utf8_lossy(&got));
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn nothing_is_left_of_a_family_and_others_keep_theirs() {
    let (_switch, hosts) = hosts(1, 1550);
    let at = underlay(host(0, false));
    hosts[0].net("/theirs", async |net| net.join(family(0), "f", at).await.unwrap());
    hosts[0].net("/ours", async |net| {
        net.join(family(1), "g", at).await.unwrap();
        net.join(family(2), "h", at).await.unwrap();
        net.add_remote(family(2), 1, host(1, false)).await.unwrap();
        // A vmmd was killed in a release, and its next one finds a device without a bridge.
        let bridge = net.link("pt1").await.unwrap().unwrap();
        net.delete(&bridge, "pt1").await.unwrap();
    });
    hosts[0].net("/ours", async |net| {
        assert_eq!(net.reap(&[2]).await.unwrap(), [1]);
        assert_eq!(names(&net).await, ["pt0", "pt0.x", "pt2", "pt2.x"]);
        net.release(family(0)).await.unwrap();
        net.release(family(2)).await.unwrap();
        assert_eq!(names(&net).await, ["pt0", "pt0.x"]);
    });
    hosts[0].net("/theirs", async |net| {
        net.join(family(1), "g", at).await.unwrap();
        assert_eq!(net.reap(&[]).await.unwrap().len(), 2);
        assert!(names(&net).await.is_empty());
        assert!(UdpSocket::bind(("0.0.0.0", VXLAN_PORT)).is_ok(), "the port is free");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn what_is_taken_on_a_host_is_said_and_nothing_is_left() {
    let (_switch, hosts) = hosts(1, 1550);
    let at = underlay(host(0, false));
    hosts[0].net("/theirs", async |net| net.join(family(3), "f", at).await.unwrap());
    let error = |net: FamilyNet, at| {
        hosts[0].net("/ours", async |own| {
            let error = own.join(net, "g", at).await.unwrap_err();
            assert_eq!(names(&own).await, ["pt3", "pt3.x"], "{error}");
            error
        })
    };
    let taken = error(family(3), at);
    assert!(matches!(taken, NetError::Taken { .. }) && taken.exists(), "{taken}");
    // Another range of another vmmd: the same addresses under another number.
    let same = error(FamilyNet { index: 0, ..family(3) }, at);
    assert!(matches!(same, NetError::Identifier { vni: 0x64403, port: VXLAN_PORT, .. }), "{same}");
    let nowhere = error(family(4), underlay(host(5, false)));
    let NetError::Underlay { source, .. } = &nowhere else { panic!("{nowhere}") };
    assert_eq!(source.kind(), ErrorKind::AddrNotAvailable);
    let _holder = hosts[0].on(|| UdpSocket::bind("0.0.0.0:4790").unwrap());
    let in_use = error(family(4), Underlay { port: 4790, ..at });
    let NetError::Underlay { source, .. } = &in_use else { panic!("{in_use}") };
    assert_eq!(source.kind(), ErrorKind::AddrInUse);
    hosts[0].net("/ours", async |own| {
        let error = own.reach(family(3), at).await.unwrap_err();
        assert!(matches!(error, NetError::Taken { .. }), "{error}");
        own.claim(family(4), "g").await.unwrap();
        own.reach(family(4), Underlay { port: 4790, ..at }).await.unwrap_err();
        assert_eq!(names(&own).await, ["pt3", "pt3.x", "pt4"], "a device that cannot open is gone");
    });
}

/// The addresses that family 3's device answers for.
async fn addresses(net: &Net) -> Vec<NeighbourAddress> {
    let index = net.index_of("pt3.x").await.unwrap().unwrap();
    let all = net.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
    let of = |entry: NeighbourMessage| {
        let address = |attribute| match attribute {
            NeighbourAttribute::Destination(address) => Some(address),
            _ => None,
        };
        entry.attributes.into_iter().find_map(address)
    };
    let all: Vec<NeighbourMessage> = all.try_collect().await.unwrap();
    all.into_iter().filter(|entry| entry.header.ifindex == index).filter_map(of).collect()
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn where_a_vm_is_can_be_told_again_but_not_of_one_that_is_here() {
    let (_switch, hosts) = hosts(1, 1550);
    let (net, at, there) = (family(3), underlay(host(0, false)), host(1, false));
    hosts[0].net("/state", async |own| own.claim(net, "f").await.unwrap());
    let _here = guest(&hosts[0], net, 0);
    hosts[0].net("/state", async |own| {
        let alone = own.add_remote(net, 1, there).await.unwrap_err();
        assert!(matches!(alone, NetError::Alone { .. }), "{alone}");
        own.remove_remote(net, 1).await.unwrap();
        own.reach(net, at).await.unwrap();
        own.add_remote(net, 1, there).await.unwrap();
        own.add_remote(net, VMID_MAX, there).await.unwrap();
        own.add_remote(net, 1, host(2, false)).await.unwrap();
        let both = [(1, host(2, false)), (VMID_MAX, there)];
        assert_eq!(own.remotes(net).await.unwrap(), both);
        own.reach(net, at).await.unwrap();
        assert_eq!(own.remotes(net).await.unwrap(), both, "a device that is right stays");
        for (vmid, host) in [
            (0, there),
            (VMID_MAX + 1, there),
            (2, host(0, false)),
            (2, host(1, true)),
            (2, "239.1.2.3".parse().unwrap()),
            (2, "255.255.255.255".parse().unwrap()),
            (2, "0.0.0.0".parse().unwrap()),
            (2, "127.0.0.2".parse().unwrap()),
        ] {
            let error = own.add_remote(net, vmid, host).await.unwrap_err();
            assert!(matches!(error, NetError::Remote { .. }), "{error}");
        }
        assert_eq!(own.remotes(net).await.unwrap(), both);
        own.remove_remote(net, VMID_MAX).await.unwrap();
        own.remove_remote(net, VMID_MAX).await.unwrap();
        own.remove_remote(net, 0).await.unwrap();
        assert_eq!(own.remotes(net).await.unwrap(), [(1, host(2, false))]);
        assert_eq!(addresses(&own).await, [NeighbourAddress::Inet(ip(1))], "others are forgotten");
        // A VM that is told to be elsewhere does not come here unnoticed.
        let error = own.tap(net, 1).await.unwrap_err();
        assert!(error.exists(), "{error}");
        own.remove_remote(net, 1).await.unwrap();
        let _tap = own.tap(net, 1).await.unwrap();
        own.reach(net, Underlay { port: 4790, ..at }).await.unwrap();
        assert_eq!(names(&own).await, ["pt3", "pt3.0", "pt3.1", "pt3.x"]);
        let link = own.link("pt3.x").await.unwrap().unwrap();
        assert!(vxlan_data(&link).any(|data| *data == InfoVxlan::Port(4790)), "made anew");
    });
}
