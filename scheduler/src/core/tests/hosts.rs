//! Hosts come, go, and come back.

use super::world::{World, demand, facts, id, info, options, running};
use crate::core::{
    api::{
        Beat, Command, CoreError, Demand, Effect, HostInfo, Options, Reply, Running, Targets, UseBy, Waiter,
    },
    record::HostRecord,
    state::Standing,
    ticket::{State, Ticket, VmEnd},
};

/// Three clones of a ticket run on host 1.
fn used() -> (World, Ticket) {
    let mut world = World::new();
    world.host(1, 4);
    let ticket = world.request(demand(3, 3)).unwrap();
    let ticket = world.spend(&ticket, [1, 2, 3]).unwrap();
    (world, ticket)
}

/// The VM of that vmid makes a clone, on host 1.
fn clone_of(waiter: Waiter, parent_vmid: u32, vmid: u32) -> Command {
    let use_by = Some(UseBy { parent_vmid, vmids: vec![vmid], host_epoch: None });
    Command::Request { waiter, demand: Demand { use_by, hosts: vec![id(1)], ..demand(1, 1) } }
}

fn standing(world: &World) -> Standing {
    world.core.hosts()[0].standing
}

fn all_of(ticket: &Ticket) -> Vec<Running> {
    ticket.clones.keys().map(|vmid| running(ticket, *vmid)).collect()
}

/// Three clones of a ticket run on host 1, which is given up.
fn lost() -> (World, Ticket) {
    let (mut world, ticket) = used();
    world.down(id(1));
    world.pass(30_000);
    assert_eq!((world.state(ticket.id), standing(&world)), (State::Fenced, Standing::Lost));
    (world, ticket)
}

fn kills(world: &World) -> Vec<u32> {
    let kills = world.effects.iter().filter_map(|effect| match effect {
        Effect::Kill { vmids, .. } => Some(vmids.clone()),
        _ => None,
    });
    kills.flatten().collect()
}

/// Fencing tells the old from the new by that.
#[test]
fn no_epoch_is_given_twice_though_the_clock_is_set_back() {
    let mut world = World::new();
    let host = world.host(1, 4);
    let mut before = world.hosts[&host];
    for lives in 1..4 {
        // No ticket remembers these.
        world.now -= 1_000;
        world.restart(options());
        world.host(1, 4);
        assert!(world.hosts[&host] > before, "life {lives}");
        assert!(world.hosts[&host] <= world.reserved, "it is reserved before it is given");
        before = world.hosts[&host];
    }
    let ticket = world.request(demand(1, 1)).unwrap();
    assert!(ticket.epoch > before);
}

#[test]
fn a_host_that_beats_lives() {
    let (mut world, ticket) = used();
    for _ in 0..10 {
        world.pass(9_999);
        world.beat(id(1));
    }
    assert_eq!(world.state(ticket.id), State::Used);
    assert_eq!(world.core.hosts()[0].seen_unix_ms, world.now);
}

#[test]
fn a_host_that_is_silent_for_its_lease_is_suspect_and_keeps_all_it_has() {
    let (mut world, used) = used();
    let granted = world.request(demand(1, 1)).unwrap();
    let join = world.join(used.id, None);
    world.pass(9_999);
    assert_eq!(standing(&world), Standing::Up);
    world.pass(1);
    let cut = Effect::Cut { host: id(1), epoch: world.hosts[&id(1)] };
    assert!(world.effects.contains(&cut), "if it lives, it registers again");
    let host = &world.core.hosts()[0];
    assert_eq!((host.standing, host.since_unix_ms), (Standing::Suspect, world.now));
    assert_eq!(host.lost_unix_ms, Some(world.now + 20_000));
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    // Until a moment before it is lost.
    world.pass(19_999);
    assert_eq!((world.get(used.id), world.get(granted.id)), (used.clone(), granted.clone()));
    assert!(world.waits(join));
    world.host_with(info(1, 4), all_of(&used));
    assert_eq!((world.get(used.id), world.get(granted.id)), (used.clone(), granted.clone()));
    assert_eq!((standing(&world), world.held(id(1)), kills(&world)), (Standing::Up, 4, vec![]));
    assert!(world.spend(&granted, [9]).is_ok());
}

#[test]
fn a_host_that_is_silent_for_too_long_is_fenced_with_all_it_has() {
    let (mut world, used) = used();
    let granted = world.request(demand(1, 1)).unwrap();
    let join = world.join(used.id, None);
    world.pass(10_000);
    world.pass(20_000);
    for ticket in [&used, &granted] {
        let now = world.get(ticket.id);
        assert_eq!(now.state, State::Fenced);
        assert!(now.epoch > ticket.epoch);
    }
    assert!(world.was_answered(join).is_ok());
    let lost = world.get(used.id).results.values().all(|outcome| outcome.end == Some(VmEnd::Lost));
    assert!(lost);
    assert_eq!(world.spend(&granted, [9]).unwrap_err(), CoreError::Fenced(granted.id));
    assert!(!world.core.hosts()[0].is_up());
    // What it says now is of before.
    world.beat(id(1));
    assert!(!world.core.hosts()[0].is_up());
    let epoch = world.hosts[&id(1)];
    let stale = world.answer(|waiter| Command::Ended {
        waiter,
        host: id(1),
        epoch,
        clones: Vec::new(),
        masters: Vec::new(),
    });
    assert_eq!(stale, Err(CoreError::StaleHost { host: id(1), given: epoch }));
}

#[test]
fn without_a_lease_no_host_is_fenced() {
    let mut world = World::with(Options { lease_ms: 0, ..options() });
    world.host(1, 4);
    let ticket = world.request(demand(3, 3)).unwrap();
    world.spend(&ticket, [1, 2, 3]).unwrap();
    world.down(id(1));
    world.pass(100_000_000);
    assert_eq!(world.state(ticket.id), State::Used);
    assert!(!world.core.hosts()[0].is_up());
}

#[test]
fn a_lost_host_that_returns_keeps_its_clones_under_a_new_epoch() {
    let (mut world, ticket) = used();
    let clones = world.ticket(|waiter| clone_of(waiter, 3, 4)).unwrap();
    world.down(id(1));
    world.pass(30_000);
    let fenced = world.get(ticket.id);
    assert_eq!((fenced.state, world.get(clones.id).parent_ended), (State::Fenced, true));
    world.host_with(info(1, 4), all_of(&ticket).into_iter().chain(all_of(&clones)).collect());
    assert!(kills(&world).is_empty());
    let back = world.get(ticket.id);
    assert_eq!((back.state, back.vms(), world.core.live(&back)), (State::Used, 3, 3));
    assert!(back.epoch > fenced.epoch && back.results.is_empty() && back.over_unix_ms.is_none());
    // The clone of a clone waits for that again, and both hold room.
    assert_eq!((world.get(clones.id).parent_ended, world.held(id(1))), (false, 4));
    let join = world.join(ticket.id, None);
    world.ended(id(1), ticket.id, [1, 2, 3], VmEnd::Ended);
    assert!(world.was_answered(join).is_ok());
    assert_eq!((world.state(ticket.id), world.held(id(1))), (State::Released, 1));
    // It is remembered as long as any other from here on, not from when its host was lost.
    world.pass(80_000);
    assert_eq!(world.state(ticket.id), State::Released);
}

#[test]
fn of_a_lost_host_that_returns_what_does_not_run_stays_lost() {
    let (mut world, ticket) = lost();
    world.host_with(info(1, 4), vec![running(&ticket, 2)]);
    let back = world.get(ticket.id);
    assert_eq!((back.state, world.core.live(&back), world.held(id(1))), (State::Used, 1, 1));
    assert_eq!((back.results.len(), back.results[&1].end), (2, Some(VmEnd::Lost)));
}

#[test]
fn a_clone_that_was_replaced_killed_or_had_left_ends_when_its_host_returns() {
    let (mut world, ticket) = used();
    world.leave(ticket.id, 1, 0, 0).unwrap();
    world.down(id(1));
    world.pass(30_000);
    // Another one has its place; it has ended since.
    world.host(2, 4);
    let other = world.request(demand(1, 1)).unwrap();
    world.spend_at(other.id, id(2), [2]).unwrap();
    world.ended(id(2), other.id, [2], VmEnd::Ended);
    let killed = world.kill(Targets::Vmids(vec![3]));
    assert_eq!(world.was_answered(killed), Ok(Reply::Killed(vec![3])), "nobody waits for a lost host");
    for _ in 0..2 {
        world.host_with(info(1, 4), all_of(&ticket));
        assert_eq!((kills(&world), world.state(ticket.id)), (vec![1, 2, 3], State::Fenced));
        world.restart(options());
        world.host(2, 4);
    }
}

#[test]
fn a_kill_whose_host_is_lost_meanwhile_ends_the_clone_when_that_returns() {
    let (mut world, ticket) = used();
    world.down(id(1));
    let killed = world.kill(Targets::Ticket(ticket.id));
    assert!(world.waits(killed));
    world.pass(30_000);
    assert!(world.was_answered(killed).is_ok());
    world.host_with(info(1, 4), all_of(&ticket));
    assert_eq!((kills(&world), world.state(ticket.id)), (vec![1, 2, 3], State::Fenced));
}

#[test]
fn clones_that_are_to_end_hold_room_until_they_have_ended() {
    let (mut world, ticket) = lost();
    world.kill(Targets::Ticket(ticket.id));
    world.host_with(info(1, 4), vec![running(&ticket, 1), running(&ticket, 3)]);
    assert_eq!(kills(&world), [1, 3]);
    assert_eq!(world.held(id(1)), 2);
    assert_eq!(world.request(demand(1, 9)).unwrap().vms(), 2);
    let waiter = world.ask(Demand { timeout_ms: 1000, ..demand(2, 2) });
    world.ended(id(1), ticket.id, [1], VmEnd::Killed);
    assert!(world.waits(waiter));
    world.ended(id(1), ticket.id, [3, 3], VmEnd::Killed);
    assert!(!world.waits(waiter));
    let ends = world.get(ticket.id).results;
    assert!(ends.values().all(|outcome| outcome.end == Some(VmEnd::Lost)), "their end was noted before");
}

#[test]
fn a_host_whose_connection_ends_is_suspect_for_as_long_as_it_may_be_silent() {
    let (mut world, ticket) = used();
    world.pass(5000);
    world.down(id(1));
    assert_eq!(standing(&world), Standing::Suspect);
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    world.pass(29_999);
    assert_eq!(world.state(ticket.id), State::Used);
    let all = (1..=3).map(|vmid| running(&ticket, vmid)).collect();
    world.host_with(info(1, 4), all);
    assert_eq!((world.get(ticket.id), world.held(id(1))), (ticket.clone(), 3));
    world.down(id(1));
    world.pass(30_000);
    assert_eq!(world.state(ticket.id), State::Fenced);
    assert!(kills(&world).is_empty());
}

#[test]
fn an_earlier_connection_of_a_host_is_over() {
    let (mut world, ticket) = used();
    let first = world.hosts[&id(1)];
    world.host_with(info(1, 4), (1..=3).map(|vmid| running(&ticket, vmid)).collect());
    assert!(world.effects.contains(&Effect::Cut { host: id(1), epoch: first }));
    world.apply(Command::HostDown { host: id(1), epoch: first });
    assert!(world.core.hosts()[0].is_up());
    let stale = world.answer(|waiter| Command::Ended {
        waiter,
        host: id(1),
        epoch: first,
        clones: vec![(ticket.id, 1, VmEnd::Ended)],
        masters: Vec::new(),
    });
    assert!(matches!(stale, Err(CoreError::StaleHost { .. })));
    assert_eq!(world.core.live(&world.get(ticket.id)), 3);
}

#[test]
fn clones_that_a_host_does_not_list_are_lost() {
    let (mut world, ticket) = used();
    world.host_with(info(1, 4), vec![running(&ticket, 2)]);
    assert_eq!(world.core.live(&world.get(ticket.id)), 1);
    assert_eq!(world.get(ticket.id).results[&1].end, Some(VmEnd::Lost));
    world.host_with(info(1, 4), Vec::new());
    assert_eq!((world.state(ticket.id), world.held(id(1))), (State::Released, 0));
}

#[test]
fn clones_that_are_being_made_are_not_lost() {
    let (mut world, ticket) = used();
    world.host_making(info(1, 4), vec![running(&ticket, 2)], vec![ticket.id]);
    assert_eq!(world.core.live(&world.get(ticket.id)), 3);
    world.ended(id(1), ticket.id, [3], VmEnd::Ended);
    assert_eq!(world.core.live(&world.get(ticket.id)), 2);
}

#[test]
fn a_use_that_is_under_way_while_its_host_registers() {
    let mut world = World::new();
    world.host(1, 4);
    let ticket = world.request(demand(2, 2)).unwrap();
    world.host_making(info(1, 4), vec![running(&ticket, 1), running(&ticket, 2)], vec![ticket.id]);
    assert!(kills(&world).is_empty());
    assert_eq!(world.state(ticket.id), State::Granted);
    world.spend(&ticket, [1, 2]).unwrap();
    // A ticket that nobody knows any more: whether they run or are being made, they hold room.
    let mut unknown = ticket.clone();
    unknown.id = id(77);
    world.host_making(
        info(1, 4),
        vec![running(&unknown, 8), running(&unknown, 9), running(&ticket, 1), running(&ticket, 2)],
        vec![id(77)],
    );
    assert_eq!((world.state(id(77)), world.held(id(1))), (State::Used, 4));
    world.spend_at(id(77), id(1), [8, 9]).unwrap();
    world.ended(id(1), id(77), [8, 9], VmEnd::Ended);
    assert_eq!((world.state(id(77)), world.held(id(1))), (State::Released, 2));
}

#[test]
fn what_runs_is_in_the_ledger_whether_there_is_room_or_not() {
    let mut world = World::new();
    world.host(1, 4);
    let taken = world.request(demand(3, 3)).unwrap();
    let unknown = Ticket { id: id(50), ..taken.clone() };
    let all = (1..=3).map(|vmid| running(&unknown, vmid)).collect();
    world.host_with(info(1, 4), all);
    let adopted = world.get(id(50));
    assert_eq!((adopted.state, adopted.vms(), adopted.parent_vmid), (State::Used, 3, Some(0)));
    assert_eq!((world.held(id(1)), world.core.live(&adopted)), (6, 3));
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    world.release(taken.id).unwrap();
    assert_eq!(world.request(demand(1, 9)).unwrap().vms(), 1);
    world.ended(id(1), id(50), [1, 2, 3], VmEnd::Ended);
    assert_eq!(world.state(id(50)), State::Released);
}

#[test]
fn a_ticket_that_runs_on_two_hosts_loses_one_of_them() {
    let mut world = World::new();
    let (first, second) = (info(1, 4), info(2, 4));
    let template = Ticket {
        id: id(50),
        ..{
            world.host(9, 1);
            world.request(demand(1, 1)).unwrap()
        }
    };
    world.host_with(first, vec![running(&template, 1)]);
    world.host_with(second, vec![running(&template, 2), running(&template, 3)]);
    assert_eq!(world.get(id(50)).places.len(), 2);
    let waiter = world.arrive(id(50), 0, None);
    let others = [world.arrive(id(50), 2, None), world.arrive(id(50), 3, None)];
    for _ in 0..6 {
        world.pass(5000);
        world.beat(id(2));
    }
    // Host 1 was silent: the others have met, and go on.
    let ticket = world.get(id(50));
    assert_eq!((ticket.state, world.core.live(&ticket), ticket.places.len()), (State::Used, 2, 1));
    assert_eq!((world.met(waiter), world.met(others[0])), ((1, 3), (1, 3)));
    world.ended(id(2), id(50), [2, 3], VmEnd::Ended);
    assert_eq!(world.state(id(50)), State::Released);
    // Nothing has replaced the one on host 1: its ticket goes on.
    world.host_with(info(1, 4), vec![running(&template, 1)]);
    let ticket = world.get(id(50));
    assert_eq!((ticket.state, world.core.live(&ticket), world.held(id(1))), (State::Used, 1, 1));
    assert_eq!(ticket.places[&id(1)], 1);
}

#[test]
fn clones_of_a_granted_ticket_or_with_anothers_number_should_not_run() {
    let (mut world, ticket) = used();
    let granted = world.request(demand(1, 1)).unwrap();
    let mut other = running(&ticket, 3);
    other.ticket = id(50);
    let all = [running(&granted, 8), other].into_iter().chain((1..=3).map(|v| running(&ticket, v)));
    world.host_with(info(1, 4), all.collect());
    let mut killed = kills(&world);
    killed.sort_unstable();
    assert_eq!(killed, [3, 8]);
    assert_eq!(world.held(id(1)), 6);
    world.host_with(info(1, 4), (1..=3).map(|vmid| running(&ticket, vmid)).collect());
    assert_eq!(world.held(id(1)), 4);
}

#[test]
fn after_a_restart_hosts_have_all_their_time_to_come_back() {
    let (mut world, ticket) = used();
    let granted = world.request(demand(1, 1)).unwrap();
    world.restart(options());
    assert_eq!(standing(&world), Standing::Suspect);
    let waiter = world.ask(Demand { timeout_ms: 9000, ..demand(4, 4) });
    assert!(world.waits(waiter), "the host may come back");
    world.pass(29_999);
    world.host_with(info(1, 4), (1..=3).map(|vmid| running(&ticket, vmid)).collect());
    assert_eq!((world.get(ticket.id), world.get(granted.id)), (ticket.clone(), granted));
    assert_eq!(world.held(id(1)), 4);
    world.restart(options());
    world.pass(30_000);
    assert_eq!(world.state(ticket.id), State::Fenced);
    assert_eq!(world.core.counts().hosts, 1);
    for _ in 0..11 {
        world.pass(10_000);
    }
    assert_eq!((world.core.counts().hosts, world.store.len()), (0, 0));
}

#[test]
fn epochs_of_a_new_life_are_above_all_of_the_lives_before() {
    let (mut world, ticket) = used();
    let before = world.hosts[&id(1)].max(ticket.epoch);
    world.store.clear();
    world.restart(options());
    world.host(2, 1);
    assert!(world.hosts[&id(2)] > before);
}

#[test]
fn a_host_that_comes_back_smaller_keeps_what_it_has() {
    let (mut world, ticket) = used();
    world.host_with(info(1, 2), (1..=3).map(|vmid| running(&ticket, vmid)).collect());
    assert_eq!((world.held(id(1)), world.core.free(1, 64).vms), (3, 0));
    assert!(matches!(world.request(demand(1, 1)), Err(CoreError::NoCapacity { .. })));
    world.ended(id(1), ticket.id, 1..=3, VmEnd::Ended);
    assert_eq!(world.request(demand(1, 9)).unwrap().vms(), 2);
}

#[test]
fn clones_that_are_to_end_and_are_still_being_made_hold_room() {
    let (mut world, ticket) = lost();
    world.kill(Targets::Ticket(ticket.id));
    assert_eq!((world.state(ticket.id), world.held(id(1))), (State::Fenced, 0));
    let all = (1..=3).map(|vmid| running(&ticket, vmid)).collect();
    world.host_making(info(1, 4), all, vec![ticket.id]);
    assert_eq!((kills(&world), world.held(id(1))), (vec![1, 2, 3], 3));
    assert_eq!(world.request(demand(1, 9)).unwrap().vms(), 1);
    // The host could not end what it had not made: it is told until it has.
    world.beat(id(1));
    assert_eq!(kills(&world), [1, 2, 3]);
    world.ended(id(1), ticket.id, [2], VmEnd::Ended);
    world.beat(id(1));
    assert_eq!((kills(&world), world.held(id(1))), (vec![1, 3], 3));
    world.ended(id(1), ticket.id, [1, 3], VmEnd::Killed);
    world.beat(id(1));
    assert_eq!((kills(&world), world.held(id(1))), (vec![], 1));
}

#[test]
fn one_that_is_named_twice_with_different_sizes_is_one() {
    let (mut world, ticket) = lost();
    world.kill(Targets::Ticket(ticket.id));
    world.host(1, 4);
    world.request(demand(2, 2)).unwrap();
    let large = Running { vcpus: 4, memory_mib: 256, ..running(&ticket, 1) };
    world.host_with(info(1, 4), vec![running(&ticket, 1), large]);
    assert_eq!(world.held(id(1)), 3);
    world.ended(id(1), ticket.id, [1], VmEnd::Killed);
    let host = &world.core.hosts()[0];
    assert_eq!((host.held_vms, host.held_cpus, host.held_memory_mib), (2, 2, 128));
}

#[test]
fn what_a_host_has_is_stored_and_how_much_is_free_is_not() {
    let mut world = World::new();
    world.host_with(HostInfo { facts: Some(facts(1)), ..info(1, 4) }, Vec::new());
    let beat = |world: &mut World, free_memory_mib| {
        let (host, epoch) = (id(1), world.hosts[&id(1)]);
        world.apply(Command::HostBeat { host, epoch, beat: Beat { free_memory_mib, ..Beat::default() } });
        assert!(world.effects.is_empty(), "{:?}", world.effects);
        world.core.hosts()[0].free_memory_mib
    };
    assert_eq!(world.core.hosts()[0].free_memory_mib, None);
    assert_eq!(beat(&mut world, Some(100)), Some(100));
    assert_eq!(beat(&mut world, None), None);
    beat(&mut world, Some(100));
    let text = serde_json::to_string(&world.stored_hosts[&id(1)]).unwrap();
    let read: HostRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(read, world.stored_hosts[&id(1)]);
    world.restart(options());
    let host = &world.core.hosts()[0];
    assert_eq!((&host.info.facts, host.free_memory_mib), (&Some(facts(1)), None));
}

#[test]
fn a_host_may_say_itself_how_much_of_it_is_granted() {
    let mut world = World::with(Options { cpu_percent: 200, memory_percent: 300, ..options() });
    let own = HostInfo { cpu_percent: Some(150), memory_percent: Some(100), ..info(1, 4) };
    world.host_with(own, Vec::new());
    world.host_with(HostInfo { cpu_percent: Some(50), ..info(2, 4) }, Vec::new());
    world.host(3, 4);
    let sizes = world.core.hosts().into_iter().map(|host| (host.cpus, host.memory_mib));
    assert_eq!(sizes.collect::<Vec<_>>(), [(6, 256), (2, 768), (8, 768)]);
    // As much as fits into its memory, and no more.
    let first = Demand { hosts: vec![id(1)], ..demand(1, 9) };
    assert_eq!(world.request(first).unwrap().vms(), 4);
    let second = Demand { hosts: vec![id(2)], ..demand(1, 9) };
    assert_eq!(world.request(second).unwrap().vms(), 2);
}
