//! Daemons with one host id.

use super::world::{World, demand, id, info, options, running};
use crate::core::{
    api::{Command, CoreError, HostInfo, Present, Running},
    present::Identity,
    ticket::{State, Ticket},
};

/// Host 1, said by that instance, in that boot, on that machine, with that state folder.
fn said([instance, boot, machine, folder]: [&str; 4]) -> HostInfo {
    let identity = Identity {
        instance: instance.into(),
        boot: boot.into(),
        machine: machine.into(),
        folder: folder.into(),
    };
    HostInfo { identity: Some(identity), ..info(1, 4) }
}

const FIRST: [&str; 4] = ["i", "b", "m", "f"];

/// A clone runs on host 1.
fn first() -> (World, Ticket) {
    let mut world = World::new();
    world.host_with(said(FIRST), Vec::new());
    let ticket = world.request(demand(1, 1)).unwrap();
    let ticket = world.spend(&ticket, [1]).unwrap();
    (world, ticket)
}

fn is_refused(world: &mut World, info: &HostInfo, running: &[Running]) -> bool {
    let present = Present { running: running.to_vec(), ..Present::default() };
    let (info, epoch) = (info.clone(), world.hosts[&id(1)]);
    match world.answer(|waiter| Command::HostUp { waiter, info, present }) {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error, CoreError::HostIdInUse { .. }), "{error}");
            assert!(error.to_string().contains("delete the file host-id"), "{error}");
            assert_eq!(world.hosts[&id(1)], epoch);
            true
        }
    }
}

#[test]
fn a_copy_is_refused_while_the_first_may_live_and_does_not_disturb_it() {
    let copies = [["j", "c", "n", "f"], ["j", "b", "m", "g"], ["j", "b", "n", "f"]];
    let (mut world, ticket) = first();
    for copy in copies {
        assert!(is_refused(&mut world, &said(copy), &[]), "{copy:?} while the first is up");
        assert!(world.effects.len() == 1 && world.core.hosts()[0].is_up());
    }
    world.beat(id(1));
    world.down(id(1));
    assert!(copies.iter().all(|copy| is_refused(&mut world, &said(*copy), &[])), "the first is suspect");
    world.restart(options());
    assert!(copies.iter().all(|copy| is_refused(&mut world, &said(*copy), &[])), "it is not back yet");
    assert_eq!(world.state(ticket.id), State::Used);
    // When it is lost, anybody may have its id.
    world.pass(30_000);
    assert!(!is_refused(&mut world, &said(copies[0]), &[]));
    assert!(is_refused(&mut world, &said(FIRST), &[running(&ticket, 1)]));
}

#[test]
fn a_daemon_that_is_started_again_takes_over_at_once() {
    let (mut world, ticket) = first();
    let clone = [running(&ticket, 1)];
    assert!(!is_refused(&mut world, &said(FIRST), &clone), "the same one");
    assert!(!is_refused(&mut world, &said(["j", "b", "m", "f"]), &clone), "started again");
    // A copy of the whole machine looks like this, too.
    let rebooted = said(["k", "c", "m", "f"]);
    assert!(is_refused(&mut world, &rebooted, &[]), "the machine was rebooted, and is up");
    world.pass(10_000);
    assert!(!is_refused(&mut world, &rebooted, &[]), "its connection is over");
}

#[test]
fn a_daemon_of_an_earlier_release_follows_one_that_is_not_up() {
    let (mut world, ticket) = first();
    let clone = [running(&ticket, 1)];
    assert!(is_refused(&mut world, &info(1, 4), &clone));
    world.pass(10_000);
    assert!(!is_refused(&mut world, &info(1, 4), &clone), "it was put back");
    assert!(!is_refused(&mut world, &info(1, 4), &clone), "as before");
    assert!(is_refused(&mut world, &said(FIRST), &clone));
    world.pass(10_000);
    assert!(!is_refused(&mut world, &said(FIRST), &clone), "it was updated");
    assert_eq!(world.state(ticket.id), State::Used);
}
