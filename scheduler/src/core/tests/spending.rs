//! What becomes of a granted ticket.

use super::world::{World, demand, everything, id, named, options, usage};
use crate::core::{
    api::{Command, CoreError, Demand, Effect, Listing, Named, Options, Usage, UseBy},
    ticket::{State, VmEnd},
};

fn world() -> World {
    let mut world = World::new();
    world.host(1, 4);
    world.host(2, 4);
    world
}

#[test]
fn granted_used_ended_released() {
    let mut world = world();
    let ticket = world.request(demand(3, 3)).unwrap();
    assert_eq!((ticket.state, ticket.vms(), world.core.live(&ticket)), (State::Granted, 3, 0));
    let used = world.spend(&ticket, [1, 2, 3]).unwrap();
    assert_eq!((used.state, used.parent_vmid, used.epoch), (State::Used, Some(0), ticket.epoch));
    assert_eq!(world.core.live(&used), 3);
    world.ended(id(1), ticket.id, [1, 2], VmEnd::Ended);
    world.ended(id(1), ticket.id, [2], VmEnd::Killed);
    assert_eq!((world.core.live(&world.get(ticket.id)), world.held(id(1))), (1, 1));
    world.ended(id(1), ticket.id, [3], VmEnd::Killed);
    let over = world.get(ticket.id);
    assert_eq!((over.state, over.over_unix_ms, world.held(id(1))), (State::Released, Some(world.now), 0));
    let ends: Vec<_> = over.results.values().map(|outcome| outcome.end.unwrap()).collect();
    assert_eq!(ends, [VmEnd::Ended, VmEnd::Ended, VmEnd::Killed]);
}

#[test]
fn released_is_not_an_error_twice_but_used_is() {
    let mut world = world();
    let ticket = world.request(demand(3, 3)).unwrap().id;
    assert_eq!(world.release(ticket).unwrap().state, State::Released);
    let before = world.get(ticket);
    assert_eq!(world.release(ticket).unwrap(), before);
    assert_eq!(world.effects.len(), 1, "nothing has changed");
    assert_eq!(world.spend_at(ticket, id(1), [1]).unwrap_err(), CoreError::Released(ticket));
    let used = world.request(demand(1, 1)).unwrap();
    world.spend(&used, [1]).unwrap();
    assert_eq!(world.release(used.id).unwrap_err(), CoreError::Used(used.id));
}

#[test]
fn it_expires_if_nobody_uses_it() {
    let mut world = world();
    let ticket = world.request(Demand { ttl_ms: Some(500), ..demand(4, 8) }).unwrap();
    world.pass(499);
    assert_eq!(world.state(ticket.id), State::Granted);
    // Even if nobody ticks, the time is what it is.
    world.now += 1;
    assert_eq!(world.spend(&ticket, [1]).unwrap_err(), CoreError::Expired(ticket.id));
    assert_eq!((world.held(id(1)), world.held(id(2))), (0, 0));
    assert_eq!(world.release(ticket.id).unwrap().state, State::Expired);
    let used = world.request(Demand { ttl_ms: Some(500), ..demand(1, 1) }).unwrap();
    world.spend(&used, [1]).unwrap();
    world.pass(5000);
    assert_eq!(world.state(used.id), State::Used);
}

#[test]
fn it_is_used_once_but_the_same_use_may_be_said_again() {
    let mut world = world();
    let ticket = world.request(demand(2, 2)).unwrap();
    let used = world.spend(&ticket, [1, 2]).unwrap();
    assert_eq!(world.spend(&ticket, [2, 1]).unwrap(), used);
    assert_eq!(world.effects.len(), 1, "nothing has changed");
    assert_eq!(world.spend(&ticket, [3, 4]).unwrap_err(), CoreError::Used(ticket.id));
    assert_eq!(world.spend(&ticket, [1]).unwrap_err(), CoreError::Used(ticket.id));
}

#[test]
fn only_its_family_at_its_host_with_its_epoch() {
    let mut world = world();
    let ticket = world.request(Demand { hosts: vec![id(1)], ..demand(2, 2) }).unwrap();
    let mut with = |family, host, epoch, host_epoch| {
        let ticket = Named { id: ticket.id, family };
        let usage = Usage { ticket, epoch, host_epoch, ..usage(ticket.id, host, [1]) };
        world.ticket(|waiter| Command::Use(waiter, usage))
    };
    assert_eq!(with(Some(id(8)), id(1), None, None), Err(CoreError::Foreign(ticket.id)));
    let other = CoreError::OtherHost { ticket: ticket.id, host: id(2) };
    assert_eq!(with(None, id(2), None, None), Err(other));
    assert_eq!(with(None, id(3), None, None), Err(CoreError::UnknownHost(id(3))));
    let stale = CoreError::StaleEpoch { ticket: ticket.id, given: 1, current: ticket.epoch };
    assert_eq!(with(None, id(1), Some(1), None), Err(stale));
    let host = CoreError::StaleHost { host: id(1), given: 1 };
    assert_eq!(with(None, id(1), None, Some(1)), Err(host));
    let unknown = world.spend_at(id(99), id(1), [1]).unwrap_err();
    assert_eq!(unknown, CoreError::Unknown(id(99)));
    let host_epoch = Some(world.hosts[&id(1)]);
    let named = Named { id: ticket.id, family: Some(id(7)) };
    let epoch = Some(ticket.epoch);
    let usage = Usage { ticket: named, epoch, host_epoch, ..usage(ticket.id, id(1), [1]) };
    let used = world.ticket(|waiter| Command::Use(waiter, usage));
    assert_eq!(used.unwrap().state, State::Used);
}

#[test]
fn a_host_that_is_away_uses_nothing() {
    let mut world = world();
    let ticket = world.request(Demand { hosts: vec![id(1)], ..demand(2, 2) }).unwrap();
    world.down(id(1));
    assert_eq!(world.spend(&ticket, [1]).unwrap_err(), CoreError::UnknownHost(id(1)));
    assert_eq!(world.state(ticket.id), State::Granted);
}

#[test]
fn vmids_are_those_of_new_clones() {
    let mut world = world();
    let first = world.request(demand(2, 2)).unwrap();
    world.spend(&first, [1, 2]).unwrap();
    let ticket = world.request(demand(2, 2)).unwrap();
    assert_eq!(world.spend(&ticket, [0]).unwrap_err(), CoreError::BadVmid(0));
    assert_eq!(world.spend(&ticket, [3, 3]).unwrap_err(), CoreError::BadVmid(3));
    assert_eq!(world.spend(&ticket, [2]).unwrap_err(), CoreError::BadVmid(2));
    assert_eq!(world.spend(&ticket, []).unwrap_err(), CoreError::BadVmids { given: 0, wanted: 1 });
    let small = CoreError::SmallTicket { ticket: ticket.id, wanted: 3, has: 2 };
    assert_eq!(world.spend(&ticket, [3, 4, 5]).unwrap_err(), small);
    // The same number in another family is another VM.
    let other = world.request(Demand { family: id(8), ..demand(1, 1) }).unwrap();
    world.spend(&other, [2]).unwrap();
}

#[test]
fn what_is_not_used_is_for_others_at_once() {
    let mut world = world();
    let ticket = world.request(demand(8, 8)).unwrap();
    let waiter = world.ask(Demand { timeout_ms: 1000, ..demand(5, 5) });
    assert!(world.waits(waiter));
    let used = world.spend_at(ticket.id, id(1), [1, 2, 3]).unwrap();
    assert_eq!(used.vms(), 3);
    assert!(!world.waits(waiter));
    assert_eq!((world.held(id(1)), world.held(id(2))), (4, 4));
}

#[test]
fn unused_it_is_granted_again() {
    let mut world = world();
    let ticket = world.request(demand(2, 2)).unwrap();
    world.pass(5000);
    let used = world.spend(&ticket, [1, 2]).unwrap();
    let barrier = world.arrive(ticket.id, 0, None);
    let join = world.join(ticket.id, None);
    world.beat(id(1));
    world.pass(5000);
    let again = world.unuse(&used).unwrap();
    assert_eq!((again.state, again.parent_vmid, again.clones.len()), (State::Granted, None, 0));
    assert!(again.epoch > ticket.epoch);
    assert_eq!(again.expires_unix_ms, world.now + 60_000);
    assert_eq!(world.was_answered(barrier).unwrap_err(), CoreError::NotUsed(ticket.id));
    assert_eq!(world.was_answered(join).unwrap_err(), CoreError::NotUsed(ticket.id));
    // Said again it is the same.
    assert_eq!(world.unuse(&used).unwrap(), again);
    // And can be used, by the same vmids or others.
    world.spend(&again, [1, 3]).unwrap();
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    assert_eq!(world.unuse(&again).unwrap_err(), CoreError::Used(ticket.id));
}

#[test]
fn clones_by_number_have_an_immediate_ticket() {
    let mut world = world();
    let use_by = Some(UseBy { parent_vmid: 5, vmids: vec![6, 7], host_epoch: Some(world.hosts[&id(1)]) });
    let immediate = Demand { use_by, hosts: vec![id(1)], ..demand(2, 2) };
    let ticket = world.request(immediate.clone()).unwrap();
    assert_eq!((ticket.state, ticket.immediate, ticket.parent_vmid), (State::Used, true, Some(5)));
    assert_eq!((ticket.places[&id(1)], world.core.live(&ticket)), (2, 2));
    assert_eq!(world.spend(&ticket, [6]).unwrap_err(), CoreError::Used(ticket.id));
    assert_eq!(world.request(immediate.clone()).unwrap_err(), CoreError::BadVmid(6));
    // Nothing was made: nobody can use it any more, and nobody is told that it was granted.
    assert_eq!(world.unuse(&ticket).unwrap().state, State::Released);
    let became = world.effects.iter().filter_map(|effect| match effect {
        Effect::Became(became) => Some((became.ticket, became.state)),
        _ => None,
    });
    assert_eq!(became.collect::<Vec<_>>(), [(ticket.id, State::Released)]);
    assert_eq!(world.unuse(&ticket).unwrap().state, State::Released);
    assert_eq!(world.held(id(1)), 0);
    let again = world.request(immediate.clone()).unwrap();
    world.ended(id(1), again.id, [6, 7], VmEnd::Ended);
    assert_eq!(world.state(again.id), State::Released);
    // The host has registered anew: who asked may not be there any more.
    world.host(1, 4);
    let stale = world.request(immediate).unwrap_err();
    assert!(matches!(stale, CoreError::StaleHost { .. }), "{stale:?}");
    let few = UseBy { parent_vmid: 5, vmids: vec![6], host_epoch: None };
    let wrong = world.request(Demand { use_by: Some(few), ..demand(2, 2) }).unwrap_err();
    assert_eq!(wrong, CoreError::BadVmids { given: 1, wanted: 2 });
}

#[test]
fn it_is_remembered_for_a_while_after_its_end() {
    let mut world = world();
    let ticket = world.request(Demand { request_id: Some("a".into()), ..demand(2, 2) }).unwrap().id;
    world.release(ticket).unwrap();
    for _ in 0..99 {
        world.beat(id(1));
        world.beat(id(2));
        world.pass(1000);
    }
    assert_eq!(world.state(ticket), State::Released);
    world.pass(1000);
    assert!(world.effects.contains(&Effect::Forget(ticket)));
    assert_eq!(world.core.ticket(named(ticket)), Err(CoreError::Unknown(ticket)));
    let anew = world.request(Demand { request_id: Some("a".into()), ..demand(2, 2) });
    assert!(matches!(anew, Ok(other) if other.id != ticket));
}

#[test]
fn so_many_of_a_family_are_remembered_and_no_more() {
    let mut world = World::with(Options { lease_ms: 0, ..options() });
    world.host(1, 4);
    let mut effects = Vec::new();
    for n in 0..1030_u64 {
        let waiter = crate::core::api::Waiter(1_000_000 + 2 * n);
        let demand = Demand { request_id: Some(n.to_string()), ..demand(1, 1) };
        world.core.apply(world.now + n, Command::Request { waiter, demand }, &mut effects);
        let id = world.core.tickets(&everything()).last().unwrap().id;
        let waiter = crate::core::api::Waiter(1_000_001 + 2 * n);
        world.core.apply(world.now + n, Command::Release(waiter, named(id)), &mut effects);
    }
    assert_eq!(world.core.counts().released, 1024);
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Forget(_))).count(), 6);
    assert_eq!(
        world.core.tickets(&Listing { family: Some(id(7)), most: 1, ..Listing::default() })[0]
            .request_id
            .as_deref(),
        Some("6")
    );
}

#[test]
fn lists_are_in_the_order_of_granting_page_by_page() {
    let mut world = world();
    let mut tickets = Vec::new();
    for n in 0..6 {
        tickets.push(world.request(Demand { family: id(7 + n % 2), ..demand(1, 1) }).unwrap());
        world.pass(1);
    }
    let ids = |of: Listing| world.core.tickets(&of).iter().map(|t| t.id).collect::<Vec<_>>();
    let all: Vec<_> = tickets.iter().map(|ticket| ticket.id).collect();
    assert_eq!(ids(everything()), all);
    assert_eq!(ids(Listing { most: 2, ..everything() }), all[..2]);
    let after = Some((tickets[1].granted_unix_ms, tickets[1].id));
    assert_eq!(ids(Listing { after, most: 2, ..everything() }), all[2..4]);
    assert_eq!(ids(Listing { family: Some(id(8)), after, ..everything() }), [all[3], all[5]]);
    assert!(ids(Listing { family: Some(id(9)), ..everything() }).is_empty());
}

#[test]
fn lists_may_begin_with_the_newest_and_leave_out_what_nobody_asked_for() {
    let mut world = world();
    let mut all = Vec::new();
    for n in 0..6 {
        let use_by = (n % 3 == 1).then(|| UseBy { parent_vmid: 0, vmids: vec![n], host_epoch: None });
        all.push(world.request(Demand { use_by, ..demand(1, 1) }).unwrap());
        world.pass(1);
    }
    let numbers = |of: Listing| {
        let listed = world.core.tickets(&of).into_iter();
        listed.map(|t| all.iter().position(|other| other.id == t.id).unwrap()).collect::<Vec<_>>()
    };
    let family = Some(id(7));
    for of in [everything(), Listing { family, ..everything() }] {
        assert_eq!(numbers(Listing { asked_for: true, ..of }), [0, 2, 3, 5]);
        assert_eq!(numbers(Listing { newest_first: true, ..of }), [5, 4, 3, 2, 1, 0]);
        let both = Listing { newest_first: true, asked_for: true, most: 2, ..of };
        assert_eq!(numbers(both), [5, 3]);
        let after = Some((all[3].granted_unix_ms, all[3].id));
        assert_eq!(numbers(Listing { after, ..both }), [2, 0]);
    }
}

#[test]
fn a_stored_used_ticket_without_clones_does_not_stay_for_ever() {
    let mut world = world();
    let ticket = world.request(demand(1, 1)).unwrap();
    world.spend(&ticket, [1]).unwrap();
    let mut stored = world.get(ticket.id);
    stored.clones.clear();
    let core = crate::core::Core::new(
        options(),
        vec![stored],
        &[],
        crate::core::epochs::Epochs::default(),
        world.now,
    );
    assert_eq!(core.counts().released, 1);
}
