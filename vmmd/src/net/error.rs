//! Why a network operation did not work.

use crate::plan::address::FamilyNet;
use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// Why a network operation did not work.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The netlink socket cannot be opened.
    #[error("open netlink")]
    Open(#[source] io::Error),
    /// The kernel refuses a netlink request.
    #[error("{operation} {link}{}", rights(.source))]
    Netlink {
        /// The request: `create bridge`, for example.
        operation: &'static str,
        /// The name of the interface.
        link: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// IPv6 could not be switched off.
    #[error("switch off IPv6 on {name}")]
    Ipv6 {
        /// The name of the interface.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The family's number is another family's on this host.
    #[error(
        "take the network {net} of a family of another host: {link} is another family's here; end that family, or start the clones on other hosts"
    )]
    Taken {
        /// The family's network.
        net: FamilyNet,
        /// The interface that is there.
        link: String,
    },
    /// Another VXLAN device has the family's network identifier.
    #[error(
        "create {link}: another VXLAN device of this host has the identifier {vni} on UDP port {port}; give each vmmd of a host another --network, or a network namespace of its own"
    )]
    Identifier {
        /// The name of the interface.
        link: String,
        /// The identifier.
        vni: u32,
        /// The UDP port of both.
        port: u16,
    },
    /// The host's address, or its port, cannot be used.
    #[error(
        "receive VXLAN at {at}; give all hosts a UDP port that is free, and each host an address that it has"
    )]
    Underlay {
        /// The address.
        at: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The hosts' network has a smaller MTU than VXLAN over IPv6 can do with.
    #[error(
        "receive VXLAN at {local}: its interface has an MTU of {mtu}, and what guests send over IPv6 needs {wanted}; raise the MTU on all hosts, or give them IPv4 addresses"
    )]
    Narrow {
        /// The host's address.
        local: IpAddr,
        /// The MTU of its interface, bytes.
        mtu: u32,
        /// The smallest one that will do, bytes.
        wanted: u32,
    },
    /// The family was not taken to other hosts.
    #[error("find {link}; the family is not on other hosts yet")]
    Alone {
        /// The VXLAN device that is not there.
        link: String,
    },
    /// A VM cannot be on another host as it is said.
    #[error("send to VM {vmid} of {net} through {host}: {reason}")]
    Remote {
        /// The family's network.
        net: FamilyNet,
        /// The VM's number.
        vmid: u32,
        /// The host's address, as it was said.
        host: IpAddr,
        /// What speaks against it, and what to do.
        reason: &'static str,
    },
    /// The tap could not be made.
    #[error("create tap {name}{}", rights(.source))]
    Tap {
        /// The tap's name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn rights(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run vmmd as root, or with CAP_NET_ADMIN",
        io::ErrorKind::NotFound => "; load the modules: modprobe tun; modprobe bridge; modprobe vxlan",
        _ => "",
    }
}

impl NetError {
    /// The interface, or what it needs, was taken already.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error() == Some(libc::EEXIST),
            Self::Taken { .. } | Self::Identifier { .. } => true,
            _ => false,
        }
    }
}

pub(super) fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

pub(super) fn failed(operation: &'static str, link: &str, error: rtnetlink::Error) -> NetError {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    };
    NetError::Netlink { operation, link: link.to_owned(), source }
}
