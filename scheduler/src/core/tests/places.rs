//! Where VMs go.

use super::world::{World, demand, id, info, options};
use crate::core::{
    api::{Closed, CoreError, Demand, Free, Misfits, Options},
    ticket::{Policy, Ticket},
};

fn places(ticket: &Ticket) -> Vec<(u128, u32)> {
    ticket.places.iter().map(|(host, vms)| (host.as_u128(), *vms)).collect()
}

fn world(hosts: &[(u128, u32)]) -> World {
    let mut world = World::new();
    for (number, cpus) in hosts {
        world.host(*number, *cpus);
    }
    world
}

#[test]
fn packs_into_the_fullest_host_that_fits() {
    let mut world = world(&[(1, 8), (2, 4), (3, 2)]);
    assert_eq!(places(&world.request(demand(3, 3)).unwrap()), [(2, 3)]);
    assert_eq!(places(&world.request(demand(1, 1)).unwrap()), [(2, 1)]);
    assert_eq!(places(&world.request(demand(1, 2)).unwrap()), [(3, 2)]);
}

#[test]
fn packs_into_as_few_hosts_as_possible() {
    let mut world = world(&[(1, 8), (2, 4), (3, 2)]);
    assert_eq!(places(&world.request(demand(10, 10)).unwrap()), [(1, 8), (3, 2)]);
}

#[test]
fn spreads_evenly_from_the_emptiest() {
    let mut world = world(&[(1, 8), (2, 4), (3, 2)]);
    let spread = |min, most| Demand { policy: Some(Policy::Spread), ..demand(min, most) };
    assert_eq!(places(&world.request(spread(4, 4)).unwrap()), [(1, 4)]);
    assert_eq!(places(&world.request(spread(4, 4)).unwrap()), [(1, 2), (2, 2)]);
    assert_eq!(places(&world.request(spread(6, 9)).unwrap()), [(1, 2), (2, 2), (3, 2)]);
}

#[test]
fn grants_as_many_as_fit_and_nothing_below_the_least() {
    let mut world = world(&[(1, 4), (2, 4)]);
    assert_eq!(world.request(demand(2, 100)).unwrap().vms(), 8);
    let refused = world.request(demand(1, 100)).unwrap_err();
    assert_eq!(
        refused,
        CoreError::NoCapacity {
            min_vms: 1,
            free: Free::default(),
            closed: Closed::default(),
            misfits: Misfits::default()
        }
    );
    let large = Demand { max_cpus: 7, vcpus: 3, min_vms: 1, ..demand(1, 7) };
    assert!(matches!(world.request(large).unwrap_err(), CoreError::NoCapacity { .. }));
}

#[test]
fn max_cpus_bounds_the_vms_and_256_does() {
    let mut world = world(&[(1, 1000)]);
    let wide = |max_cpus| Demand { max_cpus, vcpus: 3, ..demand(1, 0) };
    assert_eq!(world.request(wide(11)).unwrap().vms(), 3);
    assert_eq!(world.request(demand(1, 60_000)).unwrap().vms(), 256);
    let few = world.request(wide(2)).unwrap_err();
    assert_eq!(few, CoreError::FewCpus { max_cpus: 2, most: 0, vcpus: 3, min_vms: 1 });
    let many = CoreError::FewCpus { max_cpus: 60_000, most: 256, vcpus: 1, min_vms: 257 };
    assert_eq!(world.request(demand(257, 60_000)).unwrap_err(), many);
    let small = Demand { min_cpus_per_vm: 2, ..demand(1, 1) };
    let error = CoreError::SmallVms { vcpus: 1, min_cpus_per_vm: 2 };
    assert_eq!(world.request(small).unwrap_err(), error);
}

#[test]
fn what_empty_hosts_do_not_have_is_impossible_at_once() {
    let mut world = world(&[(1, 4), (2, 4)]);
    let patient = |min| Demand { timeout_ms: 1000, ..demand(min, min) };
    world.request(demand(8, 8)).unwrap();
    let error = CoreError::Impossible { min_vms: 9, vcpus: 1, memory_mib: 64 };
    assert_eq!(world.request(patient(9)).unwrap_err(), error);
    let large = Demand { memory_mib: 257, ..patient(1) };
    assert!(matches!(world.request(large), Err(CoreError::Impossible { .. })));
    let named = Demand { hosts: vec![id(1)], ..patient(5) };
    assert!(matches!(world.request(named), Err(CoreError::Impossible { .. })));
    let possible = world.ask(patient(8));
    assert!(world.waits(possible));
}

#[test]
fn a_host_that_is_away_may_come_back() {
    let mut world = world(&[(1, 4), (2, 4)]);
    world.down(id(2));
    let patient = |min| Demand { timeout_ms: 1000, ..demand(min, min) };
    let waiter = world.ask(patient(8));
    assert!(world.waits(waiter));
    assert!(matches!(world.request(patient(9)), Err(CoreError::Impossible { .. })));
    world.host(2, 4);
    assert!(world.was_answered(waiter).is_ok());
}

#[test]
fn without_hosts_a_patient_request_waits_for_one() {
    let mut world = World::new();
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    let waiter = world.ask(Demand { timeout_ms: 1000, ..demand(1, 1) });
    assert!(world.waits(waiter));
    world.host(1, 1);
    assert!(world.was_answered(waiter).is_ok());
}

#[test]
fn only_named_hosts_that_live() {
    let mut world = world(&[(1, 4), (2, 4), (3, 4)]);
    world.down(id(3));
    let named = Demand { hosts: vec![id(3), id(2), id(2)], ..demand(1, 100) };
    assert_eq!(places(&world.request(named).unwrap()), [(2, 4)]);
}

#[test]
fn capacity_counts_overcommit_memory_and_vms() {
    let mut world = World::with(Options { cpu_percent: 150, memory_percent: 50, ..options() });
    let mut host = info(1, 5);
    host.memory_mib = 1000;
    world.host_with(host.clone(), Vec::new());
    let state = world.core.hosts().remove(0);
    assert_eq!((state.cpus, state.memory_mib), (7, 500));
    assert_eq!(world.request(demand(1, 100)).unwrap().vms(), 7);
    world.release(*world.store.keys().next().unwrap()).unwrap();
    let heavy = Demand { memory_mib: 200, ..demand(1, 100) };
    assert_eq!(world.request(heavy).unwrap().vms(), 2);

    let mut world = World::new();
    host.max_vms = Some(3);
    world.host_with(host, Vec::new());
    assert_eq!(world.request(demand(1, 100)).unwrap().vms(), 3);
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
}

#[test]
fn clones_by_number_are_all_on_one_host() {
    let mut world = world(&[(1, 4), (2, 6)]);
    let by = |vmids: std::ops::Range<u32>| {
        let (count, vmids) = (vmids.end - vmids.start, vmids.collect());
        let use_by = crate::core::api::UseBy { parent_vmid: 0, vmids, host_epoch: None };
        Demand { use_by: Some(use_by), ..demand(count, count) }
    };
    assert!(matches!(world.request(by(1..8)), Err(CoreError::Impossible { .. })));
    assert_eq!(places(&world.request(by(1..4)).unwrap()), [(1, 3)]);
    assert_eq!(places(&world.request(by(11..16)).unwrap()), [(2, 5)]);
    assert!(matches!(world.request(by(21..23)), Err(CoreError::NoCapacity { .. })));
    let free = world.core.free(1, 64);
    assert_eq!((free.cpus, free.memory_mib, free.vms), (2, 128, 2));
}

#[test]
fn the_preferred_host_is_taken_first_and_the_policy_is_for_the_rest() {
    for policy in [Policy::Pack, Policy::Spread] {
        let mut world = world(&[(1, 8), (2, 4), (3, 2)]);
        let like = |host, min| Demand { prefer: Some(id(host)), policy: Some(policy), ..demand(min, min) };
        // Neither the fullest nor the emptiest.
        assert_eq!(places(&world.request(like(2, 3)).unwrap()), [(2, 3)]);
        // As far as it has room.
        let rest = if policy == Policy::Pack { vec![(2, 1), (3, 2)] } else { vec![(1, 2), (2, 1)] };
        assert_eq!(places(&world.request(like(2, 3)).unwrap()), rest);
        // It has none, it is not known, or it may not be chosen: as if none was named.
        let full = world.request(like(2, 1)).unwrap();
        assert!(!full.places.contains_key(&id(2)));
        assert_eq!(world.request(like(9, 1)).unwrap().vms(), 1);
        let elsewhere = Demand { hosts: vec![id(1)], ..like(3, 1) };
        assert_eq!(places(&world.request(elsewhere).unwrap()), [(1, 1)]);
        let both = Demand { hosts: vec![id(1), id(3)], ..like(1, 1) };
        assert_eq!(places(&world.request(both).unwrap()), [(1, 1)]);
    }
}

#[test]
fn a_preferred_host_counts_once_and_not_if_it_is_kept_for_others() {
    let mut world = world(&[(1, 2), (2, 2)]);
    let like = |min, most| Demand { prefer: Some(id(1)), ..demand(min, most) };
    assert!(matches!(world.request(like(5, 5)), Err(CoreError::Impossible { .. })));
    assert_eq!(places(&world.request(like(1, 9)).unwrap()), [(1, 2), (2, 2)]);
    assert!(matches!(world.request(like(1, 1)), Err(CoreError::NoCapacity { .. })));
}
