//! Whether VMs of one host fit another.

use super::present::{HostInfo, Identity};
use patina_snapshot::facts::{FactsError, HostFacts};

/// Why VMs of a host do not fit another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The host of the VMs does not say what they rely on.
    #[error("nobody knows what VMs of their host rely on")]
    UnknownParent,
    /// The other host does not say what it has.
    #[error("nobody knows what it has, as its release does not say")]
    Unknown,
    /// The kinds of KVM differ.
    #[error("it has another kind of KVM")]
    KvmKind,
    /// The CPUs differ too much.
    #[error("it has another kind of CPU")]
    Cpu,
    /// The sizes of pages differ.
    #[error("its memory has pages of another size")]
    PageSize,
    /// A state component is missing.
    #[error("its CPU lacks state that the VMs may use")]
    Xcr0,
    /// A feature is missing, or is not the same.
    #[error("its CPU lacks features that the VMs have seen, or has them otherwise")]
    Cpuid,
    /// The TSC has another frequency.
    #[error("its TSC has another frequency, which it cannot scale")]
    Tsc,
    /// A host cannot run VMs whose memory has not arrived, or cannot lend it.
    #[error("it or their host cannot run VMs before their memory has arrived")]
    LazyMemory,
    /// Only one of the hosts has a network for families over several hosts, or their ports differ.
    #[error("only one of it and their host has --overlay, or the ports differ")]
    Overlay,
    /// Families get their networks from other ranges.
    #[error("it and their host do not have the same --network")]
    Network,
    /// One of them is called by way of a Unix socket, and they are on two machines.
    #[error("it or their host listens on a Unix socket only, and they are on two machines")]
    Unreachable,
}

impl From<FactsError> for Misfit {
    fn from(error: FactsError) -> Self {
        match error {
            FactsError::KvmKind { .. } => Self::KvmKind,
            FactsError::Cpu { .. } => Self::Cpu,
            FactsError::PageSize { .. } => Self::PageSize,
            FactsError::Xcr0 { .. } => Self::Xcr0,
            FactsError::Cpuid(_) => Self::Cpuid,
            FactsError::Tsc { .. } => Self::Tsc,
        }
    }
}

/// Whether a VM of `parent` can go on on another host. It needs what `parent` offers, unless
/// `needs` says otherwise: it may have a CPU baseline. The rule is that by which the other host
/// judges a VM when it arrives.
///
/// # Errors
/// The first reason why not.
pub fn fits(parent: &HostInfo, needs: Option<&HostFacts>, host: &HostInfo) -> Result<(), Misfit> {
    let lends = parent.facts.as_ref().ok_or(Misfit::UnknownParent)?;
    let has = host.facts.as_ref().ok_or(Misfit::Unknown)?;
    has.host.check(needs.unwrap_or(&lends.host))?;
    if !(lends.lazy_memory && has.lazy_memory) {
        return Err(Misfit::LazyMemory);
    }
    if overlay_port(parent) != overlay_port(host) {
        return Err(Misfit::Overlay);
    }
    if parent.network != host.network {
        return Err(Misfit::Network);
    }
    // The path of a Unix socket is another one on another machine.
    let is_local = |info: &HostInfo| info.address.starts_with("unix:");
    let reach = !(is_local(parent) || is_local(host)) || are_one_machine(parent, host);
    if reach { Ok(()) } else { Err(Misfit::Unreachable) }
}

/// The port of a host's overlay; None: it has none.
fn overlay_port(info: &HostInfo) -> Option<&str> {
    info.overlay.rsplit_once(':').map(|(_, port)| port)
}

fn are_one_machine(one: &HostInfo, other: &HostInfo) -> bool {
    let same = |(one, other): (&Identity, &Identity)| one.machine == other.machine;
    one.identity.as_ref().zip(other.identity.as_ref()).is_some_and(same)
}

/// Hosts that VMs do not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misfits {
    /// How many there are.
    pub hosts: u64,
    /// The name of the first of them, and why they do not fit it.
    pub first: Option<(String, Misfit)>,
}

impl Misfits {
    /// One more.
    pub(super) fn add(&mut self, name: &str, why: Misfit) {
        self.hosts = self.hosts.saturating_add(1);
        self.first.get_or_insert_with(|| (name.to_owned(), why));
    }

    /// Which hosts these are, as part of a message; empty: none.
    pub(super) fn said(&self) -> String {
        let Some((name, why)) = &self.first else { return String::new() };
        let (hosts, rest) = match self.hosts {
            0 | 1 => ("host does", ""),
            _ => ("hosts do", ", the first"),
        };
        format!("{} {hosts} not fit the VM that is cloned{rest}: {name}: {why}", self.hosts)
    }
}
