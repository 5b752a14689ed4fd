//! The CPU features that this host has in common with others, for a VM that boots.

use patina_proto::v1::{HostInfo, HostScheduling, HostState, HostStatus};
use patina_snapshot::{
    baseline::{self, Offer},
    facts::HostFacts,
};
use scheduler::grpc::read_facts;

/// What a VM is offered, and which hosts have that in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// What the VM needs of a host.
    pub needs: Box<HostFacts>,
    /// The hosts, this one first.
    pub hosts: Vec<String>,
}

/// Why a VM cannot have a CPU baseline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaselineError {
    /// The scheduler is built in.
    #[error(
        "find a CPU baseline: the scheduler of this vmmd knows no other host; start vmmd with --scheduler, or leave out --cpu-baseline"
    )]
    Alone,
    /// The check of this host failed.
    #[error(
        "find a CPU baseline: vmmd does not know what it can offer to VMs; its log says why `vmm --check-host` failed"
    )]
    UnknownSelf,
    /// No host has that name.
    #[error("the scheduler knows no host {0:?}; `vmctl host ls` lists them")]
    NoHost(String),
    /// Several hosts have that name.
    #[error(
        "{count} hosts have the name {name:?}; give the id of the one that is meant, as `vmctl host ls` shows it"
    )]
    SameName {
        /// The name.
        name: String,
        /// How many have it.
        count: usize,
    },
    /// A host has an older release.
    #[error(
        "find a CPU baseline: host {0} does not say what it offers to VMs; update its vmmd, or name the hosts without it"
    )]
    Silent(String),
    /// What the scheduler says of a host is out of range.
    #[error(
        "find a CPU baseline: what the scheduler says of host {host} is not valid: {why}; update the scheduler"
    )]
    Invalid {
        /// The host.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The hosts are too different.
    #[error("find a CPU baseline")]
    Differ(#[from] baseline::BaselineError),
}

/// The baseline of this host and others. Of this host its own word counts: the scheduler's may be
/// old.
///
/// # Errors
/// A host is not known, does not say what it offers, or is too different.
pub fn of(
    (own_id, own): (&str, &HostFacts),
    listed: &[HostStatus],
    named: &[String],
) -> Result<Baseline, BaselineError> {
    let known: Vec<(&HostStatus, &HostInfo)> =
        listed.iter().filter_map(|host| host.info.as_ref().map(|info| (host, info))).collect();
    let others: Vec<&HostInfo> = if named.is_empty() {
        let may_go_on = |host: &HostStatus| {
            host.state() == HostState::Up && host.scheduling() != HostScheduling::Draining
        };
        known.iter().filter(|(host, _)| may_go_on(host)).map(|(_, info)| *info).collect()
    } else {
        let infos: Vec<&HostInfo> = known.iter().map(|(_, info)| *info).collect();
        named.iter().map(|name| find(&infos, name)).collect::<Result<_, _>>()?
    };
    // By its name; with its id where another has the same.
    let label = |info: &HostInfo| {
        let is_same = |(_, other): &&(&HostStatus, &HostInfo)| other.name == info.name;
        match known.iter().filter(is_same).count() {
            0 | 1 => info.name.clone(),
            _ => format!("{} ({})", info.name, info.id),
        }
    };
    let own_info = known.iter().map(|(_, info)| *info).find(|info| info.id == own_id);
    let own_label = own_info.map_or_else(|| own_id.to_owned(), label);
    let mut seen = vec![own_id];
    let mut read = Vec::new();
    for info in others {
        if seen.contains(&info.id.as_str()) {
            continue;
        }
        seen.push(&info.id);
        let host = label(info);
        let facts = info.facts.clone().ok_or_else(|| BaselineError::Silent(host.clone()))?;
        match read_facts(facts) {
            Ok(facts) => read.push((host, facts)),
            Err(status) => {
                return Err(BaselineError::Invalid { host, why: status.message().to_owned() });
            }
        }
    }
    let offers: Vec<_> = read.iter().map(|(host, facts)| Offer { host, facts }).collect();
    let needs = Box::new(baseline::of(Offer { host: &own_label, facts: own }, &offers)?);
    let hosts = std::iter::once(own_label).chain(read.into_iter().map(|(host, _)| host)).collect();
    Ok(Baseline { needs, hosts })
}

/// The host of that name or id.
fn find<'a>(infos: &[&'a HostInfo], name: &str) -> Result<&'a HostInfo, BaselineError> {
    if let Some(info) = infos.iter().find(|info| info.id == name) {
        return Ok(info);
    }
    let mut found = infos.iter().filter(|info| info.name == name);
    match (found.next(), found.count()) {
        (None, _) => Err(BaselineError::NoHost(name.to_owned())),
        (Some(info), 0) => Ok(info),
        (Some(_), more) => Err(BaselineError::SameName { name: name.to_owned(), count: more + 1 }),
    }
}

#[cfg(test)]
#[path = "baseline_test.rs"]
mod tests;
