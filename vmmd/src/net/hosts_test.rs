//! Network namespaces that stand for hosts and guests.

use super::{super::*, LIMIT};
use crate::net::Owner;
use crate::plan::address::Range;
use rtnetlink::packet_route::link::{BridgePortState, InfoBridgePort, InfoPortData};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::Command,
};

/// A network namespace. It ends with this.
#[derive(Debug)]
pub struct Space(File);

impl Space {
    pub fn new() -> Self {
        let thread = std::thread::spawn(|| {
            // SAFETY: only the network namespace of this thread changes; no memory or descriptor
            // table is affected.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            // Nothing is sent that no test sends.
            sh("ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(thread.join().unwrap())
    }

    /// Works on a thread in the namespace.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    pub fn sh(&self, script: &str) {
        self.on(|| sh(script));
    }

    /// Works with the interfaces of a `vmmd` with this state folder.
    pub fn net<T: Send>(&self, state: &str, work: impl AsyncFnOnce(Net) -> T + Send) -> T {
        self.on(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(Net::open(Owner::of(Path::new(state))).unwrap()).await })
        })
    }

    /// For `ip link set … netns`.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Waits until a bridge forwards what comes from its port, some time after both ends of a cable are
/// up.
async fn forwards(net: &Net, port: &str) {
    let state = InfoBridgePort::State(BridgePortState::Forwarding);
    let is_open = |info: &LinkInfo| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => data.contains(&state),
        _ => false,
    };
    tokio::time::timeout(LIMIT, async {
        loop {
            let link = net.link(port).await.unwrap().unwrap();
            let of = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().any(is_open),
                _ => false,
            };
            if link.attributes.iter().any(of) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn family(index: u16) -> FamilyNet {
    "100.64.0.0/10".parse::<Range>().unwrap().family(index).unwrap()
}

/// The address of a host: 192.0.2.1 is the first one's, or with IPv6 2001:db8::1.
pub fn host(number: usize, v6: bool) -> IpAddr {
    let number = u8::try_from(number + 1).unwrap();
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(192, 0, 2, number).into()
    }
}

pub fn underlay(local: IpAddr) -> Underlay {
    Underlay { local, port: VXLAN_PORT }
}

/// Hosts on a switch of this MTU, which has the address 192.0.2.100.
pub fn hosts(count: usize, mtu: u32) -> (Space, Vec<Space>) {
    let switch = Space::new();
    switch.sh(&format!(
        "ip link add sw type bridge; ip link set sw mtu {mtu} up; ip addr add 192.0.2.100/24 dev sw"
    ));
    let plug = |number| {
        let space = Space::new();
        switch.sh(&format!(
            "ip link add h{number} mtu {mtu} type veth peer name eth0 mtu {mtu}; \
             ip link set h{number} master sw up; ip link set eth0 netns {}",
            space.path()
        ));
        let (v4, v6) = (host(number, false), host(number, true));
        space.sh(&format!(
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip link set eth0 mtu {mtu} up; \
             ip addr add {v4}/24 dev eth0; ip addr add {v6}/64 dev eth0 nodad"
        ));
        switch.net("/none", async |net| forwards(&net, &format!("h{number}")).await);
        space
    };
    let hosts = (0..count).map(plug).collect();
    (switch, hosts)
}

/// A guest with its address and MAC on its family's bridge, which knows the other ones' MACs as
/// guests do.
pub fn guest(host: &Space, net: FamilyNet, vmid: u32) -> Space {
    let guest = Space::new();
    host.sh(&format!(
        "ip link add v{vmid} type veth peer name eth0g; ip link set eth0g netns {}",
        guest.path()
    ));
    host.net("/state", async |there| {
        let index = there.index_of(&format!("v{vmid}")).await.unwrap().unwrap();
        there.attach(net, vmid, index).await.unwrap();
    });
    let address = |vmid| net.ip(vmid).unwrap();
    let mut script = format!(
        "ip link set eth0g name eth0; ip link set eth0 address {} up; ip addr add {}/20 brd + dev eth0;",
        net.mac(vmid),
        address(vmid)
    );
    for other in (0..10).filter(|other| *other != vmid) {
        script +=
            &format!("ip neigh add {} lladdr {} dev eth0 nud permanent;", address(other), net.mac(other));
    }
    guest.sh(&script);
    host.net("/state", async |there| forwards(&there, &net.tap(vmid)).await);
    guest
}

/// A family on hosts, with guest N on host N.
pub fn family_on(hosts: &[Space], net: FamilyNet, v6: bool) -> Vec<Space> {
    let take = |(number, space): (usize, &Space)| {
        space.net("/state", async |there| {
            there.join(net, "f", underlay(host(number, v6))).await.unwrap();
            for other in (0..hosts.len()).filter(|other| *other != number) {
                there.add_remote(net, u32::try_from(other).unwrap(), host(other, v6)).await.unwrap();
            }
        });
        guest(space, net, u32::try_from(number).unwrap())
    };
    hosts.iter().enumerate().map(take).collect()
}
