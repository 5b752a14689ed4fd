//! Finds settings of a host that break the families' networks: other networks with the same
//! addresses, and a firewall that drops their packets. It reads them from the kernel over netlink
//! and changes nothing.

mod bridged;

pub use bridged::{Dropping, RULE, bridged_frames_dropped};

use futures::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr},
};

/// A network: its first address, and how many bits of it count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    base: u32,
    prefix: u8,
}

impl Network {
    /// The network that `address` is in. `prefix` is 32 at most.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { base: address.to_bits() & mask(prefix), prefix }
    }

    fn overlaps(self, other: Self) -> bool {
        let shared = mask(self.prefix.min(other.prefix));
        self.base & shared == other.base & shared
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// What an interface has, or what leads nowhere, within the families' range.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    Address(Ipv4Addr, u8),
    Route(Network, u32, RouteType),
}

/// The addresses and routes, in every table, of interfaces that are no family's and that overlap
/// `range`, in words: one for each. Routes that come with an address are left out; default routes
/// do not count, nor does what is shorter than /2.
///
/// # Errors
/// The kernel does not say what there is.
pub async fn foreign(range: Network) -> io::Result<Vec<String>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let look = async {
        let links: Vec<_> = handle.link().get().execute().try_collect().await?;
        let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = handle.route().get(v4).execute().try_collect().await?;
        Ok::<_, rtnetlink::Error>((links, addresses, routes))
    };
    let looked = look.await;
    connection.abort();
    let (links, addresses, routes) = looked.map_err(|error| match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    })?;
    let links: BTreeMap<u32, Link> = links.iter().map(|link| (link.header.index, Link::of(link))).collect();
    Ok(judge(range, &links, &addresses, &routes))
}

#[derive(Debug, Default)]
struct Link {
    name: String,
    family: bool,
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let (mut name, mut mac) = (String::new(), None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name.clone_from(text),
                LinkAttribute::Address(address) => mac = address.first().copied(),
                _ => {}
            }
        }
        // As `vmmd` makes them: pt and a number, and a MAC that begins with 06. Those of another
        // vmmd are no strangers either.
        let numbered = name.strip_prefix("pt").is_some_and(|number| number.parse::<u16>().is_ok());
        let family = numbered && mac == Some(0x06);
        Self { name, family }
    }
}

fn judge(
    range: Network,
    links: &BTreeMap<u32, Link>,
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
) -> Vec<String> {
    let own: Vec<(u32, Ipv4Addr, u8)> = addresses.iter().filter_map(address).collect();
    let is_family = |index: u32| links.get(&index).is_some_and(|link| link.family);
    let name = |index: u32| links.get(&index).map_or("no interface", |link| link.name.as_str());
    let mut found: Vec<(String, Use)> = Vec::new();
    for &(index, ip, prefix) in own.iter().filter(|(index, ..)| !is_family(*index)) {
        // The address is taken, and its network lies behind that interface.
        if Network::of(ip, prefix).overlaps(range) && counts(prefix) {
            found.push((name(index).to_owned(), Use::Address(ip, prefix)));
        }
    }
    for route in routes {
        let Some((index, network, table)) = parts(route) else { continue };
        let with_an_address = own.iter().any(|&(of, ip, prefix)| {
            Some(of) == index && (network == Network::of(ip, prefix) || network == Network::of(ip, 32))
        });
        let passive = matches!(route.header.kind, RouteType::Broadcast | RouteType::Multicast);
        if with_an_address || passive || index.is_some_and(is_family) || !counts(network.prefix) {
            continue;
        }
        if network.overlaps(range) {
            found.push((
                index.map_or("no interface", name).to_owned(),
                Use::Route(network, table, route.header.kind),
            ));
        }
    }
    let mut words: Vec<String> = found.iter().map(|(name, use_)| say(name, use_)).collect();
    words.dedup();
    words
}

/// Halves and quarters of all addresses are default routes in other words.
fn counts(prefix: u8) -> bool {
    prefix >= 2
}

fn say(name: &str, use_: &Use) -> String {
    match use_ {
        Use::Address(ip, prefix) => format!("address {ip}/{prefix} on {name}"),
        Use::Route(network, 254, RouteType::Unicast) => format!("route to {network} on {name}"),
        Use::Route(network, table, RouteType::Unicast) => {
            format!("route to {network} on {name} (table {table})")
        }
        Use::Route(network, table, kind) => {
            format!("{} route to {network} (table {table})", format!("{kind:?}").to_lowercase())
        }
    }
}

fn address(message: &AddressMessage) -> Option<(u32, Ipv4Addr, u8)> {
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    // With a peer, `Address` is the peer's, and that is where the network is.
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => v4(ip),
        _ => None,
    });
    (message.header.family == AddressFamily::Inet)
        .then_some(())
        .and(ip)
        .map(|ip| (message.header.index, ip, message.header.prefix_len))
}

/// A route's interface, where it leads, and its table.
fn parts(message: &RouteMessage) -> Option<(Option<u32>, Network, u32)> {
    let (mut index, mut table, mut to) = (None, u32::from(message.header.table), Ipv4Addr::UNSPECIFIED);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => index = Some(*interface),
            RouteAttribute::MultiPath(hops) => index = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            _ => {}
        }
    }
    (message.header.address_family == AddressFamily::Inet)
        .then(|| (index, Network::of(to, message.header.destination_prefix_length), table))
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
