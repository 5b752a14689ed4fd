use super::super::connection::Ports;
use super::super::packet::{Header, SHUTDOWN_SEND, op};
use super::super::tests::{
    BUFFER, GUEST, GUEST_PORT, LINK, Ports as HostSide, Rig, TX_DATA, packet, read_all, rig,
};
use super::super::{EVENT, HostPorts, RX, TX, Vsock};
use crate::devices::event_loop::DeviceLoop;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::devices::virtio::testing::DATA;
use crate::persist::Persist;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// A running guest: with buffers for events.
fn parent() -> Rig {
    let mut rig = rig();
    (0..4).for_each(|at| _ = rig.driver.add(EVENT, &[(TX_DATA + 0x8000 + 8 * at, 8, true)]));
    rig.driver.run(EVENT);
    rig
}

fn fork(parent: &Rig) -> Rig {
    let ports = HostSide::default();
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
    let driver = parent.driver.fork(Box::new(vsock));
    Rig { driver, ports, dialer, buffers: parent.buffers }
}

/// The guest finds its event, resets its sockets, and gives the buffer back.
fn guest_takes_event(rig: &mut Rig) {
    let used = rig.driver.used(EVENT);
    assert_eq!(used.iter().map(|(_, length)| *length).collect::<Vec<_>>(), [4]);
    assert_eq!(rig.driver.get(TX_DATA + 0x8000 + 8 * u64::from(used[0].0), 4), [0; 4], "transport reset");
    rig.driver.add(EVENT, &[(TX_DATA + 0x8000 + 8 * u64::from(used[0].0), 8, true)]);
    rig.driver.run(EVENT);
}

type Change<'a> = &'a dyn Fn(&mut UnixStream, &mut Rig);

/// The link of a guest that has said something on it.
fn linked(rig: &mut Rig) -> UnixStream {
    let link = rig.connect();
    rig.send_data(b"before");
    rig.driver.used(TX);
    link
}

/// The clone's end of its agent's link.
fn link_of(clone: &Rig) -> UnixStream {
    clone.ports.0.lock().unwrap().pop().expect("a link")
}

#[test]
fn the_agents_link_goes_on_in_a_clone_with_a_host_of_its_own() {
    let mut parent = parent();
    let mut parents_link = linked(&mut parent);
    parents_link.write_all(b"to both").unwrap();
    parent.events();
    let mut clone = fork(&parent);
    assert_eq!(clone.received()[0].1, b"to both", "it was in the guest's ring");
    clone.driver.settle();
    assert_eq!(clone.driver.used(EVENT), [], "nothing to tell");
    let mut link = link_of(&clone);
    link.write_all(b"you are 1").unwrap();
    clone.events();
    let received = clone.received();
    assert_eq!(received.len(), 1);
    let (header, data) = &received[0];
    assert_eq!(
        (header.op, header.src_port, header.dst_port, &data[..]),
        (op::RW, LINK, GUEST_PORT, &b"you are 1"[..])
    );
    // The counters went on, too: to the guest it is the same connection.
    assert_eq!(header.fwd_cnt, 6);
    clone.send_data(b"I know");
    assert_eq!(read_all(&mut link), (b"I know".to_vec(), false));

    parent.received();
    parent.send_data(b" and after");
    assert_eq!(read_all(&mut parents_link), (b"before and after".to_vec(), false));
}

#[test]
fn a_clone_of_a_clone_has_the_link_still() {
    let mut first = parent();
    let _link = linked(&mut first);
    let second = fork(&first);
    let _link = link_of(&second);
    let mut third = fork(&second);
    let mut link = link_of(&third);
    third.send_data(b"x");
    assert_eq!((read_all(&mut link), third.ops()), ((b"x".to_vec(), false), vec![]));
}

#[test]
fn beside_a_link_that_goes_on_all_other_connections_are_reset_by_themselves() {
    let mut parent = parent();
    let _link = linked(&mut parent);
    let (_session, _told) = parent.dial(7);
    let dialed = parent.received()[0].0.src_port;
    let answer = Header { src_port: 7, dst_port: dialed, ..packet(op::RESPONSE) };
    parent.send_from(&answer, &[]);
    parent.send_from(&Header { op: op::RW, len: 1, ..answer }, b"x");
    let mut clone = fork(&parent);
    clone.driver.settle();
    let received = clone.received();
    let told: Vec<_> =
        received.iter().map(|(header, _)| (header.op, header.src_port, header.dst_port)).collect();
    assert_eq!((told, clone.driver.used(EVENT)), (vec![(op::RST, dialed, 7)], vec![]));
    let mut link = link_of(&clone);
    link.write_all(b"you are 1").unwrap();
    clone.events();
    assert_eq!(clone.ops(), [op::RW]);
}

#[test]
fn a_link_with_something_on_its_way_is_not_carried_on() {
    let unread = |link: &mut UnixStream, _: &mut Rig| link.write_all(b"x").unwrap();
    let closed = |link: &mut UnixStream, _: &mut Rig| link.shutdown(Shutdown::Both).unwrap();
    let half_closed = |_: &mut UnixStream, rig: &mut Rig| {
        rig.send_from(&Header { flags: SHUTDOWN_SEND, ..packet(op::SHUTDOWN) }, &[]);
    };
    let another = |_: &mut UnixStream, rig: &mut Rig| {
        rig.send_from(&Header { src_port: 6000, ..packet(op::REQUEST) }, &[]);
    };
    let changes: [Change<'_>; 4] = [&unread, &closed, &half_closed, &another];
    for (at, change) in changes.into_iter().enumerate() {
        let mut parent = parent();
        let mut link = linked(&mut parent);
        change(&mut link, &mut parent);
        let mut clone = fork(&parent);
        clone.received();
        clone.driver.settle();
        guest_takes_event(&mut clone);
        assert!(clone.ports.0.lock().unwrap().is_empty(), "{at}");
    }
}

/// Ports that nobody listens on.
struct NoPorts;

impl HostPorts for NoPorts {
    fn connect(&mut self, _: Ports) -> Option<UnixStream> {
        None
    }

    fn carry_on(&mut self, _: Ports) -> Option<UnixStream> {
        None
    }
}

#[test]
fn a_link_that_its_port_does_not_carry_on_is_reset() {
    let mut parent = parent();
    let _link = linked(&mut parent);
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(NoPorts)).unwrap();
    let driver = parent.driver.fork(Box::new(vsock));
    let mut clone = Rig { driver, ports: HostSide::default(), dialer, buffers: parent.buffers };
    clone.driver.settle();
    let received = clone.received();
    let told: Vec<_> =
        received.iter().map(|(header, _)| (header.op, header.src_port, header.dst_port)).collect();
    assert_eq!(told, [(op::RST, LINK, GUEST_PORT)]);
}

#[test]
fn a_clone_is_told_and_connects_again_while_the_parent_goes_on() {
    let mut parent = parent();
    let mut parents_link = linked(&mut parent);
    parents_link.write_all(b"unread ").unwrap();
    parent.driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    let mut clone = fork(&parent);
    clone.driver.settle();
    assert_eq!(clone.driver.transport.interrupt_line().read().unwrap(), 1);
    guest_takes_event(&mut clone);
    assert!(clone.ops().is_empty(), "a connection that the guest knows needs no more");
    clone.send_from(&Header { src_port: 6000, ..packet(op::REQUEST) }, &[]);
    assert_eq!(clone.ops(), [op::RESPONSE]);
    let mut link = clone.ports.0.lock().unwrap().pop().unwrap();
    link.write_all(b"you are 1").unwrap();
    clone.events();
    assert_eq!(clone.received()[0].1, b"you are 1");

    parent.driver.settle();
    assert_eq!(parent.driver.used(EVENT), []);
    parent.events();
    assert_eq!(parent.received()[0].1, b"unread ");
    parent.send_data(b" and after");
    assert_eq!(read_all(&mut parents_link), (b"before and after".to_vec(), false));
    parents_link.write_all(b"you are 0").unwrap();
    parent.events();
    assert_eq!(parent.received()[0].1, b"you are 0");
    assert_eq!(read_all(&mut link), (vec![], false));
}

#[test]
fn a_clone_without_room_for_the_event_is_told_later_and_once() {
    let mut clone = fork(&rig());
    clone.driver.settle();
    clone.driver.add(EVENT, &[(TX_DATA, 8, true)]);
    clone.driver.put(TX_DATA, &[0xff; 8]);
    clone.driver.run(EVENT);
    assert_eq!(clone.driver.used(EVENT), [(0, 4)]);
    assert_eq!(clone.driver.get(TX_DATA, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    clone.driver.add(EVENT, &[(TX_DATA, 8, true)]);
    clone.driver.run(EVENT);
    assert_eq!(clone.driver.used(EVENT), []);
    // Of a connection that the guest had it was not told apart.
    clone.send_data(b"x");
    assert_eq!(clone.ops(), [op::RST]);
}

#[test]
fn requests_wait_until_the_guest_knows() {
    let mut parent = parent();
    // The guest asks, and the VM is saved before the device has seen it.
    parent.driver.put(TX_DATA, &packet(op::REQUEST).bytes());
    parent.driver.add(TX, &[(TX_DATA, 44, false)]);
    let mut clone = fork(&parent);
    let (_host, told) = clone.dial(7);
    clone.driver.settle();
    assert_eq!((clone.ops(), clone.driver.used(TX)), (vec![], vec![]));
    guest_takes_event(&mut clone);
    let mut ops = clone.ops();
    ops.sort_unstable();
    assert_eq!(ops, [op::REQUEST, op::RESPONSE]);
    assert_eq!(clone.ports.0.lock().unwrap().len(), 1);
    assert!(told.try_recv().is_err());
}

#[test]
fn the_guests_answer_is_kicked_for_only_when_something_waits() {
    let parent = parent();
    let event_at = |rig: &Rig| rig.driver.get(rig.driver.rings[EVENT].used + 4 + 8 * 8, 2);
    let mut clone = fork(&parent);
    clone.driver.settle();
    assert_ne!(event_at(&clone), 4_u16.to_le_bytes(), "an idle clone is left alone");
    let (_host, _told) = clone.dial(7);
    assert_eq!(event_at(&clone), 4_u16.to_le_bytes());
    guest_takes_event(&mut clone);
    assert_eq!(clone.ops(), [op::REQUEST]);
}

#[test]
fn without_a_buffer_the_event_waits_for_one() {
    let mut parent = rig();
    let _link = parent.connect();
    let mut clone = fork(&parent);
    clone.driver.settle();
    assert_eq!(clone.driver.used(EVENT), []);
    clone.driver.add(EVENT, &[(TX_DATA + 0x8000, 8, true)]);
    clone.driver.run(EVENT);
    guest_takes_event(&mut clone);
}

#[test]
fn a_connection_that_may_be_news_to_the_guest_is_reset_by_itself() {
    let mut parent = parent();
    parent.send(op::REQUEST);
    // The answer is in the guest's ring, and nothing says that it has looked.
    let mut clone = fork(&parent);
    assert_eq!(clone.ops(), [op::RESPONSE]);
    clone.driver.settle();
    guest_takes_event(&mut clone);
    let received = clone.received();
    assert_eq!(received.len(), 1);
    let header = &received[0].0;
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, LINK, GUEST_PORT));
    assert_eq!(parent.ops(), [op::RESPONSE]);
}

#[test]
fn a_clone_dials_from_ports_that_its_guest_does_not_know() {
    let mut parent = parent();
    let (_first, _told) = parent.dial(7);
    let parents_port = parent.received()[0].0.src_port;
    let mut clone = fork(&parent);
    let (_second, _told) = clone.dial(7);
    clone.driver.settle();
    guest_takes_event(&mut clone);
    assert_ne!(clone.received()[0].0.src_port, parents_port);
}

#[test]
fn a_clone_of_a_clone_that_was_just_told_is_not_told_again() {
    let mut parent = parent();
    let mut link = linked(&mut parent);
    link.write_all(b"unread").unwrap();
    let clone = fork(&parent);
    clone.driver.settle();
    let mut grandchild = fork(&clone);
    grandchild.driver.settle();
    guest_takes_event(&mut grandchild);
    grandchild.send(op::REQUEST);
    assert_eq!(grandchild.ops(), [op::RESPONSE]);
}

#[test]
fn a_guest_without_a_driver_is_owed_nothing() {
    let parent = parent();
    parent.driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let mut clone = fork(&parent);
    clone.driver.handshake(&[64, 64, 8], crate::devices::virtio::handshake::TRANSPORT_FEATURES);
    clone.driver.add(RX, &[(DATA, BUFFER, true)]);
    clone.send(op::REQUEST);
    assert_eq!(clone.driver.used(RX).len(), 1);
}

#[test]
fn a_parents_connections_survive_a_stop_of_the_loop() {
    let mut parent = parent();
    let mut link = parent.connect();
    link.set_nonblocking(false).unwrap();
    let mut devices = DeviceLoop::new().unwrap();
    parent.driver.transport.attach(&devices).unwrap();
    for round in 0..20_u8 {
        devices.start().unwrap();
        parent.driver.put(TX_DATA, &Header { len: 1, ..packet(op::RW) }.bytes());
        parent.driver.put(TX_DATA + 0x1000, &[round]);
        parent.driver.add(TX, &[(TX_DATA, 44, false), (TX_DATA + 0x1000, 1, false)]);
        parent.driver.transport.kicks()[TX].write(1).unwrap();
        let mut byte = [0xff];
        std::io::Read::read_exact(&mut link, &mut byte).unwrap();
        assert_eq!(byte, [round]);
        devices.stop(std::time::Duration::from_secs(60)).unwrap();
        // What comes while the loop is stopped is handled after the next start.
        link.write_all(&[round]).unwrap();
        assert_eq!(parent.received(), []);
        let state = TransportState::save(&parent.driver.transport).unwrap();
        assert_eq!(state, TransportState::save(&parent.driver.transport).unwrap(), "saving changes nothing");
        devices.start().unwrap();
        let line = crate::devices::sys::borrow(parent.driver.transport.interrupt_line());
        while parent.driver.get(parent.driver.rings[RX].used + 2, 2)
            == parent.driver.rings[RX].seen_used.to_le_bytes()
        {
            let mut wait = [rustix::event::PollFd::from_borrowed_fd(line, rustix::event::PollFlags::IN)];
            let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1);
            parent.driver.transport.interrupt_line().read().unwrap();
        }
        devices.stop(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(parent.received()[0].1, [round]);
    }
}
