//! Results of clones.

use super::world::{World, demand, everything, id, info, named, options, running, ticket_of};
use crate::core::{
    api::{
        Command, CoreError, DATA_MAX_BYTES, Demand, FAMILY_DATA_MAX_BYTES, JOIN_DATA_MAX_BYTES, Named,
        Options, Present, READ_KEPT_MS, Reply, TICKET_DATA_MAX_BYTES,
    },
    ticket::{State, Ticket, VmEnd},
};

fn used(clones: u32) -> (World, Ticket) {
    let mut world = World::new();
    world.host(1, 300);
    let ticket = world.request(demand(clones, clones)).unwrap();
    let ticket = world.spend(&ticket, 1..=clones).unwrap();
    (world, ticket)
}

#[test]
fn the_parent_hears_when_all_have_ended() {
    let (mut world, ticket) = used(3);
    let waiter = world.join(ticket.id, None);
    assert_eq!(world.leave(ticket.id, 1, 7, 100), Ok(Reply::Noted));
    assert_eq!(world.core.live(&world.get(ticket.id)), 3, "it has not ended yet");
    world.ended(id(1), ticket.id, [1], VmEnd::Killed);
    world.ended(id(1), ticket.id, [2], VmEnd::Killed);
    assert!(world.waits(waiter));
    world.ended(id(1), ticket.id, [3], VmEnd::Ended);
    let joined = ticket_of(world.was_answered(waiter).unwrap());
    assert_eq!((joined.state, joined.results.len()), (State::Released, 3));
    let first = joined.results[&1];
    assert_eq!(
        (first.end, first.status, first.data_bytes, first.reported),
        (Some(VmEnd::Joined), 7, 100, true)
    );
    assert_eq!(joined.results[&2].end, Some(VmEnd::Killed));
    // As long as it is remembered it can be asked for again, by an operator too.
    let again = world.join(ticket.id, None);
    assert_eq!(ticket_of(world.was_answered(again).unwrap()), joined);
    let operator = world.answer(|waiter| Command::JoinWait {
        waiter,
        ticket: named(ticket.id),
        vmid: None,
        timeout_ms: None,
    });
    assert!(operator.is_ok());
}

#[test]
fn only_the_parent_waits_and_not_for_ever_if_it_says_so() {
    let (mut world, ticket) = used(2);
    let wrong = world.answer(|waiter| Command::JoinWait {
        waiter,
        ticket: named(ticket.id),
        vmid: Some(1),
        timeout_ms: None,
    });
    assert_eq!(wrong, Err(CoreError::NotParent { ticket: ticket.id, vmid: 1 }));
    let waiter = world.join(ticket.id, Some(500));
    world.ended(id(1), ticket.id, [2], VmEnd::Ended);
    world.pass(500);
    assert_eq!(world.was_answered(waiter), Err(CoreError::JoinTimeout { live: 1 }));
    let gone = world.join(ticket.id, None);
    world.apply(Command::Gone(gone));
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    let unused = world.request(demand(1, 1)).unwrap().id;
    let early = world.join(unused, None);
    assert_eq!(world.was_answered(early), Err(CoreError::NotUsed(unused)));
}

#[test]
fn only_live_clones_leave_results() {
    let (mut world, ticket) = used(2);
    let not_clone = |vmid| Err(CoreError::NotClone { ticket: ticket.id, vmid });
    assert_eq!(world.leave(ticket.id, 0, 0, 0), not_clone(0));
    assert_eq!(world.leave(ticket.id, 9, 0, 0), not_clone(9));
    world.ended(id(1), ticket.id, [2], VmEnd::Ended);
    assert_eq!(world.leave(ticket.id, 2, 0, 0), not_clone(2));
    // The last word counts.
    world.leave(ticket.id, 1, 1, 10).unwrap();
    world.leave(ticket.id, 1, 2, 20).unwrap();
    let left = world.get(ticket.id).results[&1];
    assert_eq!((left.end, left.status, left.data_bytes), (None, 2, 20));
    let unused = world.request(demand(1, 1)).unwrap().id;
    assert_eq!(world.leave(unused, 1, 0, 0), Err(CoreError::NotUsed(unused)));
}

#[test]
fn data_has_its_limits() {
    let (mut world, ticket) = used(1);
    let bytes = JOIN_DATA_MAX_BYTES + 1;
    let much = CoreError::TooMuchData { bytes, most: JOIN_DATA_MAX_BYTES };
    assert_eq!(world.leave(ticket.id, 1, 0, bytes), Err(much));
    assert_eq!(world.leave(ticket.id, 1, 0, JOIN_DATA_MAX_BYTES), Ok(Reply::Noted));
    assert_eq!(u64::from(crate::core::api::TICKET_VMS_MAX) * JOIN_DATA_MAX_BYTES, TICKET_DATA_MAX_BYTES);
}

#[test]
fn a_result_outlives_the_host_that_it_was_left_on() {
    let (mut world, ticket) = used(2);
    world.leave(ticket.id, 1, 3, 0).unwrap();
    world.down(id(1));
    world.pass(30_000);
    let results = world.get(ticket.id).results;
    assert_eq!((results[&1].end, results[&1].status), (Some(VmEnd::Joined), 3));
    assert_eq!(results[&2].end, Some(VmEnd::Lost));
}

/// As many clones of a family as it takes, each leaves a MiB. How many can.
fn fill(world: &mut World, family: u128, most: u32) -> u32 {
    let mut left = 0;
    for n in 0..most.div_ceil(256) {
        let ticket = world.request(Demand { family: id(family), ..demand(256, 256) }).unwrap();
        let vmids = n * 256 + 1..=(n + 1) * 256;
        let ticket = world.spend(&ticket, vmids.clone()).unwrap();
        for vmid in vmids.clone() {
            match world.leave(ticket.id, vmid, 0, JOIN_DATA_MAX_BYTES) {
                Ok(_) => left += 1,
                Err(CoreError::TooMuchData { most, .. }) => {
                    assert!(most < JOIN_DATA_MAX_BYTES);
                    // What is short is the room, not the right to end.
                    world.leave(ticket.id, vmid, 0, 0).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
        }
        world.ended(id(1), ticket.id, vmids, VmEnd::Ended);
    }
    left
}

fn read(world: &mut World, ticket: &Ticket, vmid: u32) {
    let ticket = Named { id: ticket.id, family: Some(ticket.family) };
    let read = world.answer(|waiter| Command::DataRead { waiter, ticket, vmid });
    assert_eq!(read, Ok(Reply::Noted));
}

fn mebibytes(bytes: u64) -> u32 {
    u32::try_from(bytes / JOIN_DATA_MAX_BYTES).unwrap()
}

#[test]
fn a_family_leaves_so_much_and_keeps_no_other_one_from_leaving_something() {
    let mut world = World::with(Options { remember_ms: 1_000_000_000, lease_ms: 0, ..options() });
    world.host(1, 300);
    let (of_family, of_all) = (mebibytes(FAMILY_DATA_MAX_BYTES), mebibytes(DATA_MAX_BYTES));
    assert_eq!(fill(&mut world, 100, of_family + 256), of_family);
    let mut all = of_family;
    for family in 101.. {
        let free = of_all - all;
        let got = fill(&mut world, family, of_family);
        // Nobody has more than is free, and whoever comes then finds half of that.
        assert_eq!(got, of_family.min(free / 2), "family {family}");
        all += got;
        if free < 300 {
            break;
        }
    }
    assert!(of_all - all > 64, "{all}");
}

#[test]
fn what_was_read_goes_after_a_while_or_when_there_is_need_of_its_room() {
    let mut world = World::with(Options { remember_ms: 1_000_000_000, lease_ms: 0, ..options() });
    world.host(1, 300);
    let of_family = mebibytes(FAMILY_DATA_MAX_BYTES);
    assert_eq!(fill(&mut world, 7, of_family), of_family);
    let all = world.core.tickets(&everything());
    let first = all.into_iter().min_by_key(|ticket| ticket.clones.keys().next().copied()).unwrap().clone();
    // An answer may be lost: it can be read again.
    for _ in 0..2 {
        read(&mut world, &first, 1);
        read(&mut world, &first, 2);
    }
    world.pass(READ_KEPT_MS - 1);
    assert_eq!(world.get(first.id).results[&1].kept_bytes(), JOIN_DATA_MAX_BYTES);
    assert_eq!(world.core.counts().data_bytes, FAMILY_DATA_MAX_BYTES);
    // There is need of room: both make it.
    let last = world.request(demand(1, 1)).unwrap();
    let last = world.spend(&last, [3000]).unwrap();
    world.leave(last.id, 3000, 0, 10).unwrap();
    let results = world.get(first.id).results;
    assert!(results[&1].is_dropped() && results[&2].is_dropped() && !results[&3].is_dropped());
    // The time is over, after the scheduler's restart as before it.
    read(&mut world, &first, 3);
    world.restart(Options { remember_ms: 1_000_000_000, lease_ms: 0, ..options() });
    world.pass(READ_KEPT_MS);
    let results = world.get(first.id).results;
    assert_eq!((results[&3].is_dropped(), results[&3].data_bytes), (true, JOIN_DATA_MAX_BYTES));
    assert!(!results[&4].is_dropped());
}

#[test]
fn what_is_left_of_a_family_goes_with_its_master() {
    let (mut world, ticket) = used(2);
    world.leave(ticket.id, 1, 3, 100).unwrap();
    let other = world.request(Demand { family: id(8), ..demand(1, 1) }).unwrap();
    let other = world.spend(&other, [1]).unwrap();
    world.leave(other.id, 1, 0, 50).unwrap();
    world.host(2, 1);
    // Of another host it is another one, and so it is of another family.
    world.masters_ended(id(2), [7]);
    world.masters_ended(id(1), [9]);
    assert_eq!(world.core.counts().data_bytes, 150);
    world.ended(id(1), ticket.id, [1, 2], VmEnd::Ended);
    world.masters_ended(id(1), [7]);
    let left = world.get(ticket.id).results[&1];
    assert_eq!((left.is_dropped(), left.status, left.data_bytes), (true, 3, 100));
    // A clone that ended while its host was away.
    let present =
        Present { running: vec![running(&other, 1)], masters: Some([].into()), ..Present::default() };
    world.host_present(info(1, 300), present);
    assert_eq!(world.core.counts().data_bytes, 0);
}
