//! Tickets whose hosts use them each for its own part.

use super::world::{World, demand, id, info, options, running, usage};
use crate::core::{
    api::{Command, CoreError, Demand, Effect, HostInfo, Present, Reply, Running, Targets, Usage},
    present::Identity,
    record::Scheduling,
    ticket::{HostId, State, Ticket, VmEnd},
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Hosts 1, 2 and 3, and a ticket for two VMs on each, as its number.
fn granted() -> (World, Uuid) {
    let mut world = World::new();
    for number in 1..4 {
        world.host(number, 2);
    }
    let ticket = world.request(demand(6, 6)).unwrap();
    assert_eq!(ticket.places, [1, 2, 3].map(|number| (id(number), 2)).into());
    (world, ticket.id)
}

/// So, and host 1, where the master is, has used its part.
fn begun() -> (World, Uuid) {
    let (mut world, ticket) = granted();
    world.spend_part(ticket, id(1), [1, 2]).unwrap();
    (world, ticket)
}

fn to_come(ticket: &Ticket) -> Vec<(HostId, u32)> {
    ticket.to_come().collect()
}

fn beat_all(world: &mut World) {
    for number in 1..4 {
        world.beat(id(number));
    }
}

#[test]
fn each_host_uses_its_part() {
    let (mut world, ticket) = begun();
    let used = world.get(ticket);
    assert_eq!((used.state, to_come(&used)), (State::Used, vec![(id(2), 2), (id(3), 2)]));
    assert_eq!([1, 2, 3].map(|number| world.held(id(number))), [2, 2, 2]);
    // Said again it is the same, before and after others have used theirs.
    assert_eq!(world.spend_part(ticket, id(1), [2, 1]).unwrap(), used);
    let second = world.spend_part(ticket, id(2), [3]).unwrap();
    assert_eq!(
        (second.epoch, second.parent_host, to_come(&second)),
        (used.epoch, Some(id(1)), vec![(id(3), 2)])
    );
    assert_eq!(world.spend_part(ticket, id(1), [1, 2]).unwrap(), second);
    assert_eq!(world.spend_part(ticket, id(2), [3]).unwrap(), second);
    // What it has not used of its own part is for others.
    assert_eq!([1, 2, 3].map(|number| world.held(id(number))), [2, 1, 2]);
    assert_eq!(world.spend_part(ticket, id(2), [4]).unwrap_err(), CoreError::Used(ticket));
    let third = world.spend_part(ticket, id(3), [5, 6]).unwrap();
    assert_eq!((third.vms(), world.core.live(&third), third.vms_to_come()), (5, 5, 0));
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    world.ended(id(2), ticket, [3], VmEnd::Ended);
    assert_eq!(world.state(ticket), State::Used);
    world.ended(id(3), ticket, [5, 6], VmEnd::Ended);
    assert_eq!(world.state(ticket), State::Released);
    // Nothing expires of what is used.
    world.pass(60_000);
    assert_eq!(world.state(ticket), State::Released);
}

#[test]
fn a_host_whose_daemon_was_replaced_calls_no_others_any_more() {
    let daemon = |number, instance: &str| {
        let identity = Identity {
            instance: instance.into(),
            boot: "b".into(),
            machine: format!("m{number}"),
            folder: "f".into(),
        };
        HostInfo { identity: Some(identity), ..info(number, 2) }
    };
    let mut world = World::new();
    for number in 1..4 {
        world.host_with(daemon(number, "first"), Vec::new());
    }
    let ticket = world.request(demand(6, 6)).unwrap().id;
    let used = world.spend_part(ticket, id(1), [1, 2]).unwrap();
    let second = world.spend_part(ticket, id(2), [3, 4]).unwrap();
    let clones = vec![running(&used, 1), running(&used, 2)];
    // A connection that is made anew changes nothing, and neither does another host's daemon.
    world.host_with(daemon(1, "first"), clones.clone());
    world.host_with(daemon(2, "second"), vec![running(&second, 3), running(&second, 4)]);
    assert_eq!(to_come(&world.get(ticket)), [(id(3), 2)]);
    let clones_meet = [1, 2, 3, 4].map(|vmid| world.arrive(ticket, vmid, None));
    let parent = world.arrive(ticket, 0, None);
    assert!(clones_meet.iter().chain([&parent]).all(|waiter| world.waits(*waiter)));
    world.host_with(daemon(1, "second"), clones);
    assert_eq!((to_come(&world.get(ticket)), world.held(id(3))), (Vec::new(), 0));
    assert_eq!(world.met(parent), (1, 5));
    // A call that was on its way comes too late.
    assert_eq!(world.spend_part(ticket, id(3), [5, 6]).unwrap_err(), CoreError::Used(ticket));
}

#[test]
fn vmids_parent_host_and_number_of_a_part_are_checked() {
    let (mut world, ticket) = begun();
    assert_eq!(world.spend_part(ticket, id(2), [2]).unwrap_err(), CoreError::BadVmid(2));
    // One that has ended is remembered under its vmid.
    world.ended(id(1), ticket, [2], VmEnd::Ended);
    assert_eq!(world.spend_part(ticket, id(2), [2]).unwrap_err(), CoreError::BadVmid(2));
    let small = CoreError::SmallTicket { ticket, wanted: 3, has: 2 };
    assert_eq!(world.spend_part(ticket, id(2), [3, 4, 5]).unwrap_err(), small);
    assert_eq!(world.spend_part(ticket, id(9), [3]).unwrap_err(), CoreError::Used(ticket));
    let other = |change: fn(&mut Usage)| {
        let mut usage = Usage { parent_host: id(1), keep_others: true, ..usage(ticket, id(2), [3]) };
        change(&mut usage);
        usage
    };
    let mut refused = |usage: Usage| world.ticket(|waiter| Command::Use(waiter, usage)).unwrap_err();
    let parent = CoreError::OtherParent { ticket, parent_vmid: 0 };
    assert_eq!(refused(other(|usage| usage.parent_vmid = 1)), parent);
    assert_eq!(refused(other(|usage| usage.parent_host = id(2))), parent);
    assert_eq!(refused(other(|usage| usage.parent_host = id(9))), CoreError::UnknownHost(id(9)));
    assert!(matches!(refused(other(|usage| usage.epoch = Some(1))), CoreError::StaleEpoch { .. }));
    // The parent may be on a host that has no part.
    world.host(4, 1);
    let there = world.request(Demand { hosts: vec![id(4)], ..demand(1, 1) }).unwrap().id;
    world.spend_part(there, id(4), [9]).unwrap();
    assert_eq!(world.get(there).parent_host, Some(id(1)));
}

#[test]
fn who_does_not_keep_what_others_have_gives_it_back() {
    let (mut world, ticket) = begun();
    let usage = Usage { parent_host: id(1), ..usage(ticket, id(2), [3, 4]) };
    let used = world.ticket(|waiter| Command::Use(waiter, usage)).unwrap();
    assert_eq!((to_come(&used), used.vms()), (vec![], 4));
    assert_eq!([1, 2, 3].map(|number| world.held(id(number))), [2, 2, 0]);
    assert_eq!(world.spend_part(ticket, id(3), [5]).unwrap_err(), CoreError::Used(ticket));
}

#[test]
fn what_is_not_used_in_time_is_for_others_and_what_is_used_stays() {
    let (mut world, ticket) = begun();
    let waiter = world.ask(Demand { family: id(8), timeout_ms: 100_000, ..demand(4, 4) });
    let barrier = [0, 1, 2].map(|vmid| world.arrive(ticket, vmid, None));
    let join = world.join(ticket, None);
    for _ in 0..6 {
        beat_all(&mut world);
        world.pass(9_999);
    }
    assert!(world.waits(waiter) && barrier.iter().all(|waiter| world.waits(*waiter)));
    beat_all(&mut world);
    world.pass(6);
    let rest = world.get(ticket);
    assert_eq!((rest.state, to_come(&rest), rest.vms()), (State::Used, vec![], 2));
    assert!(world.was_answered(waiter).is_ok());
    assert!(barrier.iter().all(|waiter| world.met(*waiter) == (1, 3)));
    assert_eq!(world.spend_part(ticket, id(2), [3]).unwrap_err(), CoreError::Used(ticket));
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    assert!(matches!(world.was_answered(join), Ok(Reply::Joined(_))));
}

#[test]
fn nobody_meets_or_joins_without_those_that_may_come() {
    let (mut world, ticket) = begun();
    let mut waiters: Vec<_> = [0, 1].map(|vmid| world.arrive(ticket, vmid, None)).into();
    let late = world.arrive(ticket, 2, Some(0));
    let timeout = CoreError::BarrierTimeout { arrived: 3, wanted: 7 };
    assert_eq!(world.was_answered(late).unwrap_err(), timeout);
    waiters.push(world.arrive(ticket, 2, None));
    world.spend_part(ticket, id(2), [3]).unwrap();
    waiters.push(world.arrive(ticket, 3, None));
    assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
    // The third host's part is released: those that are there have met.
    assert_eq!(world.release(ticket).unwrap().state, State::Used);
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (1, 4)));
    assert_eq!((world.held(id(3)), world.release(ticket).is_ok()), (0, true));

    let (mut world, ticket) = begun();
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    let join = world.join(ticket, None);
    let late = world.join(ticket, Some(0));
    assert_eq!(world.was_answered(late).unwrap_err(), CoreError::JoinTimeout { live: 4 });
    world.spend_part(ticket, id(2), [3]).unwrap();
    world.ended(id(2), ticket, [3], VmEnd::Ended);
    assert!(world.waits(join) && world.state(ticket) == State::Used);
    assert_eq!(world.release(ticket).unwrap().state, State::Released);
    assert!(matches!(world.was_answered(join), Ok(Reply::Joined(joined)) if joined.results.len() == 3));
    assert_eq!(world.spend_part(ticket, id(3), [5]).unwrap_err(), CoreError::Released(ticket));
}

#[test]
fn a_host_undoes_its_own_part_only() {
    let (mut world, ticket) = begun();
    let first = world.get(ticket);
    world.spend_part(ticket, id(2), [3, 4]).unwrap();
    let barrier = [0, 1, 2, 3].map(|vmid| world.arrive(ticket, vmid, None));
    let join = world.join(ticket, None);
    let undone = world.unuse_at(ticket, id(2)).unwrap();
    assert_eq!(to_come(&undone), [(id(2), 2), (id(3), 2)]);
    assert!(undone.epoch > first.epoch && undone.granted_unix_ms == first.granted_unix_ms);
    assert_eq!(undone.clones.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(world.was_answered(barrier[3]), Err(CoreError::UnknownVm { vmid: 3, .. })));
    assert!(barrier[..3].iter().chain([&join]).all(|waiter| world.waits(*waiter)));
    assert_eq!(world.unuse_at(ticket, id(2)).unwrap(), undone);
    // Whoever knows the ticket from before may use its part, and undo it.
    let with_epoch = |host, epoch| Usage {
        epoch: Some(epoch),
        parent_host: id(1),
        keep_others: true,
        ..usage(ticket, host, [5])
    };
    let third = world.ticket(|waiter| Command::Use(waiter, with_epoch(id(3), first.epoch))).unwrap();
    let named = super::world::named(ticket);
    let unuse =
        |host, epoch| move |waiter| Command::Unuse { waiter, ticket: named, epoch: Some(epoch), host };
    world.ticket(unuse(id(3), third.epoch)).unwrap();
    // But not one who knows only what was undone.
    let stale = world.ticket(|waiter| Command::Use(waiter, with_epoch(id(2), first.epoch)));
    assert!(matches!(stale, Err(CoreError::StaleEpoch { .. })), "{stale:?}");
    world.spend_part(ticket, id(2), [3, 4]).unwrap();
    let late = world.ticket(unuse(id(2), first.epoch));
    assert!(matches!(late, Err(CoreError::StaleEpoch { .. })), "{late:?}");
    // When the last one is undone, the ticket is as if nobody had used it.
    world.ticket(unuse(id(1), first.epoch)).unwrap();
    assert!(world.waits(join));
    let all = world.unuse_at(ticket, id(2)).unwrap();
    assert_eq!((all.state, all.parent_vmid, all.vms()), (State::Granted, None, 5));
    assert_eq!(world.was_answered(join).unwrap_err(), CoreError::NotUsed(ticket));
    // Its time begins again.
    for _ in 0..6 {
        beat_all(&mut world);
        world.pass(9_999);
    }
    assert_eq!(world.state(ticket), State::Granted);
    beat_all(&mut world);
    world.pass(6);
    assert_eq!((world.state(ticket), world.held(id(2))), (State::Expired, 0));
}

#[test]
fn what_is_undone_too_late_or_on_a_draining_host_is_for_others() {
    let (mut world, ticket) = begun();
    world.spend_part(ticket, id(2), [3, 4]).unwrap();
    for _ in 0..7 {
        beat_all(&mut world);
        world.pass(9_999);
    }
    let undone = world.unuse_at(ticket, id(2)).unwrap();
    assert_eq!((to_come(&undone), world.held(id(2)), undone.vms()), (vec![], 0, 2));
    assert_eq!(world.unuse_at(ticket, id(2)).unwrap(), undone);

    let (mut world, ticket) = begun();
    world.spend_part(ticket, id(2), [3, 4]).unwrap();
    assert_eq!(world.schedule(id(3), Scheduling::Draining).unwrap().released, 1);
    assert_eq!((world.held(id(3)), to_come(&world.get(ticket))), (0, vec![]));
    assert_eq!(world.schedule(id(2), Scheduling::Draining).unwrap().released, 0);
    world.unuse_at(ticket, id(2)).unwrap();
    assert_eq!(world.held(id(2)), 0);
    world.schedule(id(1), Scheduling::Draining).unwrap();
    assert_eq!(world.unuse_at(ticket, id(1)).unwrap().state, State::Released);
}

#[test]
fn a_host_that_is_lost_loses_its_own_part() {
    let (mut world, ticket) = begun();
    world.spend_part(ticket, id(2), [3, 4]).unwrap();
    let join = world.join(ticket, None);
    let waiters = [0, 1, 2, 3].map(|vmid| world.arrive(ticket, vmid, None));
    // Host 3 has not used its part.
    world.down(id(3));
    assert_eq!(to_come(&world.get(ticket)), [(id(3), 2)], "it may come back");
    world.fence(id(3)).unwrap();
    let rest = world.get(ticket);
    assert_eq!((rest.state, to_come(&rest), rest.vms()), (State::Used, vec![], 4));
    world.host(3, 2);
    assert_eq!(world.spend_part(ticket, id(3), [5]).unwrap_err(), CoreError::Used(ticket));
    // Host 2 has.
    world.down(id(2));
    world.fence(id(2)).unwrap();
    assert!(waiters[..3].iter().all(|waiter| world.met(*waiter) == (1, 3)));
    assert!(matches!(world.was_answered(waiters[3]), Err(CoreError::UnknownVm { .. })));
    let rest = world.get(ticket);
    assert_eq!((rest.state, rest.vms(), world.core.live(&rest)), (State::Used, 2, 2));
    // It comes back with its clones.
    world.host_with(info(2, 2), [3, 4].map(|vmid| running(&rest, vmid)).into());
    assert_eq!(world.core.live(&world.get(ticket)), 4);
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    world.ended(id(2), ticket, [3, 4], VmEnd::Ended);
    assert!(matches!(world.was_answered(join), Ok(Reply::Joined(_))));
    // The last one whose part is missing.
    let (mut world, ticket) = begun();
    world.release(ticket).unwrap();
    let (mut other, alone) = begun();
    other.ended(id(1), alone, [1, 2], VmEnd::Ended);
    for number in [2, 3] {
        assert_eq!(other.state(alone), State::Used);
        other.down(id(number));
        other.fence(id(number)).unwrap();
    }
    assert_eq!(other.state(alone), State::Fenced);
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    assert_eq!(world.state(ticket), State::Released);
}

#[test]
fn a_kill_by_ticket_ends_what_lives_and_what_may_come() {
    let (mut world, ticket) = begun();
    let waiter = world.kill(Targets::Ticket(ticket));
    assert!(world.waits(waiter) && to_come(&world.get(ticket)).is_empty());
    assert_eq!(world.spend_part(ticket, id(2), [3]).unwrap_err(), CoreError::Used(ticket));
    world.ended(id(1), ticket, [1, 2], VmEnd::Killed);
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1, 2])));
    // Though nobody lives.
    let (mut world, ticket) = begun();
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    let waiter = world.kill(Targets::Ticket(ticket));
    assert_eq!(world.was_answered(waiter), Ok(Reply::Killed(vec![1, 2])));
    assert_eq!(world.state(ticket), State::Released);
    // Some clones leave the rest as it is.
    let (mut world, ticket) = begun();
    world.kill(Targets::Vmids(vec![1]));
    assert_eq!(to_come(&world.get(ticket)).len(), 2);
}

#[test]
fn a_schedulers_restart_changes_nothing_about_parts() {
    let (mut world, ticket) = begun();
    let before = world.get(ticket);
    world.restart(options());
    assert_eq!(world.get(ticket), before);
    let clones = [1, 2].map(|vmid| Running { parent_host: Some(id(1)), ..running(&before, vmid) });
    world.host_with(info(1, 2), clones.into());
    world.host(2, 2);
    assert_eq!(world.get(ticket), before);
    assert_eq!([1, 2, 3].map(|number| world.held(id(number))), [2, 2, 2]);
    let used = Usage {
        epoch: Some(before.epoch),
        parent_host: id(1),
        keep_others: true,
        ..usage(ticket, id(2), [3])
    };
    world.ticket(|waiter| Command::Use(waiter, used)).unwrap();
    world.pass(60_000);
    assert!(to_come(&world.get(ticket)).is_empty(), "the part of host 3 expires");
    // As one is that is stored without clones that live: its parts are still to come.
    let (mut world, ticket) = begun();
    world.ended(id(1), ticket, [1, 2], VmEnd::Ended);
    world.restart(options());
    assert_eq!((world.state(ticket), to_come(&world.get(ticket)).len()), (State::Used, 2));
}

#[test]
fn a_clone_that_runs_before_its_part_is_used_is_to_end() {
    let (mut world, ticket) = begun();
    let of = world.get(ticket);
    world.host_with(info(2, 2), vec![running(&of, 3)]);
    let Some(Effect::Kill { epoch, vmids, .. }) = world.effects.last() else { panic!("{:?}", world.effects) };
    assert!(vmids == &[3] && *epoch < of.epoch, "not one that is made later");
    assert_eq!(to_come(&world.get(ticket)).len(), 2);
    // Unless its use is under way.
    world.host_making(info(3, 2), vec![running(&of, 5)], vec![ticket]);
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Kill { .. })));
    let used = world.spend_part(ticket, id(3), [5, 6]).unwrap();
    assert_eq!(world.core.live(&used), 4);
}

/// The families whose master is on a host, as it says.
fn with_masters(world: &World, number: u128, running: Vec<Running>, masters: &[u128]) -> Present {
    assert!(world.core.hosts().iter().any(|host| host.info.id == id(number)));
    let masters = masters.iter().map(|family| id(*family)).collect::<BTreeSet<_>>();
    Present { running, masters: Some(masters), ..Present::default() }
}

#[test]
fn a_master_is_waited_for_as_long_as_its_own_host_has_it() {
    let (mut world, ticket) = begun();
    world.spend_part(ticket, id(2), [3]).unwrap();
    world.release(ticket).unwrap();
    let of = world.get(ticket);
    let clones = |vmids: &[u32]| vmids.iter().map(|vmid| running(&of, *vmid)).collect::<Vec<_>>();
    world.leave(ticket, 3, 7, 100).unwrap();
    // Host 2 has clones of the family, and not its master.
    let present = with_masters(&world, 2, clones(&[3]), &[]);
    world.host_present(info(2, 2), present);
    assert!(!world.get(ticket).parent_ended);
    assert_eq!(world.core.counts().data_bytes, 100, "the master reads it");
    let waiters = [1, 2, 3].map(|vmid| world.arrive(ticket, vmid, None));
    assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
    // The master's host is lost, and its clones with it: those elsewhere go on without them.
    world.down(id(1));
    world.fence(id(1)).unwrap();
    assert_eq!(world.met(waiters[2]), (1, 1));
    // It is back with all of them.
    let present = with_masters(&world, 1, clones(&[1, 2]), &[7]);
    world.host_present(info(1, 2), present);
    assert!(!world.get(ticket).parent_ended);
    let waiters = [1, 2, 3].map(|vmid| world.arrive(ticket, vmid, None));
    assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
    // The master ends.
    let present = with_masters(&world, 1, clones(&[1, 2]), &[]);
    world.host_present(info(1, 2), present);
    assert!(waiters.iter().all(|waiter| world.met(*waiter) == (2, 3)));
    assert_eq!(world.core.counts().data_bytes, 0);
}

#[test]
fn a_parent_on_another_host_is_looked_for_when_that_host_is_known() {
    let (world, ticket) = begun();
    let of = world.get(ticket);
    // The ledger is lost. Host 2 runs clones of VMs 1 and 9 of host 1, where only VM 1 is.
    let child = |number: u128, vmid, parent| Running {
        ticket: id(number),
        parent_vmid: Some(parent),
        parent_host: Some(id(1)),
        ..running(&of, vmid)
    };
    let mut world = World::new();
    world.host_with(info(2, 4), vec![child(50, 3, 1), child(51, 4, 9)]);
    let waiters = [(50, 3), (51, 4)].map(|(number, vmid)| world.arrive(id(number), vmid, None));
    assert!(waiters.iter().all(|waiter| world.waits(*waiter)));
    world.host_with(info(1, 4), vec![running(&of, 1)]);
    assert!(world.waits(waiters[0]));
    assert_eq!(world.met(waiters[1]), (1, 1));
}
