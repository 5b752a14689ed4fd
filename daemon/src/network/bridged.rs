//! Tells whether the host's firewall drops packets between the VMs of a family.
//!
//! With `br_netfilter` (Docker and Kubernetes load it) the frames that a bridge passes from one
//! port to another go through the iptables chain FORWARD, whose policy Docker sets to DROP. The
//! policy of an nftables chain of the bridge family applies without `br_netfilter`, too.

mod sys;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::{
    fs, io,
    process::{Command, Stdio},
};

/// The iptables rule that lets the families' frames through.
pub const RULE: &[&str] = &["FORWARD", "-m", "physdev", "--physdev-is-bridged", "-i", "pt+", "-j", "ACCEPT"];

const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const REQUEST_DUMP: u16 = 0x301;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const GET_CHAINS: u16 = (10 << 8) | 4;
const NEW_CHAIN: u16 = (10 << 8) | 3;
const HEADER_BYTES: usize = 16;
const FAMILY_HEADER_BYTES: usize = 4;
const INET: u8 = 1;
const IPV4: u8 = 2;
const BRIDGE: u8 = 7;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// The same number for IPv4 and for bridges.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;

/// A chain whose policy drops the frames between the VMs of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    /// The chain, in words.
    pub chain: String,
    /// A command that lets the frames through.
    pub remedy: String,
}

/// The chains whose policy drops the frames between the VMs of a family; iptables' own only until
/// [`RULE`] is set.
///
/// # Errors
/// The kernel does not say; root is needed.
pub fn bridged_frames_dropped() -> io::Result<Vec<Dropping>> {
    let called = fs::read_to_string(SWITCH).is_ok_and(|text| text.trim() == "1");
    let chains = nft_chains()?.into_iter().filter(|chain| chain.drops && (chain.family == BRIDGE || called));
    let (mut of_iptables, mut others) = (Vec::new(), Vec::new());
    for chain in chains {
        let is_iptables =
            (chain.family, chain.table.as_str(), chain.name.as_str()) == (IPV4, "filter", "FORWARD");
        if is_iptables { of_iptables.push(chain.as_iptables()) } else { others.push(chain.as_nftables()) }
    }
    // Asking for a table would make it, so only where it is there.
    let legacy = fs::read_to_string(LEGACY_TABLES).is_ok_and(|tables| tables.lines().any(|t| t == "filter"));
    if called && legacy && sys::legacy_forward_drops()? {
        let chain = "the iptables chain FORWARD (legacy) has the policy DROP".to_owned();
        of_iptables.push(Dropping { chain, remedy: iptables_remedy() });
    }
    if !of_iptables.is_empty() && !rule_is_set() {
        others.extend(of_iptables);
    }
    Ok(others)
}

fn iptables_remedy() -> String {
    format!("iptables -I {}", RULE.join(" "))
}

/// Whether somebody has set [`RULE`]: iptables itself looks.
fn rule_is_set() -> bool {
    ["iptables", "iptables-legacy", "iptables-nft"].iter().any(|program| {
        let mut command = Command::new(program);
        command.arg("-C").args(RULE).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// A base chain at the hook that frames between two ports pass.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    drops: bool,
}

impl Chain {
    fn as_iptables(&self) -> Dropping {
        let chain = format!("the iptables chain {} has the policy DROP", self.name);
        Dropping { chain, remedy: iptables_remedy() }
    }

    fn as_nftables(&self) -> Dropping {
        let family = match self.family {
            BRIDGE => "bridge",
            INET => "inet",
            _ => "ip",
        };
        let place = format!("{family} {} {}", self.table, self.name);
        Dropping {
            chain: format!("the nftables chain {place} has the policy drop"),
            remedy: format!("nft insert rule {place} iifname '\"pt*\"' oifname '\"pt*\"' accept"),
        }
    }
}

fn nft_chains() -> io::Result<Vec<Chain>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let length = (HEADER_BYTES + FAMILY_HEADER_BYTES) as u32;
    let mut request = Vec::new();
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&GET_CHAINS.to_ne_bytes());
    request.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    // Sequence, port, then: all families.
    request.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket.send(&request, 0)?;
    let mut chains = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, body, later)) = message(rest) {
            match kind {
                DONE => return Ok(chains),
                ERROR => match number(body, i32::from_ne_bytes) {
                    // A kernel without nftables.
                    Some(errno) if [-libc::EOPNOTSUPP, -libc::EINVAL].contains(&errno) => return Ok(chains),
                    Some(errno) if errno != 0 => return Err(io::Error::from_raw_os_error(-errno)),
                    _ => return Ok(chains),
                },
                NEW_CHAIN => chains.extend(chain(body)),
                _ => {}
            }
            rest = later;
        }
    }
}

/// The first message of several: its type, what is in it, and the others.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes, u32::from_ne_bytes)? as usize;
    let kind = number(bytes.get(4..)?, u16::from_ne_bytes)?;
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A base chain that frames between two ports pass.
fn chain(body: &[u8]) -> Option<Chain> {
    let family = *body.first()?;
    let (mut table, mut name, mut hook, mut policy) = (String::new(), String::new(), None, None);
    for (kind, value) in attributes(body.get(FAMILY_HEADER_BYTES..)?) {
        match kind {
            CHAIN_TABLE => table = text(value),
            CHAIN_NAME => name = text(value),
            CHAIN_POLICY => policy = number(value, u32::from_be_bytes),
            CHAIN_HOOK => {
                let (_, value) = attributes(value).find(|(kind, _)| *kind == HOOK_NUMBER)?;
                hook = number(value, u32::from_be_bytes);
            }
            _ => {}
        }
    }
    let passes = matches!(family, INET | IPV4 | BRIDGE) && hook == Some(FORWARD);
    passes.then_some(Chain { family, table, name, drops: policy == Some(DROP) })
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(number(rest, u16::from_ne_bytes)?);
        let kind = number(rest.get(2..)?, u16::from_ne_bytes)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn number<const N: usize, T>(bytes: &[u8], convert: fn([u8; N]) -> T) -> Option<T> {
    bytes.first_chunk::<N>().map(|bytes| convert(*bytes))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}
