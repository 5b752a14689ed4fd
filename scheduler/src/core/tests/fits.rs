//! Only hosts that fit the VM that is cloned are granted.

use super::world::{World, demand, facts, id, image, info, options, ticket_of};
use crate::core::{
    api::{Beat, Command, CoreError, Demand, Free, HostInfo, Present},
    facts::{self, Misfit},
    present::{Facts, Identity},
    record::Scheduling,
    ticket::{HostId, Policy, Ticket},
};
use patina_control::config::KvmKind;
use patina_snapshot::{cpuid::CpuidEntry, facts::HostFacts};
use std::sync::Arc;

/// Of a VM that needs what its host offers.
fn fits(parent: &HostInfo, host: &HostInfo) -> Result<(), Misfit> {
    facts::fits(parent, None, host)
}

fn places(ticket: &Ticket) -> Vec<(u128, u32)> {
    ticket.places.iter().map(|(host, vms)| (host.as_u128(), *vms)).collect()
}

fn host(number: u128, cpus: u32, facts: Option<Box<Facts>>) -> HostInfo {
    HostInfo { facts, ..info(number, cpus) }
}

/// Host 2 has what host 1 has, and more; host 3 has something else; nobody knows what host 4 has.
fn world() -> World {
    let mut world = World::new();
    for info in [host(1, 2, Some(facts(1))), host(2, 4, Some(facts(3))), host(3, 8, Some(facts(4)))] {
        world.host_with(info, Vec::new());
    }
    world.host(4, 16);
    world
}

fn of(parent: u128, min: u32, most: u32) -> Demand {
    Demand { parent: Some(id(parent)), ..demand(min, most) }
}

#[test]
fn a_ticket_is_granted_only_where_its_vms_fit() {
    for policy in [Policy::Pack, Policy::Spread] {
        let granted = |parent, min| {
            let all = Demand { policy: Some(policy), ..of(parent, min, 100) };
            places(&world().request(all).unwrap())
        };
        assert_eq!(granted(1, 6), [(1, 2), (2, 4)]);
        assert_eq!(granted(2, 4), [(2, 4)]);
        assert_eq!(granted(3, 1), [(3, 8)]);
        assert_eq!(granted(4, 1), [(4, 16)]);
        let named = Demand { hosts: vec![id(1), id(3), id(4)], policy: Some(policy), ..of(1, 1, 100) };
        assert_eq!(places(&world().request(named).unwrap()), [(1, 2)]);
        let prefers = Demand { prefer: Some(id(3)), policy: Some(policy), ..of(1, 1, 1) };
        assert!(!world().request(prefers).unwrap().places.contains_key(&id(3)));
    }
    assert_eq!(world().request(demand(30, 30)).unwrap().vms(), 30, "no parent is named");
}

/// A VM with a CPU baseline needs less than its host offers.
#[test]
fn a_family_with_a_baseline_is_granted_on_hosts_that_offer_less_than_its_own() {
    let needs = |number| Some(Arc::new(facts(number).host));
    for policy in [Policy::Pack, Policy::Spread] {
        let granted = |needs, min, hosts: &[u128]| {
            let hosts = hosts.iter().copied().map(id).collect();
            let all = Demand { policy: Some(policy), needs, hosts, ..of(2, min, 100) };
            world().request(all).map(|ticket| places(&ticket))
        };
        assert_eq!(granted(None, 4, &[]).unwrap(), [(2, 4)]);
        assert_eq!(granted(needs(1), 6, &[]).unwrap(), [(1, 2), (2, 4)]);
        assert_eq!(granted(needs(1), 1, &[1, 3]).unwrap(), [(1, 2)]);
        let Err(CoreError::NoFit { misfits, .. }) = granted(None, 1, &[1]) else { panic!() };
        assert_eq!(misfits.first, Some(("host-1".into(), Misfit::Cpuid)));
        let Err(CoreError::NoFit { misfits, .. }) = granted(needs(3), 1, &[1]) else { panic!() };
        assert_eq!(misfits.first, Some(("host-1".into(), Misfit::Cpuid)));
        // Its own host always fits it, whatever is said.
        assert_eq!(granted(needs(4), 1, &[2]).unwrap(), [(2, 4)]);
    }
    // Nobody knows whether the host can lend the VM's memory.
    let of_unknown = Demand { needs: needs(1), hosts: vec![id(1)], ..of(4, 1, 1) };
    assert!(matches!(world().request(of_unknown), Err(CoreError::NoFit { .. })));
}

#[test]
fn a_refusal_says_how_many_hosts_do_not_fit_and_why() {
    let mut world = world();
    let Err(CoreError::NoFit { misfits, .. }) = world.request(of(2, 5, 5)) else { panic!() };
    assert_eq!((misfits.hosts, misfits.first), (3, Some(("host-1".into(), Misfit::Cpuid))));
    // Not even with the others there would be enough.
    assert!(matches!(world.request(of(2, 100, 100)), Err(CoreError::Impossible { .. })));
    let Err(CoreError::NoFit { misfits, .. }) = world.request(of(9, 1, 1)) else { panic!() };
    assert_eq!((misfits.hosts, misfits.first), (4, Some(("host-1".into(), Misfit::UnknownParent))));
    let Err(CoreError::NoFit { misfits, .. }) = world.request(of(4, 17, 17)) else { panic!() };
    assert_eq!(misfits.first, Some(("host-1".into(), Misfit::UnknownParent)));
    let named = Demand { hosts: vec![id(4)], ..of(1, 1, 1) };
    let Err(CoreError::NoFit { misfits, .. }) = world.request(named) else { panic!() };
    assert_eq!((misfits.hosts, misfits.first), (1, Some(("host-4".into(), Misfit::Unknown))));
}

#[test]
fn without_room_where_it_fits_others_are_only_counted() {
    let mut world = world();
    world.request(of(2, 4, 4)).unwrap();
    let Err(CoreError::NoCapacity { free, closed, misfits, .. }) = world.request(of(2, 1, 1)) else {
        panic!()
    };
    assert_eq!((free, closed, misfits.hosts), (Free::default(), Default::default(), 3));
    // One that fits may be granted again: that is no reason to give up.
    world.schedule(id(2), Scheduling::Cordoned).unwrap();
    let Err(CoreError::NoCapacity { closed, misfits, .. }) = world.request(of(2, 1, 1)) else { panic!() };
    assert_eq!((closed.cordoned, misfits.hosts), (1, 3));
    // Those that it does not fit are not counted as closed, too.
    world.schedule(id(3), Scheduling::Cordoned).unwrap();
    let Err(CoreError::NoCapacity { closed, misfits, .. }) = world.request(of(2, 1, 1)) else { panic!() };
    assert_eq!((closed.cordoned, misfits.hosts), (1, 2));
}

#[test]
fn who_waits_is_served_when_a_host_fits() {
    let mut world = world();
    let patient = |parent| Demand { family: id(100 + parent), timeout_ms: 1000, ..of(parent, 1, 1) };
    world.request(of(2, 4, 4)).unwrap();
    world.request(of(3, 8, 8)).unwrap();
    let (second, third) = (world.ask(patient(2)), world.ask(patient(3)));
    // What becomes free of a host that fits neither is for neither.
    let elsewhere = world.request(of(4, 1, 16)).unwrap();
    world.release(elsewhere.id).unwrap();
    assert!(world.waits(second) && world.waits(third));
    world.host_with(host(5, 1, Some(facts(3))), Vec::new());
    assert!(world.was_answered(second).is_ok());
    assert!(world.waits(third));
    // Its own host was started again, on a CPU that shows less: now it fits a host that was there.
    world.host_with(host(1, 2, Some(facts(1))), Vec::new());
    assert!(world.waits(third));
    world.host_with(host(3, 8, Some(facts(1))), Vec::new());
    assert!(world.was_answered(third).is_ok());
}

#[test]
fn what_a_host_says_when_it_comes_decides_for_others() {
    let mut world = World::new();
    world.host_with(host(2, 4, Some(facts(3))), Vec::new());
    let waiter = world.ask(Demand { vcpus: 2, max_cpus: 2, timeout_ms: 1000, ..of(1, 1, 2) });
    assert!(world.waits(waiter), "nobody knows host 1");
    // It has no room itself.
    world.host_with(host(1, 1, Some(facts(1))), Vec::new());
    assert_eq!(places(&ticket_of(world.was_answered(waiter).unwrap())), [(2, 1)]);
}

#[test]
fn a_host_that_is_not_back_after_a_restart_may_make_it_possible() {
    let mut world = world();
    world.restart(options());
    world.host_with(host(1, 2, Some(facts(1))), Vec::new());
    let patient = |min| Demand { timeout_ms: 1000, ..of(1, min, min) };
    let waiter = world.ask(patient(6));
    assert!(world.waits(waiter), "host 2 may come back");
    assert!(world.request(patient(7)).is_err(), "and host 3 does not help");
    world.host_with(host(2, 4, Some(facts(3))), Vec::new());
    assert!(world.was_answered(waiter).is_ok());
}

/// Three hosts with as much free; family 7 has a VM on the second, others on the others.
fn alike() -> World {
    let mut world = World::new();
    for number in 1..=3 {
        let host = world.host_with(host(number, 4, Some(facts(1))), Vec::new());
        let family = if number == 2 { id(7) } else { id(8) };
        world.request(Demand { family, hosts: vec![host], ..demand(1, 1) }).unwrap();
    }
    world
}

#[test]
fn of_hosts_that_are_alike_those_are_taken_that_hold_pages_of_the_family() {
    for policy in [Policy::Pack, Policy::Spread] {
        let granted = |family: u128, parent: Option<HostId>, hosts: &[u128], vms| {
            let hosts = hosts.iter().copied().map(id).collect();
            let policy = Some(policy);
            let demand = Demand { family: id(family), parent, hosts, policy, ..demand(vms, vms) };
            places(&alike().request(demand).unwrap())
        };
        assert_eq!(granted(7, None, &[], 1), [(2, 1)]);
        assert_eq!(granted(7, None, &[1, 2, 3], 1), [(2, 1)]);
        // The VM that is cloned has pages, too.
        assert_eq!(granted(9, Some(id(3)), &[], 1), [(3, 1)]);
        assert_eq!(granted(9, Some(id(1)), &[], 1), [(1, 1)]);
        // More than one host has room for.
        let many = granted(7, None, &[], 4);
        assert!(many.contains(&(2, if policy == Policy::Pack { 3 } else { 2 })), "{many:?}");
    }
}

/// Four hosts that are alike; these have kernel 1, and of them host 2 has root file system 2.
fn with_images(hosts: &[u128]) -> World {
    let mut world = World::new();
    for number in 1..=4 {
        let images = hosts.contains(&number).then(|| image(1));
        let images = images.into_iter().chain((number == 2).then(|| image(2))).collect();
        let present = Present { images: Some(images), ..Present::default() };
        world.host_present(host(number, 4, Some(facts(1))), present);
    }
    world
}

#[test]
fn of_hosts_that_are_alike_those_are_taken_that_have_the_images() {
    for policy in [Policy::Pack, Policy::Spread] {
        let demand = |images: &[u128], vms| {
            let images = images.iter().copied().map(image).collect();
            Demand { images, policy: Some(policy), ..demand(vms, vms) }
        };
        let granted = |has: &[u128], images: &[u128], hosts: &[u128], vms| {
            let hosts = hosts.iter().copied().map(id).collect();
            places(&with_images(has).request(Demand { hosts, ..demand(images, vms) }).unwrap())
        };
        for number in [2, 3] {
            assert_eq!(granted(&[number], &[1], &[], 1), [(number, 1)]);
            assert_eq!(granted(&[number], &[1], &[1, 2, 3], 1), [(number, 1)]);
        }
        // All of them: a host that must fetch one is as good as one that must fetch two.
        assert_eq!(granted(&[2, 3], &[1, 2], &[], 1), [(2, 1)]);
        let none = granted(&[], &[], &[], 1);
        assert_eq!(granted(&[3], &[1, 2], &[], 1), none);
        assert_eq!(granted(&[3], &[3], &[], 1), none, "nobody has it");
        // A missing one is fetched: no host is left out.
        assert_eq!(granted(&[3], &[1], &[], 16).len(), 4);
        assert_eq!(granted(&[3], &[1], &[1, 2], 1).len(), 1);

        // Pages are more than images, and the policy is more than both.
        let mut world = with_images(&[3]);
        world.request(Demand { hosts: vec![id(1)], ..demand(&[], 1) }).unwrap();
        for number in 2..=4 {
            world.request(Demand { family: id(8), hosts: vec![id(number)], ..demand(&[], 1) }).unwrap();
        }
        assert_eq!(places(&world.request(demand(&[1], 1)).unwrap()), [(1, 1)]);
        let mut world = with_images(&[3]);
        let fill = |number, vms| Demand { family: id(8), hosts: vec![id(number)], ..demand(&[], vms) };
        let by_policy = if policy == Policy::Pack { 2 } else { 1 };
        world.request(fill(2, 3)).unwrap();
        world.request(fill(3, 2)).unwrap();
        world.request(fill(4, 1)).unwrap();
        assert_eq!(places(&world.request(demand(&[1], 1)).unwrap()), [(by_policy, 1)]);
    }
}

#[test]
fn images_are_as_the_host_has_said_them_last() {
    let mut world = with_images(&[2]);
    let taken = |world: &mut World| {
        let demand = Demand { images: [image(1)].into(), policy: Some(Policy::Spread), ..demand(1, 1) };
        let ticket = world.request(demand).unwrap();
        world.release(ticket.id).unwrap();
        places(&ticket)[0].0
    };
    let none = taken(&mut with_images(&[]));
    assert_eq!(taken(&mut world), 2);
    let beat = |world: &mut World, number, images: Option<&[u128]>| {
        let images = images.map(|images| images.iter().copied().map(image).collect());
        let (host, epoch) = (id(number), world.hosts[&id(number)]);
        world.apply(Command::HostBeat { host, epoch, beat: Beat { images, ..Beat::default() } });
        assert!(world.effects.is_empty(), "it is not stored: {:?}", world.effects);
    };
    beat(&mut world, 2, None);
    assert_eq!(taken(&mut world), 2, "the same as before");
    beat(&mut world, 2, Some(&[5]));
    assert_eq!(taken(&mut world), none);
    beat(&mut world, 3, Some(&[1, 5]));
    assert_eq!(taken(&mut world), 3);
    assert_eq!(world.core.hosts()[2].images, [image(1), image(5)].into());
    // One that registers again says them again.
    world.host_with(host(3, 4, Some(facts(1))), Vec::new());
    assert_eq!(taken(&mut world), none);
}

#[test]
fn each_fact_that_differs_is_a_reason() {
    let feature = CpuidEntry { function: 7, ebx: 1, ..CpuidEntry::default() };
    let mut base = host(1, 4, Some(facts(1)));
    base.overlay = "192.0.2.1:4789".into();
    let change = |change: &dyn Fn(&mut Facts)| {
        let mut other = HostInfo { overlay: "192.0.2.2:4789".into(), ..base.clone() };
        change(other.facts.as_mut().unwrap());
        fits(&base, &other).err()
    };
    let fixed = |facts: &mut Facts, khz| {
        facts.host = HostFacts { tsc_khz: khz, can_scale_tsc: false, ..facts.host.clone() };
    };
    assert_eq!(change(&|_| {}), None);
    assert_eq!(change(&|facts| facts.host.cpuid[0].ebx |= 2), None);
    assert_eq!(change(&|facts| fixed(facts, 0)), None);
    assert_eq!(change(&|facts| facts.host.kvm_kind = KvmKind::Svm), Some(Misfit::KvmKind));
    assert_eq!(change(&|facts| facts.host.family = 9), Some(Misfit::Cpu));
    assert_eq!(change(&|facts| facts.host.page_bytes = 16_384), Some(Misfit::PageSize));
    assert_eq!(change(&|facts| facts.host.cpuid.clear()), Some(Misfit::Cpuid));
    assert_eq!(change(&|facts| facts.lazy_memory = false), Some(Misfit::LazyMemory));
    let mut rich = base.clone();
    let has = rich.facts.as_mut().unwrap();
    has.host = HostFacts { xcr0: 7, tsc_khz: 2_000_000, cpuid: vec![feature], ..has.host.clone() };
    let of_rich = |khz, xcr0| {
        let mut other = rich.clone();
        let facts = other.facts.as_mut().unwrap();
        (facts.host.tsc_khz, facts.host.xcr0) = (khz, xcr0);
        fits(&rich, &other).err()
    };
    assert_eq!(of_rich(2_000_000, 7), None);
    assert_eq!(of_rich(2_000_000, 3), Some(Misfit::Xcr0));
    assert_eq!(of_rich(2_100_000, 7), Some(Misfit::Tsc));
    let mut unwilling = facts(1);
    unwilling.lazy_memory = false;
    assert_eq!(fits(&HostInfo { facts: Some(unwilling), ..base.clone() }, &base), Err(Misfit::LazyMemory));
    for overlay in ["", "192.0.2.2:9"] {
        let other = HostInfo { overlay: overlay.into(), ..base.clone() };
        assert_eq!(fits(&base, &other), Err(Misfit::Overlay), "{overlay}");
        assert_eq!(fits(&other, &base), Err(Misfit::Overlay), "{overlay}");
        assert_eq!(fits(&other, &other), Ok(()), "{overlay}");
    }
    let other = HostInfo { network: "10.0.0.0/8".into(), ..base.clone() };
    assert_eq!(fits(&base, &other), Err(Misfit::Network));
}

#[test]
fn hosts_that_cannot_call_each_other_do_not_fit() {
    let at = |address: &str, machine: &str| {
        let machine = machine.to_owned();
        let identity =
            Identity { instance: String::new(), boot: String::new(), machine, folder: String::new() };
        let address = address.to_owned();
        HostInfo { address, identity: Some(identity), ..host(1, 4, Some(facts(1))) }
    };
    let (tcp, unix, next) = (at("tcp:192.0.2.1:7", "a"), at("unix:/run/v", "a"), at("unix:/run/w", "a"));
    let far = at("tcp:192.0.2.2:7", "b");
    for (one, other) in [(&tcp, &unix), (&unix, &next), (&tcp, &far)] {
        assert_eq!((fits(one, other), fits(other, one)), (Ok(()), Ok(())));
    }
    assert_eq!(fits(&unix, &far), Err(Misfit::Unreachable));
    assert_eq!(fits(&far, &unix), Err(Misfit::Unreachable));
    let nobody = HostInfo { identity: None, ..unix.clone() };
    assert_eq!(fits(&nobody, &nobody), Err(Misfit::Unreachable), "nobody knows whether they are one");
}
