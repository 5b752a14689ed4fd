//! A family's VMs on other hosts: a VXLAN device per family, which is a port of its bridge.
//!
//! ```text
//!   tap pt3.0 -+                                        +- tap pt3.1
//!          bridge pt3 - pt3.x ==UDP to port 4789== pt3.x - bridge pt3
//! ```
//! Only what is told is sent. The bridge's entry of a VM's MAC leads to the device, and the
//! device's entry to the VM's host. No entry is for all, the port takes no frame that is for
//! several or for an unknown MAC, and nothing is learned. The device answers requests for the VMs'
//! addresses (ARP) and sends none of them on. It takes frames only with its family's identifier,
//! and the bridge only those from the MACs of VMs that are told to be elsewhere.
//!
//! Guests have an MTU of 1500, and VXLAN adds 50 bytes (IPv6: 70). Where the hosts' network carries
//! less than both, the kernel answers a packet that must not be fragmented with the size that fits
//! (ICMP), as any router does, and fragments the others. It cannot do the latter over IPv6, so such
//! a network is refused.

use super::{MTU_BYTES, Net, NetError, error::failed, error::is, sys};
use crate::plan::address::FamilyNet;
use futures::TryStreamExt;
use patina_daemon::chain;
use rtnetlink::{
    LinkBridgePort, LinkUnspec, LinkVxlan,
    packet_route::{
        AddressFamily,
        link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VxlanDf},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The UDP port that IANA gave VXLAN. All hosts of a cluster have the same.
pub const VXLAN_PORT: u16 = 4789;

/// Where a host receives what guests of other hosts send to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// The address of this host that the others send to.
    pub local: IpAddr,
    /// The UDP port, on all hosts.
    pub port: u16,
}

impl Net {
    /// Makes the bridge of a family that comes from another host, and the way to that host. When
    /// either fails, neither is there.
    ///
    /// # Errors
    /// [`NetError::Taken`]: its number is another family's here. Else as [`Self::reach`].
    pub async fn join(&self, net: FamilyNet, family: &str, underlay: Underlay) -> Result<(), NetError> {
        match self.claim(net, family).await {
            Err(error) if error.exists() => return Err(NetError::Taken { net, link: net.bridge() }),
            other => other?,
        }
        let reached = self.reach(net, underlay).await;
        if reached.is_err()
            && let Err(error) = self.release(net).await
        {
            tracing::error!(bridge = net.bridge(), error = %chain(&error), "a half-made network stays behind");
        }
        reached
    }

    /// Makes the family's VXLAN device, as a port of its bridge. One that is as it should be stays
    /// with all that it knows; another one of ours is made anew.
    ///
    /// # Errors
    /// The bridge is not there or not ours, the identifier or the port is taken, or the address is
    /// not this host's. [`Self::release`] removes what was made.
    pub async fn reach(&self, net: FamilyNet, underlay: Underlay) -> Result<(), NetError> {
        let (name, bridge) = (net.vxlan(), net.bridge());
        let Some(controller) = self.ours(net, &bridge).await? else {
            return Err(NetError::Taken { net, link: bridge });
        };
        if let Some(link) = self.link(&name).await? {
            if self.owner.family_of(&link) != Some(net.index) {
                return Err(NetError::Taken { net, link: name });
            }
            if is_as_wanted(&link, net, underlay, controller.header.index) {
                return Ok(());
            }
            self.delete(&link, &name).await?;
        }
        self.check(underlay).await?;
        self.make_vxlan(net, underlay, controller.header.index).await?;
        let set_up = self.set_up(&name, underlay).await;
        if set_up.is_err()
            && let Some(link) = self.ours(net, &name).await?
        {
            self.delete(&link, &name).await?;
        }
        set_up
    }

    /// Looks for the interface that has the address, which the kernel would not, and at its MTU.
    async fn check(&self, underlay: Underlay) -> Result<(), NetError> {
        let addresses = self.handle.address().get().set_address_filter(underlay.local).execute();
        let addresses: Vec<_> = addresses.try_collect().await.map_err(|e| failed("list", "addresses", e))?;
        let Some(address) = addresses.first() else {
            let at = SocketAddr::new(underlay.local, underlay.port);
            return Err(NetError::Underlay { at, source: std::io::ErrorKind::AddrNotAvailable.into() });
        };
        let link = self.handle.link().get().match_index(address.header.index).execute().try_next().await;
        let link = link.map_err(|e| failed("find", "the interface of the host's address", e))?;
        let mtu = link.iter().flat_map(|link| &link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let (mtu, wanted) = (mtu.unwrap_or(MTU_BYTES), MTU_BYTES + overhead(underlay.local));
        if mtu < wanted && underlay.local.is_ipv6() {
            return Err(NetError::Narrow { local: underlay.local, mtu, wanted });
        }
        if mtu < wanted {
            tracing::info!(
                address = %underlay.local, mtu,
                "the hosts' network has a small MTU: the first large datagram between VMs of two hosts is lost; an MTU of {wanted} avoids that"
            );
        }
        Ok(())
    }

    /// Makes the device, down. It is on the bridge at once: what a killed vmmd leaves is whole.
    async fn make_vxlan(&self, net: FamilyNet, underlay: Underlay, bridge: u32) -> Result<(), NetError> {
        let (name, vni) = (net.vxlan(), net.vni());
        let link = LinkVxlan::new(&name, vni)
            .port(underlay.port)
            .learning(false)
            .proxy(true)
            .df(VxlanDf::Unset)
            .address(self.owner.vxlan_mac(net.index).to_vec())
            .mtu(MTU_BYTES)
            .controller(bridge);
        let link = match underlay.local {
            IpAddr::V4(local) => link.local(local),
            IpAddr::V6(local) => link.local6(local),
        };
        let made = self.handle.link().add(link.build()).execute().await;
        made.map_err(|error| match error {
            // The name was free a moment ago.
            error if is(&error, libc::EEXIST) => {
                NetError::Identifier { link: name, vni, port: underlay.port }
            }
            error => failed("create VXLAN device", &name, error),
        })
    }

    /// Closes the port for all that nobody asked for, and opens the device.
    async fn set_up(&self, name: &str, underlay: Underlay) -> Result<(), NetError> {
        let Some(index) = self.index_of(name).await? else {
            return Err(failed("find VXLAN device", name, rtnetlink::Error::RequestFailed));
        };
        sys::without_ipv6(name).map_err(|source| NetError::Ipv6 { name: name.to_owned(), source })?;
        // A port that is down forwards nothing: the kernel cannot flood before this.
        let port = LinkBridgePort::new(index)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .bcast_flood(false)
            // Frames from MACs that are not told to be behind this port are dropped.
            .locked(true)
            .build();
        let set = self.handle.link().set_port(port).execute().await;
        set.map_err(|e| failed("set bridge port", name, e))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        match self.handle.link().change(up).execute().await {
            Err(error) if is(&error, libc::EADDRINUSE) => {
                let at = SocketAddr::new(underlay.local, underlay.port);
                Err(NetError::Underlay { at, source: std::io::ErrorKind::AddrInUse.into() })
            }
            other => other.map_err(|e| failed("open VXLAN device", name, e)),
        }
    }

    /// Tells the family's network that a VM is on the host that receives at this address. It may be
    /// told again, of another host.
    ///
    /// # Errors
    /// [`NetError::Alone`]: [`Self::reach`] comes first. [`NetError::Remote`]: there is no such VM,
    /// it runs here, or the address is not one of another host. Then the network is as before.
    pub async fn add_remote(&self, net: FamilyNet, vmid: u32, host: IpAddr) -> Result<(), NetError> {
        let refused = |reason| NetError::Remote { net, vmid, host, reason };
        let Some(ip) = net.ip(vmid) else { return Err(refused("no family has so many VMs")) };
        let (name, mac) = (net.vxlan(), net.mac_bytes(vmid));
        let Some(link) = self.ours(net, &name).await? else {
            return Err(NetError::Alone { link: name });
        };
        if let Some(reason) = unfit(host, local_of(&link)) {
            return Err(refused(reason));
        }
        let index = link.header.index;
        // First the bridge, which takes an entry only if it has none: of two who say where a VM is,
        // one on this host wins.
        let entry = self.handle.neighbours().add_bridge(index, &mac);
        let entry = entry.state(NeighbourState::Noarp).flags(NeighbourFlags::Controller);
        match entry.execute().await {
            Err(error) if is(&error, libc::EEXIST) => {
                let behind = |entry: &NeighbourMessage| destination(entry).is_none() && told(entry, &mac);
                if !self.entries(index).await?.iter().any(behind) {
                    return Err(refused("it runs on this host; remove it here first"));
                }
            }
            other => other.map_err(|e| failed("tell the bridge the address behind", &name, e))?,
        }
        let told = self.tell(index, &name, (ip, mac), host).await;
        if told.is_err()
            && let Err(error) = self.remove_remote(net, vmid).await
        {
            tracing::error!(link = name, vmid, error = %chain(&error), "entries of a VM elsewhere stay behind");
        }
        told
    }

    async fn tell(
        &self,
        index: u32,
        name: &str,
        (ip, mac): (Ipv4Addr, [u8; 6]),
        host: IpAddr,
    ) -> Result<(), NetError> {
        let entry = self.handle.neighbours().add_bridge(index, &mac).destination(host);
        let entry = entry.state(NeighbourState::Permanent).flags(NeighbourFlags::Own).replace();
        entry.execute().await.map_err(|e| failed("tell where a VM is to", name, e))?;
        let neighbour = self.handle.neighbours().add(index, ip.into()).link_layer_address(&mac).replace();
        neighbour.execute().await.map_err(|e| failed("tell whose an address is to", name, e))
    }

    /// Forgets where a VM is, if it is told to be on another host.
    ///
    /// # Errors
    /// Netlink refused.
    pub async fn remove_remote(&self, net: FamilyNet, vmid: u32) -> Result<(), NetError> {
        let (name, mac) = (net.vxlan(), net.mac_bytes(vmid));
        let (Some(link), Some(ip)) = (self.ours(net, &name).await?, net.ip(vmid)) else { return Ok(()) };
        let index = link.header.index;
        let neighbours = self.handle.neighbours();
        // The kernel finds an entry by these; the address goes first, so that nobody asks for it.
        let entries = [
            neighbours.add(index, ip.into()).message_mut().clone(),
            neighbours.add_bridge(index, &mac).flags(NeighbourFlags::Controller).message_mut().clone(),
            neighbours.add_bridge(index, &mac).flags(NeighbourFlags::Own).message_mut().clone(),
        ];
        for entry in entries {
            match neighbours.del(entry).execute().await {
                Err(error) if !is(&error, libc::ENOENT) => {
                    return Err(failed("forget a VM elsewhere of", &name, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where the family's VMs on other hosts are: those that were told and not forgotten, each with
    /// its host.
    ///
    /// # Errors
    /// Netlink refused.
    pub async fn remotes(&self, net: FamilyNet) -> Result<Vec<(u32, IpAddr)>, NetError> {
        let Some(link) = self.ours(net, &net.vxlan()).await? else { return Ok(Vec::new()) };
        let entries = self.entries(link.header.index).await?;
        let remote = |entry: &NeighbourMessage| Some((net.vmid_of(mac_of(entry)?)?, destination(entry)?));
        let mut remotes: Vec<_> = entries.iter().filter_map(remote).collect();
        remotes.sort_unstable();
        Ok(remotes)
    }

    /// What bridges and VXLAN devices know of MACs behind an interface.
    async fn entries(&self, index: u32) -> Result<Vec<NeighbourMessage>, NetError> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        let entries = request.execute().try_filter(|entry| std::future::ready(entry.header.ifindex == index));
        entries.try_collect().await.map_err(|e| failed("list", "forwarding entries", e))
    }
}

/// How much longer an Ethernet frame's payload is on its way between hosts, bytes: its Ethernet
/// header, VXLAN, UDP and IP.
fn overhead(local: IpAddr) -> u32 {
    14 + 8 + 8 + if local.is_ipv4() { 20 } else { 40 }
}

/// Whether a family's VXLAN device is one that [`Net::reach`] would make.
fn is_as_wanted(link: &LinkMessage, net: FamilyNet, underlay: Underlay, bridge: u32) -> bool {
    let has = |wanted: &InfoVxlan| vxlan_data(link).any(|data| data == wanted);
    // It is opened last, when all else is set.
    link.header.flags.contains(LinkFlags::Up)
        && link.attributes.contains(&LinkAttribute::Controller(bridge))
        && local_of(link) == Some(underlay.local)
        && has(&InfoVxlan::Id(net.vni()))
        && has(&InfoVxlan::Port(underlay.port))
}

fn vxlan_data(link: &LinkMessage) -> impl Iterator<Item = &InfoVxlan> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    data.flatten()
}

/// The address that a VXLAN device sends from.
fn local_of(link: &LinkMessage) -> Option<IpAddr> {
    vxlan_data(link).find_map(|data| match data {
        InfoVxlan::Local(local) => Some(IpAddr::V4(*local)),
        InfoVxlan::Local6(local) => Some(IpAddr::V6(*local)),
        _ => None,
    })
}

/// What speaks against an address as another host's, given this host's own.
fn unfit(host: IpAddr, local: Option<IpAddr>) -> Option<&'static str> {
    let (many, own) = (host.is_multicast() || host == Ipv4Addr::BROADCAST, Some(host) == local);
    if many || own || host.is_unspecified() || host.is_loopback() {
        return Some("that is no address of another host; give each host an address of its own");
    }
    let differ = local.is_some_and(|local| local.is_ipv4() != host.is_ipv4());
    differ.then_some("hosts reach each other by IPv4 or by IPv6; give all of them addresses of one kind")
}

fn mac_of(entry: &NeighbourMessage) -> Option<&[u8]> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.as_slice()),
        _ => None,
    })
}

fn told(entry: &NeighbourMessage, mac: &[u8]) -> bool {
    mac_of(entry) == Some(mac)
}

/// The host that a VXLAN device's entry leads to; a bridge's has none.
fn destination(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(host)) => Some((*host).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(host)) => Some((*host).into()),
        // Entries of forwarding tables come without the kind of their addresses.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            let v4 = || <[u8; 4]>::try_from(bytes.as_slice()).map(|bytes| Ipv4Addr::from(bytes).into());
            let v6 = || <[u8; 16]>::try_from(bytes.as_slice()).map(|bytes| Ipv6Addr::from(bytes).into());
            v4().or_else(|_| v6()).ok()
        }
        _ => None,
    })
}

#[cfg(test)]
#[path = "remote_test.rs"]
mod tests;
