//! Clones that are ended.

use super::world::{World, demand, id, info, running};
use crate::core::{
    api::{Command, CoreError, Effect, Reply, Targets},
    ticket::{State, Ticket, VmEnd},
};

fn used() -> (World, Ticket, Ticket) {
    let mut world = World::new();
    world.host(1, 3);
    world.host(2, 2);
    let three = world.request(demand(3, 3)).unwrap();
    let three = world.spend(&three, [1, 2, 3]).unwrap();
    let two = world.request(demand(2, 2)).unwrap();
    let two = world.spend(&two, [4, 5]).unwrap();
    (world, three, two)
}

fn orders(world: &World) -> Vec<(u128, Vec<u32>)> {
    let orders = world.effects.iter().filter_map(|effect| match effect {
        Effect::Kill { host, vmids, reason, .. } => {
            assert_eq!(reason, "test");
            Some((host.as_u128(), vmids.clone()))
        }
        _ => None,
    });
    orders.collect()
}

#[test]
fn clones_on_several_hosts_of_several_tickets() {
    let (mut world, three, two) = used();
    let waiter = world.kill(Targets::Vmids(vec![5, 1, 2, 2]));
    assert_eq!(orders(&world), [(1, vec![1, 2]), (2, vec![5])]);
    world.ended(id(1), three.id, [1, 2], VmEnd::Killed);
    assert!(world.waits(waiter));
    world.ended(id(2), two.id, [5], VmEnd::Killed);
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1, 2, 5])));
    assert_eq!((world.state(three.id), world.state(two.id)), (State::Used, State::Used));
}

#[test]
fn all_of_a_ticket() {
    let (mut world, three, _) = used();
    world.ended(id(1), three.id, [2], VmEnd::Ended);
    let waiter = world.kill(Targets::Ticket(three.id));
    assert_eq!(orders(&world), [(1, vec![1, 3])]);
    world.ended(id(1), three.id, [1, 3], VmEnd::Killed);
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1, 2, 3])));
    assert_eq!(world.state(three.id), State::Released);
    let again = world.kill(Targets::Ticket(three.id));
    assert_eq!(world.was_answered(again), Ok(Reply::Killed(vec![1, 2, 3])));
}

#[test]
fn one_that_is_not_there_and_nothing_is_killed() {
    let (mut world, three, _) = used();
    let waiter = world.kill(Targets::Vmids(vec![1, 9]));
    assert_eq!(world.was_answered(waiter), Err(CoreError::NoClone(9)));
    assert!(orders(&world).is_empty());
    world.ended(id(1), three.id, [1], VmEnd::Ended);
    let waiter = world.kill(Targets::Vmids(vec![1]));
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1])));
    let foreign = world.answer(|waiter| Command::Kill {
        waiter,
        family: id(8),
        targets: Targets::Ticket(three.id),
        reason: String::new(),
    });
    assert_eq!(foreign, Err(CoreError::Foreign(three.id)));
}

#[test]
fn a_host_that_is_away_hears_of_it_when_it_is_back() {
    let (mut world, three, _) = used();
    world.down(id(1));
    let waiter = world.kill(Targets::Vmids(vec![2]));
    assert!(orders(&world).is_empty());
    // Even if nobody waits for it any more.
    world.apply(Command::Gone(waiter));
    world.host_with(info(1, 3), (1..=3).map(|vmid| running(&three, vmid)).collect());
    assert_eq!(orders(&world), [(1, vec![2])]);
    world.ended(id(1), three.id, [2], VmEnd::Killed);
    world.host_with(info(1, 3), vec![running(&three, 1), running(&three, 3)]);
    assert!(orders(&world).is_empty());
}

#[test]
fn a_host_that_never_comes_back_has_lost_them() {
    let (mut world, three, two) = used();
    let (first, second) = (world.kill(Targets::Vmids(vec![2])), world.kill(Targets::Ticket(two.id)));
    world.pass(9_000);
    world.beat(id(2));
    world.pass(1_000);
    assert_eq!(world.was_answered(first), Ok(Reply::Killed(vec![2])));
    assert_eq!(world.state(three.id), State::Fenced);
    assert!(world.waits(second));
}
