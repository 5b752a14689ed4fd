//! Vmids that hosts reserve.

use super::world::{World, demand, id, info, options, running};
use crate::core::{
    api::{Command, CoreError, Effect, Options, Present, VMID_FAMILIES_MAX, VMID_MAX, VmidDemand, Waiter},
    ticket::VmEnd,
    vmids::FORGET_AFTER_MS,
};
use uuid::Uuid;

fn world() -> World {
    let mut world = World::with(Options { lease_ms: 0, ..options() });
    world.host(1, 4);
    world.host(2, 4);
    world
}

#[test]
fn no_vmid_is_given_twice_whoever_asks_and_whatever_is_restarted() {
    let mut world = world();
    assert_eq!(world.reserve(id(1), 3, 0, ""), Ok((1, 3)));
    assert_eq!(world.reserve(id(2), 64, 0, ""), Ok((4, 64)));
    assert_eq!(world.reserve(id(2), 1, 100, ""), Ok((100, 1)));
    world.restart(options());
    assert_eq!(world.reserve(id(1), 1, 0, ""), Err(CoreError::UnknownHost(id(1))));
    world.host(1, 4);
    assert_eq!(world.reserve(id(1), 2, 5, ""), Ok((101, 2)));
}

#[test]
fn the_same_request_of_the_same_host_gets_the_same_vmids() {
    let mut world = world();
    assert_eq!(world.reserve(id(1), 3, 0, "a"), Ok((1, 3)));
    assert_eq!(world.reserve(id(1), 5, 9, "a"), Ok((1, 3)));
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::PutVmids(_))));
    assert_eq!(world.reserve(id(2), 3, 0, "a"), Ok((4, 3)));
    world.restart(options());
    world.host(1, 4);
    assert_eq!(world.reserve(id(1), 3, 0, "a"), Ok((1, 3)));
    // So many requests are remembered, and no more.
    for number in 0..31 {
        world.reserve(id(1), 1, 0, &number.to_string()).unwrap();
    }
    assert_eq!(world.reserve(id(1), 3, 0, "a"), Ok((38, 3)));
}

#[test]
fn what_clones_have_or_have_had_is_not_given() {
    let mut world = world();
    // Before anybody asks for vmids.
    let first = world.request(demand(1, 1)).unwrap();
    world.spend(&first, [7]).unwrap();
    world.ended(id(1), first.id, [7], VmEnd::Ended);
    assert_eq!(world.reserve(id(1), 1, 0, ""), Ok((8, 1)));
    // And after that.
    let second = world.request(demand(1, 1)).unwrap();
    let used = world.spend(&second, [20]).unwrap();
    assert_eq!(world.reserve(id(1), 1, 0, ""), Ok((21, 1)));
    let ticket = id(50);
    let adopted = crate::core::api::Running { ticket, ..running(&used, 30) };
    world.host_with(info(2, 4), vec![adopted]);
    assert_eq!(world.reserve(id(1), 1, 0, ""), Ok((31, 1)));
    let use_by = crate::core::api::UseBy { parent_vmid: 0, vmids: vec![40], host_epoch: None };
    world.request(crate::core::api::Demand { use_by: Some(use_by), ..demand(1, 1) }).unwrap();
    assert_eq!(world.reserve(id(1), 1, 0, ""), Ok((41, 1)));
}

#[test]
fn a_family_that_has_none_left_is_told_how_many() {
    let mut world = world();
    assert_eq!(world.reserve(id(1), 2, VMID_MAX - 4, ""), Ok((VMID_MAX - 4, 2)));
    let none = |count, left| Err(CoreError::NoVmids { family: id(7), count, left });
    assert_eq!(world.reserve(id(1), 4, 0, ""), none(4, 3));
    assert_eq!(world.reserve(id(1), 1, VMID_MAX + 1, ""), none(1, 0));
    assert_eq!(world.reserve(id(1), 1, u32::MAX, ""), none(1, 0));
    assert_eq!(world.reserve(id(1), 3, 0, ""), Ok((VMID_MAX - 2, 3)));
    assert_eq!(world.reserve(id(1), 1, 0, ""), none(1, 0));
    // What a host names is no vmid: no others are lost by that.
    let mut world = self::world();
    world.reserve(id(1), 1, 0, "").unwrap();
    let ticket = world.request(demand(1, 1)).unwrap();
    world.spend(&ticket, [u32::MAX]).unwrap();
    assert_eq!(world.reserve(id(1), 1, 0, ""), none(1, 0));
}

#[test]
fn only_a_registered_host_with_its_epoch() {
    let mut world = world();
    let epoch = world.hosts[&id(1)];
    let mut with = |host_epoch| {
        let demand =
            VmidDemand { family: id(7), host: id(1), host_epoch, count: 1, request: None, at_least: 0 };
        world.answer(|waiter| Command::ReserveVmids(waiter, demand))
    };
    assert_eq!(with(Some(epoch + 1)), Err(CoreError::StaleHost { host: id(1), given: epoch + 1 }));
    assert!(with(Some(epoch)).is_ok());
}

#[test]
fn a_counter_is_forgotten_a_day_after_nothing_lives_of_its_family() {
    let mut world = world();
    let with_master = |world: &mut World, lives: bool| {
        let masters = lives.then(|| id(7)).into_iter().collect();
        world.host_present(info(1, 4), Present { masters: Some(masters), ..Present::default() });
    };
    with_master(&mut world, true);
    world.reserve(id(1), 3, 0, "").unwrap();
    for _ in 0..4 {
        world.pass(FORGET_AFTER_MS);
    }
    // The last one said so; a host that is away may still have it.
    world.down(id(1));
    for _ in 0..4 {
        world.pass(FORGET_AFTER_MS);
    }
    assert!(world.core.vmid_record(id(7)).is_some());
    with_master(&mut world, false);
    world.pass(FORGET_AFTER_MS);
    assert!(world.core.vmid_record(id(7)).is_some(), "it may have lived until now");
    // A clone is there for a while.
    let ticket = world.request(demand(1, 1)).unwrap();
    world.spend(&ticket, [9]).unwrap();
    world.pass(FORGET_AFTER_MS);
    world.ended(id(1), ticket.id, [9], VmEnd::Ended);
    world.pass(FORGET_AFTER_MS);
    assert!(world.core.vmid_record(id(7)).is_some());
    // A scheduler that starts does not know yet what lives.
    world.restart(Options { lease_ms: 0, ..options() });
    world.host(1, 4);
    world.pass(FORGET_AFTER_MS);
    assert!(world.core.vmid_record(id(7)).is_some());
    world.pass(FORGET_AFTER_MS - 1);
    assert!(world.core.vmid_record(id(7)).is_some());
    world.pass(1);
    assert!(world.core.vmid_record(id(7)).is_none() && world.vmids.is_empty());
    assert_eq!(world.reserve(id(1), 1, 4, ""), Ok((4, 1)));
}

#[test]
fn no_host_has_more_counters_than_are_left_for_others() {
    let mut world = world();
    let mut effects = Vec::new();
    let mut ask = |world: &mut World, host: Uuid, number: u128| {
        let family = Uuid::from_u128(1_000_000 + number);
        let demand = VmidDemand { family, host, host_epoch: None, count: 1, request: None, at_least: 0 };
        effects.clear();
        let waiter = Waiter(u64::MAX);
        world.core.apply(world.now, Command::ReserveVmids(waiter, demand), &mut effects);
        match effects.last() {
            Some(Effect::Answer(_, answer)) => answer.clone().err(),
            other => panic!("{other:?}"),
        }
    };
    let half = VMID_FAMILIES_MAX as u128 / 2;
    let refused = (0..VMID_FAMILIES_MAX as u128).find(|number| ask(&mut world, id(1), *number).is_some());
    assert_eq!(refused, Some(half));
    // Another host has its share, and the first one all that it had.
    assert_eq!(ask(&mut world, id(2), 100_000), None);
    assert_eq!(ask(&mut world, id(1), 0), None);
    assert_eq!(ask(&mut world, id(1), half), Some(CoreError::TooManyFamilies));
}
