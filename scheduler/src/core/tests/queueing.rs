//! Who waits, and who is next.

use super::world::{World, demand, id, options, ticket_of};
use crate::core::{
    api::{
        Closed, Command, CoreError, Demand, FAMILY_TICKETS_MAX, FAMILY_WAITING_MAX, Free, KEPT_MAX_MS,
        Misfits, Options, PASSED_OVER_MAX, Reply, Waiter,
    },
    ticket::VmEnd,
};

fn of(family: u128, vms: u32) -> Demand {
    Demand { family: id(family), timeout_ms: 1000, ..demand(vms, vms) }
}

/// A host of 4 CPUs, all of them granted.
fn full() -> (World, uuid::Uuid) {
    let mut world = World::new();
    world.host(1, 4);
    let all = world.request(demand(4, 4)).unwrap().id;
    (world, all)
}

fn granted(world: &World, waiter: Waiter) -> uuid::Uuid {
    ticket_of(world.was_answered(waiter).unwrap()).id
}

#[test]
fn first_come_first_served_in_a_family() {
    let (mut world, all) = full();
    let (large, small) = (world.ask(of(1, 4)), world.ask(of(1, 1)));
    let other = world.request(demand(1, 1)).unwrap_err();
    assert!(matches!(other, CoreError::NoCapacity { .. }));
    world.release(all).unwrap();
    assert!(world.waits(small) && !world.waits(large));
    let large = granted(&world, large);
    world.release(large).unwrap();
    granted(&world, small);
}

#[test]
fn a_small_one_does_not_pass_the_large_one_of_its_family() {
    let mut world = World::new();
    world.host(1, 4);
    world.request(demand(2, 2)).unwrap();
    let (large, small) = (world.ask(of(1, 4)), world.ask(of(1, 1)));
    assert!(world.waits(large) && world.waits(small));
    let hasty = Demand { timeout_ms: 0, ..of(1, 1) };
    assert!(matches!(world.request(hasty), Err(CoreError::NoCapacity { .. })));
    // Of another family it does.
    world.request(Demand { timeout_ms: 0, ..of(2, 1) }).unwrap();
    // And when the large one has given up, the other is next.
    world.apply(Command::Gone(large));
    granted(&world, small);
}

#[test]
fn families_take_turns() {
    let (mut world, all) = full();
    let first: Vec<_> = (0..4).map(|_| world.ask(of(1, 1))).collect();
    let second: Vec<_> = (0..2).map(|_| world.ask(of(2, 1))).collect();
    world.release(all).unwrap();
    assert!(!world.waits(first[1]) && world.waits(first[2]));
    assert!(!world.waits(second[1]));
}

#[test]
fn a_request_that_was_passed_over_too_often_keeps_what_becomes_free() {
    let mut world = World::new();
    world.host(1, 4);
    let mut held: Vec<_> = (0..4).map(|_| world.request(of(3, 1)).unwrap().id).collect();
    let large = world.ask(of(1, 3));
    let rest: Vec<_> = (0..20).map(|n| world.ask(of(10 + n, 1))).collect();
    for _ in 0..PASSED_OVER_MAX {
        world.release(held.remove(0)).unwrap();
        let next = rest.iter().filter(|waiter| !world.waits(**waiter)).count() - 1;
        held.push(granted(&world, rest[next]));
        assert!(world.waits(large));
    }
    // From now on nobody passes, though there is room.
    world.release(held.remove(0)).unwrap();
    world.release(held.remove(0)).unwrap();
    assert_eq!(world.core.free(1, 64).cpus, 2);
    let hasty = world.request(Demand { timeout_ms: 0, ..of(99, 1) });
    assert!(matches!(hasty, Err(CoreError::NoCapacity { free: Free { cpus: 2, .. }, .. })));
    world.release(held.remove(0)).unwrap();
    granted(&world, large);
    // And then it goes on.
    world.release(held.remove(0)).unwrap();
    assert!(!world.waits(rest[PASSED_OVER_MAX as usize]));
}

#[test]
fn a_starved_request_that_leaves_lets_the_others_go_on() {
    let mut world = World::new();
    world.host(1, 4);
    let held: Vec<_> = (0..3).map(|_| world.request(of(3, 1)).unwrap().id).collect();
    let large = world.ask(of(1, 4));
    for n in 0..u128::from(PASSED_OVER_MAX) {
        let passing = world.request(of(100 + n, 1)).unwrap().id;
        world.release(passing).unwrap();
    }
    let next = world.ask(of(200, 1));
    assert!(world.waits(next) && world.waits(large));
    world.pass(999);
    assert!(world.waits(next));
    world.pass(1);
    granted(&world, next);
    assert!(matches!(world.was_answered(large), Err(CoreError::NoCapacity { min_vms: 4, .. })));
    assert_eq!(held.len(), 3);
}

#[test]
fn what_a_starved_request_can_not_use_is_for_the_others() {
    let mut world = World::new();
    world.host(1, 4);
    world.host(2, 4);
    world.request(Demand { hosts: vec![id(1)], ..of(3, 1) }).unwrap();
    let large = world.ask(Demand { hosts: vec![id(1)], ..of(1, 4) });
    for n in 0..u128::from(PASSED_OVER_MAX) {
        let passing = world.request(Demand { hosts: vec![id(1)], ..of(100 + n, 1) }).unwrap().id;
        world.release(passing).unwrap();
    }
    assert!(world.waits(large));
    let kept = world.ask(Demand { hosts: vec![id(1)], ..of(200, 1) });
    assert!(world.waits(kept));
    let elsewhere = world.request(of(201, 2)).unwrap();
    assert!(elsewhere.places.contains_key(&id(2)) && elsewhere.places.len() == 1);
    // The host that it waits for goes away: nothing is kept for it there.
    world.pass(500);
    world.down(id(1));
    let everywhere = world.ask(of(202, 2));
    assert!(!world.waits(everywhere));
}

#[test]
fn what_was_kept_on_a_host_is_for_those_who_were_tried_in_vain() {
    let mut world = World::new();
    world.host(1, 4);
    world.host(2, 1);
    let on_first = |family, vms| Demand { hosts: vec![id(1)], ..of(family, vms) };
    world.request(on_first(3, 3)).unwrap();
    let large = world.ask(on_first(1, 4));
    for n in 0..u128::from(PASSED_OVER_MAX) {
        let passing = world.request(on_first(100 + n, 1)).unwrap().id;
        world.release(passing).unwrap();
    }
    let kept = world.ask(on_first(200, 1));
    assert!(world.waits(kept) && world.core.queue.untried_after(0).is_none(), "it was tried");
    world.apply(Command::Gone(large));
    granted(&world, kept);
}

#[test]
fn time_runs_out_to_the_millisecond() {
    let (mut world, _) = full();
    let waiter = world.ask(of(1, 2));
    assert_eq!(world.core.next_deadline(), Some(world.now + 1000));
    world.pass(999);
    assert!(world.waits(waiter));
    world.pass(1);
    let error = world.was_answered(waiter).unwrap_err();
    assert_eq!(
        error,
        CoreError::NoCapacity {
            min_vms: 2,
            free: Free::default(),
            closed: Closed::default(),
            misfits: Misfits::default()
        }
    );
}

#[test]
fn what_expires_at_that_moment_is_still_in_time() {
    let mut world = World::new();
    world.host(1, 4);
    world.request(Demand { ttl_ms: Some(1000), ..demand(4, 4) }).unwrap();
    let waiter = world.ask(of(1, 4));
    world.beat(id(1));
    world.pass(1000);
    granted(&world, waiter);
}

#[test]
fn the_same_request_id_is_the_same_ticket() {
    let (mut world, all) = full();
    let again = || Demand { request_id: Some("a".into()), ..of(1, 2) };
    let (first, second) = (world.ask(again()), world.ask(again()));
    assert_eq!(world.core.counts().waiting, 1);
    // Another family's is another one.
    let foreign = world.ask(Demand { request_id: Some("a".into()), ..of(2, 2) });
    world.release(all).unwrap();
    let ticket = granted(&world, first);
    assert_eq!(ticket, granted(&world, second));
    assert_ne!(ticket, granted(&world, foreign));
    assert_eq!(world.request(again()).unwrap().id, ticket);
    // Whatever became of it.
    world.release(ticket).unwrap();
    assert_eq!(world.request(again()).unwrap(), world.get(ticket));
}

#[test]
fn who_asked_first_may_leave_and_who_asked_again_goes_on() {
    let (mut world, all) = full();
    let again = |timeout_ms| Demand { request_id: Some("a".into()), timeout_ms, ..of(1, 2) };
    let (first, second) = (world.ask(again(5000)), world.ask(again(1000)));
    assert!(matches!(world.request(again(0)), Err(CoreError::NoCapacity { .. })));
    world.apply(Command::Gone(first));
    world.beat(id(1));
    assert!(world.waits(second));
    world.release(all).unwrap();
    granted(&world, second);

    let (mut world, _) = full();
    let (first, second) = (world.ask(again(5000)), world.ask(again(1000)));
    world.pass(1000);
    assert!(world.waits(first) && !world.waits(second));
    world.apply(Command::Gone(first));
    assert_eq!(world.core.counts().waiting, 0);
}

#[test]
fn what_was_refused_is_not_remembered() {
    let (mut world, all) = full();
    let again = || Demand { request_id: Some("a".into()), timeout_ms: 0, ..of(1, 2) };
    assert!(world.request(again()).is_err());
    world.release(all).unwrap();
    assert!(world.request(again()).is_ok());
}

#[test]
fn a_family_has_only_so_many_tickets_and_requests() {
    let mut world = World::new();
    world.host(1, 2000);
    // Not through the world, which looks at all tickets after every command.
    let mut effects = Vec::new();
    for n in 0..FAMILY_TICKETS_MAX as u64 {
        let command = Command::Request { waiter: Waiter(1_000_000 + n), demand: of(1, 1) };
        world.core.apply(world.now, command, &mut effects);
    }
    let ask = |world: &mut World, n: u64, demand| {
        let mut effects = Vec::new();
        let waiter = Waiter(2_000_000 + n);
        world.core.apply(world.now, Command::Request { waiter, demand }, &mut effects);
        effects.pop()
    };
    let refused = |error| Some(crate::core::api::Effect::Answer(Waiter(2_000_000), Err(error)));
    let full = CoreError::TooManyWaiting { call: "request a ticket", most: FAMILY_WAITING_MAX };
    assert_eq!(ask(&mut world, 0, of(1, 1)), refused(CoreError::TooManyTickets));
    assert!(matches!(
        ask(&mut world, 1, of(2, 1)),
        Some(crate::core::api::Effect::Answer(_, Ok(Reply::Ticket(_))))
    ));

    let mut world = World::new();
    for n in 0..FAMILY_WAITING_MAX as u64 {
        assert_eq!(ask(&mut world, 1 + n, of(1, 1)), None);
    }
    assert_eq!(ask(&mut world, 0, of(1, 1)), refused(full));
}

/// Family 1 waits for all of host 1, which others hold some of, and has been passed over as often
/// as it may be.
fn starved() -> (World, Vec<uuid::Uuid>, Waiter) {
    let mut world = World::with(Options { lease_ms: 0, ttl_ms: 3_600_000, ..options() });
    world.host(1, 4);
    let held = (0..3).map(|n| world.request(of(3 + n, 1)).unwrap().id).collect();
    let large = world.ask(patient(1, 4));
    pass_over(&mut world);
    (world, held, large)
}

fn patient(family: u128, vms: u32) -> Demand {
    Demand { timeout_ms: 86_400_000, ..of(family, vms) }
}

fn pass_over(world: &mut World) {
    for n in 0..u128::from(PASSED_OVER_MAX) {
        let passing = world.request(of(100 + n, 1)).unwrap().id;
        world.release(passing).unwrap();
    }
}

#[test]
fn nothing_is_kept_for_ever() {
    let (mut world, held, large) = starved();
    let next = world.ask(patient(200, 1));
    world.pass(KEPT_MAX_MS - 1);
    assert!(world.waits(next));
    world.pass(1);
    let next = granted(&world, next);
    world.release(next).unwrap();
    // It may be passed over as often as before, and no more.
    assert!(world.waits(large));
    for n in 1..u128::from(PASSED_OVER_MAX) {
        let passing = world.request(of(300 + n, 1)).unwrap().id;
        world.release(passing).unwrap();
    }
    let kept_out = world.ask(patient(201, 1));
    assert!(world.waits(kept_out));
    // What becomes free in that time is kept for it.
    for ticket in held {
        world.release(ticket).unwrap();
    }
    granted(&world, large);
    assert!(world.waits(kept_out));
}

#[test]
fn nothing_is_kept_for_what_only_its_own_family_can_free() {
    let mut world = World::with(Options { lease_ms: 0, ttl_ms: 86_400_000, ..options() });
    world.host(1, 4);
    let own = world.request(of(1, 3)).unwrap();
    let own = world.spend(&own, [1, 2, 3]).unwrap();
    let large = world.ask(patient(1, 2));
    for _ in 0..3 {
        pass_over(&mut world);
    }
    assert!(world.waits(large));
    // As soon as some of it has ended, the rest is to come.
    let other = world.request(patient(2, 1)).unwrap();
    world.ended(id(1), own.id, [1], VmEnd::Ended);
    assert_eq!(world.held(id(1)), 3);
    let kept_out = world.ask(patient(201, 1));
    assert!(world.waits(kept_out) && world.waits(large));
    world.release(other.id).unwrap();
    granted(&world, large);
    assert!(world.waits(kept_out));
}
