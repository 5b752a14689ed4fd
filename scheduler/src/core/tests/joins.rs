//! Results of clones.

use super::world::{World, demand, id, named, ticket_of};
use crate::core::{
    api::{Command, CoreError, JOIN_DATA_MAX_BYTES, Reply, TICKET_DATA_MAX_BYTES},
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
    world.pass(10_000);
    let results = world.get(ticket.id).results;
    assert_eq!((results[&1].end, results[&1].status), (Some(VmEnd::Joined), 3));
    assert_eq!(results[&2].end, Some(VmEnd::Lost));
}
