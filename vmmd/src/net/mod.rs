//! The families' networks, over netlink only.
//!
//! Creating a bridge claims its name: the kernel lets only one creator of a name succeed, so
//! several `vmmd`s share a machine without communication. The bridge's MAC address (`06`, three
//! bytes of the state folder's hash, the family's number) shows its owner; it is set when the
//! bridge is created. The alias shows the owner to people. A tap needs no owner: it ends with its
//! vmm.
//!
//! Nothing here routes between families, and nothing forbids it: on a host with
//! `net.ipv4.ip_forward=1`, families can reach each other through the host.

mod error;
pub mod ports;
mod remote;
pub mod sys;

pub use error::NetError;
pub use remote::{Underlay, VXLAN_PORT};

use self::error::{failed, is};
use crate::plan::address::{FAMILY_PREFIX, FamilyNet, Range, VMID_MAX, VXLAN_SUFFIX, mac_text};
use futures::TryStreamExt;
use patina_control::config::Neighbours;
use patina_daemon::{
    chain,
    network::{self, Dropping},
};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec,
    packet_route::{
        link::{BridgeStpState, InfoBridge, LinkAttribute, LinkMessage},
        neighbour::{NeighbourFlags, NeighbourState},
    },
};
use sha2::{Digest, Sha256};
use std::{io, net::IpAddr, os::fd::OwnedFd, path::Path};
use tokio::task::{JoinHandle, spawn_blocking};

const MTU_BYTES: u32 = 1500;
/// Taps that are on no bridge yet: the kernel numbers them.
const SPARE_TAPS: &str = "pts%d";

/// Whose interfaces: the hash of a state folder's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    hash: [u8; 8],
}

impl Owner {
    /// The `vmmd` of this state folder (canonical path).
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
        let mut hash = [0; 8];
        hash.copy_from_slice(&digest[..8]);
        Self { hash }
    }

    /// Of the family's bridge.
    fn mac(&self, index: u16) -> [u8; 6] {
        let [a, b, c, ..] = self.hash;
        let [d, e] = index.to_be_bytes();
        [0x06, a, b, c, d, e]
    }

    /// Of the family's VXLAN device.
    fn vxlan_mac(&self, index: u16) -> [u8; 6] {
        let [_, rest @ ..] = self.mac(index);
        let [a, b, c, d, e] = rest;
        [0x0a, a, b, c, d, e]
    }

    fn alias(&self, family: &str) -> String {
        format!("patina {:016x} family {family}", u64::from_be_bytes(self.hash))
    }

    /// The number of the family, when a link is a bridge or a VXLAN device of this owner's.
    fn family_of(&self, link: &LinkMessage) -> Option<u16> {
        let (mut index, mut is_vxlan) = (None, false);
        let mut mac: &[u8] = &[];
        let mut alias = None;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => {
                    let vxlan = name.strip_suffix(VXLAN_SUFFIX);
                    is_vxlan = vxlan.is_some();
                    let number = vxlan.unwrap_or(name).strip_prefix("pt");
                    index = number.and_then(|number| number.parse::<u16>().ok());
                }
                LinkAttribute::Address(address) => mac = address,
                LinkAttribute::IfAlias(text) => alias = Some(text),
                _ => {}
            }
        }
        let of = |index| if is_vxlan { self.vxlan_mac(index) } else { self.mac(index) };
        let index = index.filter(|index| mac == of(*index))?;
        // The alias comes a moment after the bridge: a vmmd that was killed in between leaves none.
        let prefix = self.alias("");
        alias.is_none_or(|alias| alias.starts_with(&prefix)).then_some(index)
    }
}

/// The host's interfaces.
#[derive(Debug)]
pub struct Net {
    handle: Handle,
    owner: Owner,
    connection: JoinHandle<()>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Net {
    /// Opens netlink in the caller's network namespace.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(owner: Owner) -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Open)?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, owner, connection })
    }

    /// Makes the family's bridge with the host's address on it. When a later step fails, the bridge
    /// is gone again.
    ///
    /// # Errors
    /// [`NetError::exists`]: the number is taken on this machine. Else netlink refused.
    pub async fn claim(&self, net: FamilyNet, family: &str) -> Result<(), NetError> {
        let name = net.bridge();
        let bridge = LinkBridge::new(&name)
            .address(self.owner.mac(net.index).to_vec())
            .mtu(MTU_BYTES)
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            // No queries of the host's own: each frame that a guest must look at costs it time.
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .build();
        self.handle.link().add(bridge).execute().await.map_err(|e| failed("create bridge", &name, e))?;
        let finished = self.furnish(net, &name, family).await;
        if finished.is_err()
            && let Err(error) = self.release(net).await
        {
            tracing::error!(bridge = name, error = %chain(&error), "a half-made bridge stays behind");
        }
        finished
    }

    async fn furnish(&self, net: FamilyNet, name: &str, family: &str) -> Result<(), NetError> {
        sys::without_ipv6(name).map_err(|source| NetError::Ipv6 { name: name.to_owned(), source })?;
        let Some(index) = self.index_of(name).await? else {
            return Err(failed("find bridge", name, rtnetlink::Error::RequestFailed));
        };
        let alias = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::IfAlias(self.owner.alias(family)))
            .build();
        self.handle.link().change(alias).execute().await.map_err(|e| failed("name bridge", name, e))?;
        self.handle
            .address()
            .add(index, IpAddr::V4(net.gateway()), FAMILY_PREFIX)
            .execute()
            .await
            .map_err(|e| failed("set address of bridge", name, e))
    }

    /// Makes a VM's tap and puts it on its family's bridge. It goes when the last descriptor of it
    /// is closed.
    ///
    /// # Errors
    /// It cannot be made, or the bridge is gone.
    pub async fn tap(&self, net: FamilyNet, vmid: u32) -> Result<OwnedFd, NetError> {
        // Both wait for the kernel's one lock of all interfaces, which others of the host may hold
        // for long.
        let (tap, index) = self.make_tap(net.tap(vmid)).await?;
        self.attach(net, vmid, index).await?;
        Ok(tap)
    }

    /// Makes a tap that is on no bridge yet, under a name that is only its for now; and its index,
    /// for [`Self::attach`].
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn spare_tap(&self) -> Result<(OwnedFd, u32), NetError> {
        self.make_tap(SPARE_TAPS.to_owned()).await
    }

    async fn make_tap(&self, name: String) -> Result<(OwnedFd, u32), NetError> {
        let wanted = name.clone();
        let make = spawn_blocking(move || {
            let (tap, name) =
                sys::create_tap(&name).map_err(|source| NetError::Tap { name: name.clone(), source })?;
            match sys::without_ipv6(&name) {
                Ok(()) => Ok((tap, name)),
                Err(source) => Err(NetError::Ipv6 { name, source }),
            }
        });
        let stopped = |_| NetError::Tap { name: wanted, source: io::ErrorKind::Interrupted.into() };
        let (tap, name) = make.await.map_err(stopped)??;
        let Some(index) = self.index_of(&name).await? else {
            return Err(failed("find tap", &name, rtnetlink::Error::RequestFailed));
        };
        Ok((tap, index))
    }

    /// Names the tap of this index as a VM's, and puts it on its family's bridge.
    ///
    /// # Errors
    /// The tap or the bridge is gone.
    pub async fn attach(&self, net: FamilyNet, vmid: u32, index: u32) -> Result<(), NetError> {
        let (name, bridge) = (net.tap(vmid), net.bridge());
        let Some(controller) = self.index_of(&bridge).await? else {
            return Err(failed("find bridge", &bridge, rtnetlink::Error::RequestFailed));
        };
        // The kernel takes the name first, while the tap is down.
        let link = LinkUnspec::new_with_index(index).name(name.clone()).mtu(MTU_BYTES);
        let link = link.controller(controller).up().build();
        self.handle.link().change(link).execute().await.map_err(|e| failed("attach tap", &name, e))?;
        // The bridge knows whose the address is before the VM has sent anything, and for ever: no
        // frame to it goes to all.
        self.handle
            .neighbours()
            .add_bridge(index, &net.mac_bytes(vmid))
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .execute()
            .await
            .map_err(|e| failed("tell the bridge the address of tap", &name, e))
    }

    /// The VMs on a family's network.
    #[must_use]
    pub fn neighbours(&self, net: FamilyNet) -> Neighbours {
        Neighbours {
            first_ip: net.ip(0).unwrap_or(net.base),
            first_mac: net.mac(0),
            vms: VMID_MAX + 1,
            gateway_mac: mac_text(self.owner.mac(net.index)),
        }
    }

    /// Deletes a family's VXLAN device and bridge, those that are there and ours.
    ///
    /// # Errors
    /// Netlink refused.
    pub async fn release(&self, net: FamilyNet) -> Result<(), NetError> {
        for name in [net.vxlan(), net.bridge()] {
            if let Some(link) = self.ours(net, &name).await? {
                self.delete(&link, &name).await?;
            }
        }
        Ok(())
    }

    /// Deletes this owner's bridges and VXLAN devices that are of no living family; the numbers of
    /// the families.
    ///
    /// # Errors
    /// Netlink refused.
    pub async fn reap(&self, living: &[u16]) -> Result<Vec<u16>, NetError> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        let mut gone = Vec::new();
        for link in links.map_err(|e| failed("list", "interfaces", e))? {
            if let Some(index) = self.owner.family_of(&link).filter(|index| !living.contains(index)) {
                self.delete(&link, &format!("of pt{index}")).await?;
                if !gone.contains(&index) {
                    gone.push(index);
                }
            }
        }
        Ok(gone)
    }

    async fn delete(&self, link: &LinkMessage, name: &str) -> Result<(), NetError> {
        match self.handle.link().del(link.header.index).execute().await {
            Err(error) if !is(&error, libc::ENODEV) => Err(failed("delete interface", name, error)),
            _ => Ok(()),
        }
    }

    /// A family's interface of this name, when it is this owner's.
    async fn ours(&self, net: FamilyNet, name: &str) -> Result<Option<LinkMessage>, NetError> {
        Ok(self.link(name).await?.filter(|link| self.owner.family_of(link) == Some(net.index)))
    }

    async fn index_of(&self, name: &str) -> Result<Option<u32>, NetError> {
        Ok(self.link(name).await?.map(|link| link.header.index))
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetError> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(link) => Ok(link),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(failed("find", name, error)),
        }
    }
}

/// Says in the log what of this host stands in the way of the families: others that use their
/// addresses, and a firewall that drops what they say to each other. Nothing of it keeps vmmd from
/// running.
pub async fn warn_of_conflicts(range: &Range) {
    match network::foreign(range.network()).await {
        Ok(found) => found.iter().for_each(|found| {
            tracing::warn!(
                network = %range,
                "another network uses the families' addresses: {found}; guests and that network may not reach each other, or the host \
                 either of them: give vmmd another range with --network"
            );
        }),
        Err(error) => tracing::warn!(error = %chain(&error), "look for other networks in the families' range"),
    }
    match spawn_blocking(network::bridged_frames_dropped).await {
        Ok(Ok(dropping)) => dropping.iter().for_each(|Dropping { chain, remedy }| {
            tracing::warn!(
                "{chain}, and bridges ask it: the VMs of a family do not reach each other: `{remedy}`"
            );
        }),
        Ok(Err(error)) => {
            tracing::debug!(error = %chain(&error), "look for a firewall on the families' bridges")
        }
        Err(error) => tracing::debug!(error = %chain(&error), "look for a firewall on the families' bridges"),
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
