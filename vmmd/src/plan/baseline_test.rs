use super::*;
use patina_control::config::KvmKind;
use patina_snapshot::cpuid::{CpuidEntry, Register, register};
use scheduler::host::facts::message;

fn facts(features: u32) -> HostFacts {
    let features = CpuidEntry { function: 7, ebx: features, ..CpuidEntry::default() };
    HostFacts { page_bytes: 4096, ..HostFacts::of_cpuid(KvmKind::Vmx, vec![features]) }
}

fn host(id: &str, features: u32) -> HostStatus {
    let facts = Some(message(&facts(features), true));
    let info = HostInfo { id: id.into(), name: format!("host-{id}"), facts, ..HostInfo::default() };
    let mut host = HostStatus { info: Some(info), ..HostStatus::default() };
    host.set_state(HostState::Up);
    host.set_scheduling(HostScheduling::Open);
    host
}

fn change(mut host: HostStatus, change: impl FnOnce(&mut HostInfo)) -> HostStatus {
    change(host.info.as_mut().unwrap());
    host
}

/// The features in common, and with whom; this host is a.
fn common(listed: &[HostStatus], named: &[&str]) -> Result<(u32, String), BaselineError> {
    let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
    let Baseline { needs, hosts } = of(("a", &facts(0b1111)), listed, &named)?;
    Ok((register(&needs.cpuid, 7, 0, Register::Ebx), hosts.join(" ")))
}

#[test]
fn it_is_of_all_hosts_that_are_up_and_not_drained() {
    // What the scheduler knows of this host does not count.
    let mut hosts = vec![host("a", 0), host("b", 0b0111), host("c", 0b1110), host("d", 0), host("e", 0)];
    hosts[3].set_state(HostState::Suspect);
    hosts[4].set_scheduling(HostScheduling::Draining);
    assert_eq!(common(&hosts, &[]), Ok((0b0110, "host-a host-b host-c".into())));
    // One that is cordoned may be granted something again.
    hosts[4].set_scheduling(HostScheduling::Cordoned);
    assert_eq!(common(&hosts, &[]), Ok((0, "host-a host-b host-c host-e".into())));
    // This host counts whatever the scheduler says of it.
    hosts[0].set_state(HostState::Suspect);
    assert_eq!(common(&hosts[..2], &[]), Ok((0b0111, "host-a host-b".into())));
    assert_eq!(common(&hosts[1..2], &[]), Ok((0b0111, "a host-b".into())));
}

#[test]
fn it_is_of_this_host_and_those_that_are_named() {
    let mut hosts = vec![host("a", 0), host("b", 0b0111), host("c", 0b1110)];
    // A name or an id, each host once, in any state.
    hosts[1].set_state(HostState::Lost);
    assert_eq!(common(&hosts, &["host-b", "b", "a"]), Ok((0b0111, "host-a host-b".into())));
    assert_eq!(common(&hosts, &["c"]), Ok((0b1110, "host-a host-c".into())));
    let twins = [host("a", 0), host("b", 7), change(host("c", 14), |info| info.name = "host-b".into())];
    assert_eq!(common(&twins, &["c"]), Ok((0b1110, "host-a host-b (c)".into())));
    let same = BaselineError::SameName { name: "host-b".into(), count: 2 };
    assert_eq!(common(&twins, &["host-b"]), Err(same));
    assert_eq!(common(&twins, &["x"]), Err(BaselineError::NoHost("x".into())));
}

#[test]
fn a_host_that_cannot_be_taken_in_is_named() {
    let with = |other| common(&[host("a", 0), host("b", 7), other], &[]).unwrap_err();
    let silent = with(change(host("c", 7), |info| info.facts = None));
    assert_eq!(silent, BaselineError::Silent("host-c".into()));
    let invalid = with(change(host("c", 7), |info| info.facts.as_mut().unwrap().cpu_family = 1 << 20));
    assert!(matches!(&invalid, BaselineError::Invalid { host, .. } if host == "host-c"), "{invalid}");
    let amd = with(change(host("c", 7), |info| info.facts.as_mut().unwrap().kvm_kind = 3));
    let BaselineError::Differ(error) = amd else { panic!("{amd}") };
    assert_eq!((error.one.as_str(), error.other.as_str()), ("host-a", "host-c"));
}
