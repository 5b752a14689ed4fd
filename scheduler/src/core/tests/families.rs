//! The VMs of a family on all hosts.

use super::world::{World, demand, id, info, running};
use crate::core::{api::Present, family::FamilyVm, state::Standing, ticket::VmEnd};
use uuid::Uuid;

/// The family of [`demand`].
const FAMILY: u128 = 7;

fn vm(host: u128, standing: Standing, ticket: Option<Uuid>, parent_vmid: Option<u32>) -> FamilyVm {
    let of_host = info(host, 4);
    FamilyVm {
        host: id(host),
        hostname: of_host.name,
        address: of_host.address,
        standing,
        ticket,
        parent_vmid,
    }
}

#[test]
fn a_family_is_listed_with_its_master_and_the_clones_that_live_on_all_hosts() {
    let mut world = World::new();
    let masters = Some([id(FAMILY), id(8)].into());
    world.host_present(info(1, 4), Present { masters, ..Present::default() });
    world.host(2, 4);
    let family = |world: &World| world.core.family(id(FAMILY));
    let master = vm(1, Standing::Up, None, None);
    assert_eq!(family(&world), [(0, master.clone())].into());
    assert_eq!(world.core.family(id(9)), [].into());

    // Nothing is listed of a ticket that is only granted.
    let ticket = world.request(demand(6, 6)).unwrap();
    assert_eq!(family(&world).len(), 1);
    world.spend_part(ticket.id, id(1), [1]).unwrap();
    world.spend_part(ticket.id, id(2), [2, 3]).unwrap();
    let used = world.get(ticket.id);
    let clone = |host, standing| vm(host, standing, Some(used.id), used.parent_vmid);
    let up = Standing::Up;
    let all = [(0, master.clone()), (1, clone(1, up)), (2, clone(2, up)), (3, clone(2, up))];
    assert_eq!(family(&world), all.into());

    // One has ended, and the host of another is silent.
    world.ended(id(1), ticket.id, [1], VmEnd::Ended);
    world.down(id(2));
    let suspect = clone(2, Standing::Suspect);
    assert_eq!(family(&world), [(0, master), (2, suspect.clone()), (3, suspect)].into());
    world.masters_ended(id(1), [FAMILY]);
    assert_eq!(family(&world).keys().copied().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn clones_that_run_without_their_ticket_are_of_the_family_too() {
    let mut world = World::new();
    let host = world.host(1, 4);
    let ticket = world.request(demand(1, 1)).unwrap();
    let used = world.spend(&ticket, [1]).unwrap();
    world.ended(host, ticket.id, [1], VmEnd::Ended);
    assert_eq!(world.core.family(id(FAMILY)), [].into());
    // Its host says that it runs all the same.
    let ghost = running(&used, 1);
    world.host_with(info(1, 4), vec![ghost]);
    let listed = vm(1, Standing::Up, Some(ticket.id), ghost.parent_vmid);
    assert_eq!(world.core.family(id(FAMILY)), [(1, listed)].into());
}
