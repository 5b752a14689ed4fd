//! Clones that are ended.

use super::world::{World, demand, id, info, named, options, running};
use crate::core::{
    api::{Command, CoreError, Effect, FAMILY_KILLS_MAX, KILLS_A_BEAT_MAX, Present, Reply, Targets, Waiter},
    spend::FAMILY_OVER_MAX,
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
        Effect::Kill { host, ticket, epoch, vmids, reason, .. } => {
            assert_eq!(reason, "test");
            let of = world.get(*ticket);
            assert!(of.epoch == *epoch && vmids.iter().all(|vmid| of.is_live(*vmid)), "{ticket}");
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
fn kills_under_way_outlive_the_schedulers_restart() {
    let (mut world, three, two) = used();
    world.down(id(1));
    let waiter = world.kill(Targets::Vmids(vec![2, 3, 4]));
    // Its caller has gone, one host is away, the other one has not obeyed yet.
    world.apply(Command::Gone(waiter));
    world.ended(id(2), two.id, [4], VmEnd::Killed);
    world.kill(Targets::Vmids(vec![5]));
    world.restart(options());
    world.host_with(info(1, 3), (1..=3).map(|vmid| running(&three, vmid)).collect());
    assert_eq!(orders(&world), [(1, vec![2, 3])]);
    world.host_with(info(2, 2), vec![running(&two, 5)]);
    assert_eq!(orders(&world), [(2, vec![5])]);
    world.ended(id(1), three.id, [2], VmEnd::Killed);
    world.beat(id(1));
    assert_eq!(orders(&world), [(1, vec![3])]);
    world.ended(id(1), three.id, [3], VmEnd::Ended);
    world.ended(id(2), two.id, [5], VmEnd::Killed);
    assert!(world.store.values().all(|ticket| ticket.kills_requested.is_empty()));
    world.restart(options());
    world.host_with(info(1, 3), vec![running(&three, 1)]);
    assert!(orders(&world).is_empty());
}

#[test]
fn clones_that_were_never_made_are_not_to_end_when_their_ticket_is_used_again() {
    let (mut world, three, _) = used();
    let waiter = world.kill(Targets::Ticket(three.id));
    let again = world.unuse(&three).unwrap();
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1, 2, 3])));
    assert!(again.epoch > three.epoch, "hosts tell the orders of one use from those of the other by that");
    world.spend(&again, [1, 2, 3]).unwrap();
    world.beat(id(1));
    assert!(orders(&world).is_empty());
    world.restart(options());
    world.host_with(info(1, 3), (1..=3).map(|vmid| running(&three, vmid)).collect());
    assert!(orders(&world).is_empty());
}

#[test]
fn a_host_that_never_comes_back_has_lost_them() {
    let (mut world, three, two) = used();
    let (first, second) = (world.kill(Targets::Vmids(vec![2])), world.kill(Targets::Ticket(two.id)));
    for _ in 0..6 {
        world.pass(5_000);
        world.beat(id(2));
    }
    assert_eq!(world.was_answered(first), Ok(Reply::Killed(vec![2])));
    assert_eq!(world.state(three.id), State::Fenced);
    assert!(world.waits(second));
}

#[test]
fn what_is_to_end_is_said_again_at_each_beat_until_it_has() {
    let (mut world, three, two) = used();
    let waiter = world.kill(Targets::Vmids(vec![1, 3, 4]));
    // Whether somebody waits for it or not.
    world.apply(Command::Gone(waiter));
    for _ in 0..3 {
        world.beat(id(1));
        assert_eq!(orders(&world), [(1, vec![1, 3])]);
    }
    world.ended(id(1), three.id, [3], VmEnd::Killed);
    world.beat(id(1));
    assert_eq!(orders(&world), [(1, vec![1])]);
    world.beat(id(2));
    assert_eq!(orders(&world), [(2, vec![4])]);
    world.ended(id(1), three.id, [1], VmEnd::Ended);
    world.ended(id(2), two.id, [4], VmEnd::Killed);
    for host in [1, 2] {
        world.beat(id(host));
        assert!(orders(&world).is_empty());
    }
}

#[test]
fn clones_that_are_still_being_made_are_to_end_too() {
    let (mut world, three, _) = used();
    world.kill(Targets::Ticket(three.id));
    // Its host does not name them: it has not come so far.
    world.host_making(info(1, 3), Vec::new(), vec![three.id]);
    assert_eq!(orders(&world), [(1, vec![1, 2, 3])]);
    world.beat(id(1));
    assert_eq!(orders(&world), [(1, vec![1, 2, 3])]);
}

#[test]
fn a_beat_says_no_more_than_so_many() {
    let mut world = World::new();
    world.host(1, 2000);
    let mut tickets = Vec::new();
    for n in 0..5 {
        let ticket = world.request(demand(256, 256)).unwrap();
        tickets.push(world.spend(&ticket, n * 256 + 1..=(n + 1) * 256).unwrap());
    }
    for ticket in &tickets {
        world.kill(Targets::Ticket(ticket.id));
    }
    // Ticket by ticket.
    tickets.sort_by_key(|ticket| ticket.id);
    let vmids = |of: &[Ticket]| of.iter().flat_map(|t| t.clones.keys().copied()).collect::<Vec<_>>();
    let said = |world: &World| orders(world).into_iter().flat_map(|(_, vmids)| vmids).collect::<Vec<_>>();
    world.beat(id(1));
    assert_eq!(said(&world), vmids(&tickets[..4]));
    assert_eq!(said(&world).len(), KILLS_A_BEAT_MAX);
    world.ended(id(1), tickets[0].id, vmids(&tickets[..1]), VmEnd::Killed);
    world.beat(id(1));
    assert_eq!(said(&world), vmids(&tickets[1..]));
}

#[test]
fn who_kills_hears_of_it_though_the_ticket_is_forgotten_at_once() {
    let (mut world, three, _) = used();
    world.kill(Targets::Ticket(three.id));
    world.ended(id(1), three.id, 1..=3, VmEnd::Killed);
    // Not through the world, which looks at all tickets after every command.
    let apply = |world: &mut World, command: Command| {
        let mut effects = Vec::new();
        world.core.apply(world.now, command, &mut effects);
        effects
    };
    for n in 0..FAMILY_OVER_MAX as u64 {
        let waiter = Waiter(1_000_000 + n);
        let effects = apply(&mut world, Command::Request { waiter, demand: demand(1, 1) });
        let Some(Effect::Answer(_, Ok(Reply::Ticket(ticket)))) = effects.last() else {
            panic!("{effects:?}")
        };
        apply(&mut world, Command::Release(Waiter(2_000_000 + n), named(ticket.id)));
    }
    // Of those that end at the same time the one with the lowest number is forgotten first.
    let low = Ticket { id: id(0), ..three };
    let present = Present { running: vec![running(&low, 9)], ..Present::default() };
    let effects = apply(&mut world, Command::HostUp { waiter: Waiter(3_000_000), info: info(1, 3), present });
    let registered = effects.iter().find_map(|effect| match effect {
        Effect::Answer(_, Ok(Reply::Registered(epoch))) => Some(*epoch),
        _ => None,
    });
    let targets = Targets::Vmids(vec![9]);
    let kill = Command::Kill { waiter: Waiter(3_000_001), family: id(7), targets, reason: String::new() };
    apply(&mut world, kill);
    let ended = Command::Ended {
        waiter: Waiter(3_000_002),
        host: id(1),
        epoch: registered.unwrap(),
        clones: vec![(id(0), 9, VmEnd::Killed)],
        masters: Vec::new(),
    };
    let effects = apply(&mut world, ended);
    assert!(effects.contains(&Effect::Forget(id(0))));
    assert!(effects.contains(&Effect::Answer(Waiter(3_000_001), Ok(Reply::Killed(vec![9])))), "{effects:?}");
}

#[test]
fn so_many_of_a_family_wait_for_kills_and_no_more() {
    let (mut world, _, _) = used();
    let kill = |world: &mut World, vmid, n: usize| {
        let (waiter, targets) = (Waiter(1_000_000 + n as u64), Targets::Vmids(vec![vmid]));
        let mut effects = Vec::new();
        let command = Command::Kill { waiter, family: id(7), targets, reason: "test".into() };
        world.core.apply(world.now, command, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(other, answer) if other == waiter => Some(answer),
            _ => None,
        })
    };
    for n in 0..FAMILY_KILLS_MAX {
        assert_eq!(kill(&mut world, 1, n), None);
    }
    let full = CoreError::TooManyWaiting { call: "kill", most: FAMILY_KILLS_MAX };
    assert_eq!(kill(&mut world, 2, FAMILY_KILLS_MAX), Some(Err(full)));
    // When one has gone there is room again.
    world.core.apply(world.now, Command::Gone(Waiter(1_000_000)), &mut Vec::new());
    assert_eq!(kill(&mut world, 2, FAMILY_KILLS_MAX + 1), None);
}
