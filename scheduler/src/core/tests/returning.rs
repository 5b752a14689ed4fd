//! What comes back with its host finds that others have gone, come back or been forgotten
//! meanwhile.

use super::world::{World, demand, id, info, options, running, usage};
use crate::core::{
    api::{Beat, Command, CoreError, Demand, Effect, Present, Running, Usage},
    ticket::{HostId, State, Ticket, VmEnd},
};
use uuid::Uuid;

/// Hosts 1 and 2. On host 1 are a master and its clone 1; on host 2 are clone 2 of clone 1, and
/// clone 3 of the master.
struct Scene {
    world: World,
    of_clone: Ticket,
    of_master: Ticket,
    one: Running,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::new();
        for number in [1, 2] {
            world.host(number, 4);
        }
        let first = world.request(at(1)).unwrap();
        let first = world.spend_at(first.id, id(1), [1]).unwrap();
        let made_by = |world: &mut World, parent_vmid, vmid| {
            let ticket = world.request(at(2)).unwrap().id;
            let usage = Usage { parent_vmid, parent_host: id(1), ..usage(ticket, id(2), [vmid]) };
            world.ticket(|waiter| Command::Use(waiter, usage)).unwrap()
        };
        let of_clone = made_by(&mut world, 1, 2);
        let of_master = made_by(&mut world, 0, 3);
        Self { world, of_clone, of_master, one: running(&first, 1) }
    }

    fn lose(&mut self, number: u128) {
        self.world.down(id(number));
        self.world.fence(id(number)).unwrap();
    }

    /// Host 1 comes back, and has the masters of these families.
    fn first_returns(&mut self, masters: &[u128]) {
        let masters = Some(masters.iter().map(|family| id(*family)).collect());
        let present = Present { running: vec![self.one], masters, ..Present::default() };
        self.world.host_present(info(1, 4), present);
    }

    /// Host 2 comes back.
    fn second_returns(&mut self) {
        let clone_of = |ticket: &Ticket, vmid| Running {
            parent_vmid: ticket.parent_vmid,
            parent_host: ticket.parent_host,
            ..running(ticket, vmid)
        };
        let all = vec![clone_of(&self.of_clone, 2), clone_of(&self.of_master, 3)];
        self.world.host_with(info(2, 4), all);
    }

    /// Whether the clones of host 2 wait for nobody: for clone 1, and for the master.
    fn alone(&self) -> [bool; 2] {
        [&self.of_clone, &self.of_master].map(|ticket| self.world.get(ticket.id).parent_ended)
    }
}

/// A ticket of a scheduler that has lost its ledger since.
fn granted() -> Ticket {
    let mut world = World::new();
    world.host(1, 4);
    world.request(at(1)).unwrap()
}

fn at(number: u128) -> Demand {
    Demand { hosts: vec![id(number)], ..demand(1, 1) }
}

/// Time passes in which these hosts live and everything else is forgotten.
fn forget_all_but(world: &mut World, hosts: &[HostId]) {
    for _ in 0..=(options().lost_after_ms + options().remember_ms) / 5_000 {
        world.pass(5_000);
        for host in hosts {
            world.beat(*host);
        }
    }
}

#[test]
fn a_parent_that_was_lost_after_its_clones_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.lose(2);
    scene.lose(1);
    scene.second_returns();
    assert_eq!(scene.alone(), [true, true]);
    let clones = [(scene.of_clone.id, 2), (scene.of_master.id, 3)];
    for waiter in clones.map(|(ticket, vmid)| scene.world.arrive(ticket, vmid, None)) {
        assert_eq!(scene.world.met(waiter), (1, 1));
    }
    scene.first_returns(&[7]);
    assert_eq!(scene.alone(), [false, false]);
}

#[test]
fn a_parent_that_came_back_before_its_clones_is_waited_for() {
    let mut scene = Scene::new();
    scene.lose(1);
    assert_eq!(scene.alone(), [true, true]);
    scene.lose(2);
    scene.first_returns(&[7]);
    scene.second_returns();
    assert_eq!(scene.alone(), [false, false]);
}

#[test]
fn a_parent_that_ended_while_its_clones_were_lost_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.lose(2);
    scene.world.ended(id(1), scene.one.ticket, [1], VmEnd::Ended);
    scene.world.masters_ended(id(1), [7]);
    scene.second_returns();
    assert_eq!(scene.alone(), [true, true]);
}

#[test]
fn a_master_is_waited_for_whose_host_was_forgotten_and_comes_back() {
    let mut scene = Scene::new();
    scene.lose(1);
    forget_all_but(&mut scene.world, &[id(2)]);
    assert!(scene.world.core.hosts().iter().all(|host| host.info.id != id(1)));
    scene.first_returns(&[7]);
    assert!(!scene.alone()[1]);
}

#[test]
fn a_master_of_a_lost_host_is_not_waited_for_by_clones_whose_ticket_was_forgotten() {
    let mut scene = Scene::new();
    scene.lose(2);
    forget_all_but(&mut scene.world, &[id(1)]);
    assert!(!scene.world.store.contains_key(&scene.of_master.id));
    scene.lose(1);
    scene.second_returns();
    assert_eq!(scene.alone(), [true, true]);
    scene.first_returns(&[]);
    assert!(scene.alone()[1]);
}

#[test]
fn a_master_that_waits_is_answered_when_its_host_has_clones_of_the_ticket_and_not_the_master() {
    let mut world = World::new();
    let granted = Ticket { parent_vmid: Some(0), parent_host: Some(id(1)), ..granted() };
    let clone = |vmid| Running {
        parent_vmid: granted.parent_vmid,
        parent_host: granted.parent_host,
        ..running(&granted, vmid)
    };
    world.host_with(info(2, 4), vec![clone(2)]);
    let waiter = world.arrive(granted.id, 0, None);
    assert!(world.waits(waiter), "nobody has said that it is gone");
    let present = Present { running: vec![clone(1)], masters: Some([].into()), ..Present::default() };
    world.host_present(info(1, 4), present);
    assert!(matches!(world.was_answered(waiter), Err(CoreError::UnknownVm { vmid: 0, .. })));
    world.arrive(granted.id, 1, None);
    let last = world.arrive(granted.id, 2, None);
    assert_eq!(world.met(last), (1, 2));
}

#[test]
fn a_beat_tells_which_masters_have_begun_and_ended() {
    let mut scene = Scene::new();
    let beat = |scene: &mut Scene, families: &[u128]| {
        let (host, masters) = (id(1), Some(families.iter().map(|family| id(*family)).collect()));
        let epoch = scene.world.hosts[&host];
        scene.world.apply(Command::HostBeat { host, epoch, beat: Beat { masters, ..Beat::default() } });
        scene.alone()[1]
    };
    scene.first_returns(&[7, 8]);
    assert!(beat(&mut scene, &[8]));
    assert!(!beat(&mut scene, &[7, 8]));
    assert!(!beat(&mut scene, &[7]));
    scene.world.masters_ended(id(1), [7]);
    assert!(scene.alone()[1]);
    // One that was under way is late. The next one tells that it was wrong.
    assert!(!beat(&mut scene, &[7]));
    assert!(beat(&mut scene, &[]));
}

#[test]
fn clones_that_came_back_stay_when_another_host_uses_its_part() {
    let mut world = World::new();
    for number in [1, 2, 3] {
        world.host(number, 2);
    }
    let ticket = world.request(demand(6, 6)).unwrap().id;
    let used = world.spend_part(ticket, id(1), [1, 2]).unwrap();
    world.down(id(1));
    world.fence(id(1)).unwrap();
    world.host_with(info(1, 2), [1, 2].map(|vmid| running(&used, vmid)).into());
    // Host 2 gives back what is to come, which is that of host 3.
    let usage = Usage { parent_host: id(1), ..usage(ticket, id(2), [3, 4]) };
    world.ticket(|waiter| Command::Use(waiter, usage)).unwrap();
    assert_eq!([1, 2, 3].map(|number| world.held(id(number))), [2, 2, 0]);
    assert_eq!(world.get(ticket).places, [(id(1), 2), (id(2), 2)].into());
}

/// It was made with the ticket before that was forgotten, and its host does not know yet.
#[test]
fn a_clone_that_was_being_made_under_a_ticket_that_is_over_is_to_end() {
    let mut scene = Scene::new();
    scene.lose(1);
    scene.lose(2);
    forget_all_but(&mut scene.world, &[]);
    let one = scene.one;
    let ended: Uuid = one.ticket;
    scene.world.host_with(info(2, 4), vec![Running { vmid: 9, ..one }]);
    scene.world.ended(id(2), ended, [9], VmEnd::Ended);
    assert_eq!(scene.world.state(ended), State::Released);
    scene.world.host_making(info(1, 4), vec![one], vec![ended]);
    let is_kill = |effect: &Effect| matches!(effect, Effect::Kill { vmids, .. } if *vmids == [1]);
    assert!(scene.world.effects.iter().any(is_kill));
}
