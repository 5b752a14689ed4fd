//! What operators do with hosts.

use super::world::{World, demand, id, info, options, running};
use crate::core::{
    api::{Beat, Command, CoreError, Demand, Present},
    record::Scheduling,
    state::Standing,
    ticket::{State, Ticket},
};

fn here(min: u32) -> Demand {
    Demand { hosts: vec![id(1)], ..demand(min, min) }
}

/// Host 1 runs a clone, and has a ticket that is not used.
fn host() -> (World, Ticket, Ticket) {
    let mut world = World::new();
    world.host(1, 4);
    let used = world.request(demand(1, 1)).unwrap();
    let used = world.spend(&used, [1]).unwrap();
    let granted = world.request(demand(1, 1)).unwrap();
    (world, used, granted)
}

#[test]
fn a_cordoned_host_is_granted_nothing_new_and_keeps_what_it_has() {
    let (mut world, used, granted) = host();
    let change = world.schedule(id(1), Scheduling::Cordoned).unwrap();
    assert_eq!((change.released, change.clones), (0, vec![(used.id, id(7), 1)]));
    assert_eq!((change.state.scheduling, change.state.scheduling_unix_ms), (Scheduling::Cordoned, world.now));
    let refused = world.request(here(1)).unwrap_err();
    assert_eq!(refused, CoreError::HostCordoned { host: id(1), name: "host-1".into() });
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    assert!(world.spend(&granted, [2]).is_ok());
    // One that waits has it as soon as it may.
    let waiter = world.ask(Demand { timeout_ms: 5_000, ..here(2) });
    assert!(world.waits(waiter));
    world.schedule(id(1), Scheduling::Open).unwrap();
    assert!(world.was_answered(waiter).is_ok());
}

#[test]
fn a_draining_host_gives_back_what_is_not_used_also_later() {
    let (mut world, used, granted) = host();
    let change = world.schedule(id(1), Scheduling::Draining).unwrap();
    assert_eq!((change.released, change.clones.len(), world.state(granted.id)), (1, 1, State::Released));
    assert_eq!(world.spend(&granted, [2]).unwrap_err(), CoreError::Released(granted.id));
    assert_eq!(world.state(used.id), State::Used);
    // What is not made after all is not granted again.
    assert_eq!(world.unuse(&used).unwrap().state, State::Released);
    assert_eq!(world.held(id(1)), 0);
}

#[test]
fn what_an_operator_wants_of_a_host_is_kept_whatever_becomes_of_it() {
    let (mut world, used, _) = host();
    world.schedule(id(1), Scheduling::Draining).unwrap();
    let scheduling = |world: &World| world.core.hosts()[0].scheduling;
    world.restart(options());
    assert_eq!(scheduling(&world), Scheduling::Draining, "it is known before it is back");
    world.host_with(info(1, 4), vec![running(&used, 1)]);
    assert!(matches!(world.request(here(1)), Err(CoreError::HostCordoned { .. })));
    world.down(id(1));
    world.pass(30_000);
    for _ in 0..3 {
        world.pass(100_000);
    }
    world.restart(options());
    assert_eq!((scheduling(&world), world.core.hosts()[0].standing), (Scheduling::Draining, Standing::Lost));
    // As soon as nobody wants anything of it, it is forgotten in its time.
    world.schedule(id(1), Scheduling::Open).unwrap();
    world.pass(99_999);
    assert_eq!(world.core.counts().hosts, 1);
    world.pass(1);
    assert_eq!((world.core.counts().hosts, world.stored_hosts.len()), (0, 0));
}

#[test]
fn a_silent_host_is_fenced_at_once_and_one_that_is_up_is_not() {
    let (mut world, used, granted) = host();
    assert_eq!(world.fence(id(9)), Err(CoreError::UnknownHost(id(9))));
    assert_eq!(world.fence(id(1)), Err(CoreError::HostIsUp(id(1))));
    world.down(id(1));
    let silent = CoreError::HostSilent { host: id(1), name: "host-1".into(), is: "suspect" };
    assert_eq!(world.request(here(1)), Err(silent));
    let change = world.fence(id(1)).unwrap();
    assert_eq!((change.state.standing, change.clones), (Standing::Lost, vec![]));
    assert_eq!((world.state(used.id), world.state(granted.id)), (State::Fenced, State::Fenced));
    assert!(world.fence(id(1)).is_ok(), "it may be said again");
    // The scheduler remembers that, and the host has what it runs when it is back.
    world.restart(options());
    assert_eq!(world.core.hosts()[0].standing, Standing::Lost);
    world.host_with(info(1, 4), vec![running(&used, 1)]);
    assert_eq!((world.state(used.id), world.core.hosts()[0].standing), (State::Used, Standing::Up));
}

#[test]
fn a_refusal_counts_the_hosts_that_are_granted_nothing() {
    let closed = |world: &mut World, demand: Demand| match world.request(demand).unwrap_err() {
        CoreError::NoCapacity { closed, .. } => (closed.suspect, closed.cordoned, closed.lost),
        error => panic!("{error}"),
    };
    let mut world = World::new();
    for host in 1..=5 {
        world.host(host, 1);
    }
    world.down(id(4));
    world.fence(id(4)).unwrap();
    world.request(demand(4, 4)).unwrap();
    assert_eq!(closed(&mut world, demand(1, 1)), (0, 0, 1));
    world.down(id(1));
    world.schedule(id(2), Scheduling::Cordoned).unwrap();
    world.schedule(id(3), Scheduling::Cordoned).unwrap();
    assert_eq!(closed(&mut world, demand(1, 1)), (1, 2, 1));
    // Of those that are named.
    let named = Demand { hosts: vec![id(2), id(4), id(5)], ..demand(1, 1) };
    assert_eq!(closed(&mut world, named), (0, 1, 1));
    world.restart(options());
    assert_eq!(closed(&mut world, demand(1, 1)), (4, 0, 1), "they have not come back yet");
    world.host(2, 0);
    assert_eq!(closed(&mut world, demand(1, 1)), (3, 1, 1));
}

#[test]
fn draining_names_the_masters_that_a_host_has_said_last() {
    let (mut world, _, _) = host();
    let masters = |world: &mut World| world.schedule(id(1), Scheduling::Draining).unwrap().masters;
    assert!(masters(&mut world).is_empty(), "it has not said");
    let epoch = world.hosts[&id(1)];
    let say = |world: &mut World, epoch, masters: Option<&[u128]>| {
        let masters = masters.map(|all| all.iter().map(|family| id(*family)).collect());
        world.apply(Command::HostBeat { host: id(1), epoch, beat: Beat { masters, ..Beat::default() } });
    };
    say(&mut world, epoch, Some(&[8, 7]));
    say(&mut world, epoch, None);
    say(&mut world, epoch - 1, Some(&[9]));
    assert_eq!(masters(&mut world), [id(7), id(8)], "not what an older registration says");
    say(&mut world, epoch, Some(&[]));
    assert!(masters(&mut world).is_empty());
    let present = Present { masters: Some([id(7)].into()), ..Present::default() };
    let info = info(1, 4);
    world.answer(|waiter| Command::HostUp { waiter, info, present }).unwrap();
    assert_eq!(masters(&mut world), [id(7)], "as it registers");
}
