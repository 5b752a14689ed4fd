//! VMs that meet.

use super::world::{World, demand, id, info, named, options, running, usage};
use crate::core::{
    api::{
        Command, CoreError, Demand, Effect, FAMILY_MEETING_MAX, Present, Running, Targets, Usage, UseBy,
        Waiter,
    },
    ticket::{State, Ticket, VmEnd},
};
use std::collections::BTreeSet;

fn used(clones: u32) -> (World, Ticket) {
    let mut world = World::new();
    world.host(1, 100);
    let ticket = world.request(demand(clones, clones)).unwrap();
    let ticket = world.spend(&ticket, 1..=clones).unwrap();
    (world, ticket)
}

#[test]
fn all_go_on_when_the_last_one_arrives_again_and_again() {
    let (mut world, ticket) = used(3);
    for round in 1..=3 {
        let mut waiters: Vec<_> = (1..=3).map(|vmid| world.arrive(ticket.id, vmid, None)).collect();
        assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
        waiters.push(world.arrive(ticket.id, 0, Some(1000)));
        assert!(waiters.iter().all(|waiter| world.met(*waiter) == (round, 4)));
    }
    assert_eq!(world.core.next_deadline(), Some(world.now + 10_000), "only the lease is left");
}

#[test]
fn an_answer_that_was_lost_is_given_again_and_nobody_is_a_round_behind() {
    let (mut world, ticket) = used(2);
    for restarted in [false, true] {
        let before = world.get(ticket.id).round();
        let waiters: Vec<_> = [0, 1, 2].map(|vmid| world.arrive_after(before, ticket.id, vmid)).into();
        assert!(waiters.iter().all(|waiter| world.met(*waiter) == (before + 1, 3)));
        // VM 1 does not hear of it. VM 2 has come to the next meeting when VM 1 asks again.
        if restarted {
            world.restart(options());
            world.host_with(info(1, 100), [1, 2].map(|vmid| running(&ticket, vmid)).into());
        }
        let ahead = world.arrive_after(before + 1, ticket.id, 2);
        for _ in 0..2 {
            let again = world.arrive_after(before, ticket.id, 1);
            assert_eq!(world.met(again), (before + 1, 3), "restarted: {restarted}");
        }
        assert!(world.waits(ahead), "all of them have to come to the next one");
        let others = [0, 1].map(|vmid| world.arrive_after(before + 1, ticket.id, vmid));
        assert!(others.iter().chain([&ahead]).all(|waiter| world.met(*waiter) == (before + 2, 3)));
    }
    // Who does not say what it knows waits for the next one.
    let silent = world.arrive(ticket.id, 1, None);
    assert!(world.waits(silent));
}

#[test]
fn a_parent_whose_answer_was_lost_hears_it_when_its_clones_have_ended() {
    let (mut world, ticket) = used(1);
    let waiters = [0, 1].map(|vmid| world.arrive_after(0, ticket.id, vmid));
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (1, 2)));
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    assert_eq!(world.state(ticket.id), State::Released);
    let again = world.arrive_after(0, ticket.id, 0);
    assert_eq!(world.met(again), (1, 2));
}

#[test]
fn a_ledger_that_knows_of_fewer_meetings_than_its_vms_follows_them() {
    let (mut world, ticket) = used(3);
    // VMs 0 and 1 were at meeting 5, VM 2 has not heard of it. The ledger was lost.
    world.store.clear();
    world.restart(options());
    world.host_with(info(1, 100), [1, 2, 3].map(|vmid| running(&ticket, vmid)).into());
    let behind = world.arrive_after(4, ticket.id, 2);
    assert!(world.waits(behind));
    let first = world.arrive_after(5, ticket.id, 1);
    assert_eq!(world.met(behind), (5, 0), "it took place, nobody knows with how many");
    assert!(world.waits(first));
    let late = world.arrive_after(4, ticket.id, 3);
    assert_eq!(world.met(late), (5, 0));
    let others = [0, 2, 3].map(|vmid| world.arrive_after(5, ticket.id, vmid));
    assert!(others.iter().chain([&first]).all(|waiter| world.met(*waiter) == (6, 4)));
}

#[test]
fn two_processes_of_a_vm_count_once() {
    let (mut world, ticket) = used(1);
    let (first, second) = (world.arrive(ticket.id, 1, None), world.arrive(ticket.id, 1, None));
    assert!(world.waits(first) && world.waits(second));
    let parent = world.arrive(ticket.id, 0, None);
    assert_eq!((world.met(first), world.met(second), world.met(parent)), ((1, 2), (1, 2), (1, 2)));
}

#[test]
fn a_clone_that_dies_is_not_waited_for() {
    let (mut world, ticket) = used(3);
    let (parent, first) = (world.arrive(ticket.id, 0, None), world.arrive(ticket.id, 1, None));
    let dying = world.arrive(ticket.id, 2, None);
    world.ended(id(1), ticket.id, [2], VmEnd::Ended);
    assert_eq!(world.was_answered(dying), Err(CoreError::UnknownVm { ticket: ticket.id, vmid: 2 }));
    assert!(world.waits(parent) && world.waits(first));
    world.ended(id(1), ticket.id, [3], VmEnd::Ended);
    assert_eq!((world.met(parent), world.met(first)), ((1, 2), (1, 2)));
    // When the last clone is gone, the parent meets nobody.
    let parent = world.arrive(ticket.id, 0, None);
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    assert_eq!(world.met(parent), (2, 1));
    let again = world.arrive(ticket.id, 0, None);
    assert_eq!(world.met(again), (3, 1));
}

#[test]
fn who_comes_too_late_leaves_a_barrier_that_can_be_used() {
    let (mut world, ticket) = used(2);
    let first = world.arrive(ticket.id, 1, Some(500));
    let parent = world.arrive(ticket.id, 0, Some(700));
    world.pass(500);
    let late = CoreError::BarrierTimeout { arrived: 2, wanted: 3 };
    assert_eq!(world.was_answered(first), Err(late));
    world.pass(200);
    let late = CoreError::BarrierTimeout { arrived: 1, wanted: 3 };
    assert_eq!(world.was_answered(parent), Err(late));
    let gone = world.arrive(ticket.id, 2, None);
    world.apply(Command::Gone(gone));
    let waiters: Vec<_> = [0, 1].map(|vmid| world.arrive(ticket.id, vmid, None)).into();
    assert!(world.waits(waiters[0]));
    let last = world.arrive(ticket.id, 2, Some(0));
    assert_eq!((world.met(waiters[0]), world.met(waiters[1]), world.met(last)), ((1, 3), (1, 3), (1, 3)));
    let hasty = world.arrive(ticket.id, 2, Some(0));
    assert!(matches!(world.was_answered(hasty), Err(CoreError::BarrierTimeout { .. })));
}

#[test]
fn only_the_parent_and_live_clones_meet() {
    let (mut world, ticket) = used(2);
    let stranger = world.arrive(ticket.id, 9, None);
    assert_eq!(world.was_answered(stranger), Err(CoreError::UnknownVm { ticket: ticket.id, vmid: 9 }));
    world.ended(id(1), ticket.id, [2], VmEnd::Ended);
    let dead = world.arrive(ticket.id, 2, None);
    assert!(matches!(world.was_answered(dead), Err(CoreError::UnknownVm { .. })));
    let granted = world.request(demand(1, 1)).unwrap().id;
    let early = world.arrive(granted, 0, None);
    assert_eq!(world.was_answered(early), Err(CoreError::NotUsed(granted)));
    world.release(granted).unwrap();
    let late = world.arrive(granted, 0, None);
    assert_eq!(world.was_answered(late), Err(CoreError::Released(granted)));
}

#[test]
fn a_parent_that_is_a_clone_and_has_ended_is_not_waited_for() {
    let (mut world, ticket) = used(1);
    let use_by = Some(UseBy { parent_vmid: 1, vmids: vec![2, 3], host_epoch: None });
    let child = world.request(Demand { use_by, ..demand(2, 2) }).unwrap().id;
    let first = world.arrive(child, 2, None);
    let second = world.arrive(child, 3, None);
    let parent = world.arrive(child, 1, None);
    assert_eq!(world.met(parent), (1, 3));
    assert_eq!(world.met(first), world.met(second));
    let (first, second) = (world.arrive(child, 2, None), world.arrive(child, 3, None));
    assert!(world.waits(first));
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    assert_eq!((world.met(first), world.met(second)), ((2, 2), (2, 2)));
    let dead = world.arrive(child, 1, None);
    assert!(matches!(world.was_answered(dead), Err(CoreError::UnknownVm { .. })));
    // The scheduler's restart changes nothing about that.
    world.restart(options());
    let (first, second) = (world.arrive(child, 2, None), world.arrive(child, 3, None));
    assert_eq!((world.met(first), world.met(second)), ((3, 2), (3, 2)));
}

#[test]
fn a_parent_whose_end_was_noted_before_it_cloned_is_not_waited_for() {
    let (mut world, ticket) = used(1);
    // Its host was given up, and is back, with the clone that is to end and has cloned meanwhile.
    world.kill(Targets::Vmids(vec![1]));
    world.down(id(1));
    world.pass(30_000);
    world.host_with(info(1, 100), vec![running(&ticket, 1)]);
    let use_by = || Some(UseBy { parent_vmid: 1, vmids: vec![2], host_epoch: None });
    let immediate = world.request(Demand { use_by: use_by(), ..demand(1, 1) }).unwrap();
    assert!(immediate.parent_ended);
    world.ended(id(1), immediate.id, [2], VmEnd::Ended);
    let granted = world.request(demand(1, 1)).unwrap().id;
    let usage = Usage { parent_vmid: 1, ..usage(granted, id(1), [3]) };
    let used = world.ticket(|waiter| Command::Use(waiter, usage));
    assert!(used.unwrap().parent_ended);
    let alone = world.arrive(granted, 3, None);
    assert_eq!(world.met(alone), (1, 1));
}

#[test]
fn a_master_that_has_ended_is_not_waited_for() {
    let (mut world, ticket) = used(2);
    world.host(2, 1);
    let waiters = [1, 2].map(|vmid| world.arrive(ticket.id, vmid, None));
    // Of another family, or of another host, it is another one.
    world.masters_ended(id(1), [8]);
    world.masters_ended(id(2), [7]);
    assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
    world.masters_ended(id(1), [8, 7]);
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (1, 2)));
    let dead = world.arrive(ticket.id, 0, None);
    assert!(matches!(world.was_answered(dead), Err(CoreError::UnknownVm { .. })));
    // The scheduler's restart changes nothing about that.
    world.restart(options());
    let waiters = [1, 2].map(|vmid| world.arrive(ticket.id, vmid, None));
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (2, 2)));
    world.host_with(info(1, 100), [1, 2].map(|vmid| running(&ticket, vmid)).into());
    world.ended(id(1), ticket.id, [1, 2], VmEnd::Ended);
    assert_eq!(world.state(ticket.id), State::Released);
}

#[test]
fn a_master_that_ended_while_its_host_was_away_is_not_waited_for() {
    let (mut world, ticket) = used(2);
    let clones = || [1, 2].map(|vmid| running(&ticket, vmid)).to_vec();
    let waiters = [1, 2].map(|vmid| world.arrive(ticket.id, vmid, None));
    let said = [None, Some(BTreeSet::from([id(7), id(8)])), Some(BTreeSet::from([id(8)]))];
    for (number, masters) in said.into_iter().enumerate() {
        world.down(id(1));
        let present = Present { running: clones(), masters, ..Present::default() };
        world.host_present(info(1, 100), present);
        assert!(waiters.iter().all(|waiter| world.waits(*waiter) == (number < 2)), "{number}");
    }
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (1, 2)));
    assert!(world.get(ticket.id).parent_ended);
}

#[test]
fn a_parent_that_nobody_knows_is_not_waited_for() {
    let (mut world, ticket) = used(1);
    // The ledger was lost. Clone 1 runs, clone 5 does not any more; both have cloned.
    let child = |number: u128, vmid, parent| Running {
        ticket: id(number),
        parent_vmid: Some(parent),
        parent_host: None,
        ..running(&ticket, vmid)
    };
    world.store.clear();
    world.restart(options());
    world.host_with(
        info(1, 100),
        vec![child(21, 2, 1), child(22, 3, 5), child(23, 4, 0), running(&ticket, 1)],
    );
    let ended = [21, 22, 23].map(|number| world.get(id(number)).parent_ended);
    assert_eq!(ended, [false, true, false]);
    let alone = world.arrive(id(22), 3, None);
    assert_eq!(world.met(alone), (1, 1));
}

#[test]
fn so_many_of_a_family_wait_at_barriers_and_for_joins_and_no_more() {
    let (mut world, ticket) = used(2);
    let other = world.request(Demand { family: id(8), ..demand(1, 1) }).unwrap();
    world.spend(&other, [1]).unwrap();
    // Not through the world, which looks at everything after every command.
    let call = |world: &mut World, command: Command| {
        let mut effects = Vec::new();
        world.core.apply(world.now, command, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, answer) => Some(answer),
            _ => None,
        })
    };
    let arrive = |ticket, n: usize| Command::Arrive {
        waiter: Waiter(1_000_000 + n as u64),
        ticket: named(ticket),
        vmid: 1,
        after_round: None,
        timeout_ms: None,
    };
    let join = |ticket, n: usize| Command::JoinWait {
        waiter: Waiter(1_000_000 + n as u64),
        ticket: named(ticket),
        vmid: Some(0),
        timeout_ms: None,
    };
    for n in 0..FAMILY_MEETING_MAX {
        let command = if n % 2 == 0 { arrive(ticket.id, n) } else { join(ticket.id, n) };
        assert_eq!(call(&mut world, command), None);
    }
    let full = || Some(Err(CoreError::TooManyWaiting { call: "sync or join", most: FAMILY_MEETING_MAX }));
    assert_eq!(call(&mut world, arrive(ticket.id, FAMILY_MEETING_MAX)), full());
    assert_eq!(call(&mut world, join(ticket.id, FAMILY_MEETING_MAX)), full());
    assert_eq!(call(&mut world, arrive(other.id, FAMILY_MEETING_MAX)), None);
    assert_eq!(call(&mut world, join(other.id, FAMILY_MEETING_MAX + 1)), None);
    call(&mut world, Command::Gone(Waiter(1_000_000)));
    assert_eq!(call(&mut world, arrive(ticket.id, FAMILY_MEETING_MAX + 2)), None);
}
