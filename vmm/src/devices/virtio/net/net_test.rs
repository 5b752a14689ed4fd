use super::*;
use crate::devices::virtio::testing::{DATA, Driver, NEEDS_RESET};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

/// The card's owner, vmid 1 of its family.
pub(super) fn owner(mac: Mac) -> Owner {
    let neighbours = Neighbours {
        first_ip: Ipv4Addr::new(10, 255, 0, 1),
        first_mac: [2, 0, 0, 0, 0, 0],
        vms: 4093,
        gateway_ip: Ipv4Addr::new(10, 255, 15, 254),
        gateway_mac: [6, 0, 0, 0, 0, 0xee],
    };
    Owner { mac, ip: OWN, neighbours: Some(neighbours) }
}

/// Stands in for a tap: a socket that keeps the bounds of frames.
struct Wire {
    fd: OwnedFd,
    offloads: Arc<Mutex<Option<Offloads>>>,
}

impl FramePort for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = Some(offloads);
        Ok(())
    }
}

pub(super) struct Rig {
    pub(super) driver: Driver,
    far: OwnedFd,
    gate: NetworkGate,
    offloads: Arc<Mutex<Option<Offloads>>>,
}

/// A card on a wire of its own.
fn card(mac: [u8; 6]) -> (Net, OwnedFd, Arc<Mutex<Option<Offloads>>>) {
    let (near, far) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    let offloads = Arc::default();
    let net = Net::new(Box::new(Wire { fd: near, offloads: Arc::clone(&offloads) }), owner(mac)).unwrap();
    (net, far, offloads)
}

pub(super) fn rig(features: impl FnOnce(u64) -> u64) -> Rig {
    let (net, far, offloads) = card(MAC);
    let gate = net.gate();
    let features = features(net.features());
    Rig { driver: Driver::with_features(Box::new(net), features), far, gate, offloads }
}

impl Rig {
    pub(super) fn arrive(&self, frame: &[u8]) {
        assert_eq!(send(&self.far, frame, SendFlags::empty()).unwrap(), frame.len());
        self.driver.source_event(TOKEN_PORT);
    }

    pub(super) fn leaves(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX_BYTES];
        let length = rustix::io::read(&self.far, &mut frame[..]).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.gate.set_open(open);
        self.driver.source_event(TOKEN_GATE);
    }
}

fn frame(length: usize, fill: u8) -> Vec<u8> {
    frame_of(MAC, length, fill)
}

/// From this card, and to all.
fn frame_of(mac: Mac, length: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; length];
    frame[..HEADER_BYTES].fill(0);
    frame[HEADER_BYTES..HEADER_BYTES + 6].fill(0xff);
    frame[HEADER_BYTES + 6..HEADER_BYTES + 12].copy_from_slice(&mac);
    frame
}

/// A frame as the guest finds it: one buffer.
fn received(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10] = 1;
    frame
}

#[test]
fn the_guest_sees_its_address_and_a_link() {
    let rig = rig(|all| all);
    let mut config = [0; 8];
    rig.driver.transport.read(0x100, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0]);
    assert_eq!(*rig.offloads.lock().unwrap(), Some(Offloads { checksum: true, tso4: true }));
}

#[test]
fn offloads_follow_what_the_guest_accepted() {
    let rig = rig(|_| 1 << VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(*rig.offloads.lock().unwrap(), Some(Offloads { checksum: true, tso4: false }));
}

#[test]
fn a_frame_leaves() {
    let mut rig = rig(|all| all);
    let sent = frame(100, 7);
    rig.driver.put(DATA, &sent[..50]);
    rig.driver.put(DATA + 0x1000, &sent[50..]);
    rig.driver.add(TX, &[(DATA, 50, false), (DATA + 0x1000, 50, false)]);
    rig.driver.run(TX);
    assert_eq!(rig.leaves(), Some(sent));
    assert_eq!(rig.driver.used(TX), [(0, 0)]);
}

#[test]
fn frames_that_cannot_be_are_dropped() {
    let mut rig = rig(|all| all);
    rig.driver.add(TX, &[(DATA, 13, false)]);
    rig.driver.add(TX, &[(DATA, FRAME_MAX_BYTES as u32 + 1, false)]);
    rig.driver.add(TX, &[(DATA, 100, true)]);
    rig.driver.run(TX);
    assert_eq!(rig.driver.used(TX).len(), 3);
    assert_eq!(rig.leaves(), None);
}

#[test]
fn a_full_port_drops_and_does_not_block() {
    let mut rig = rig(|all| all);
    rig.driver.put(DATA, &frame(1500, 0));
    for _ in 0..20 {
        for _ in 0..200 {
            rig.driver.add(TX, &[(DATA, 1500, false)]);
        }
        rig.driver.run(TX);
        assert_eq!(rig.driver.used(TX).len(), 200);
    }
    assert_eq!(rig.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_frame_arrives() {
    let mut rig = rig(|all| all);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.driver.run(RX);
    rig.arrive(&frame(100, 7));
    assert_eq!(rig.driver.used(RX), [(0, 100)]);
    assert_eq!(rig.driver.get(DATA, 100), received(&frame(100, 7)));
}

#[test]
fn without_buffers_a_frame_waits_for_them() {
    let mut rig = rig(|all| all);
    rig.driver.run(RX);
    rig.arrive(&frame(100, 7));
    rig.arrive(&frame(200, 8));
    assert_eq!(rig.driver.used(RX), []);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.driver.run(RX);
    assert_eq!(rig.driver.used(RX), [(0, 100)]);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.driver.run(RX);
    assert_eq!(rig.driver.used(RX), [(1, 200)]);
    assert_eq!(rig.driver.get(DATA, 200), received(&frame(200, 8)));
}

#[test]
fn a_long_frame_takes_several_buffers_or_waits() {
    let mut rig = rig(|all| all);
    for buffer in 0..3 {
        rig.driver.add(RX, &[(DATA + 0x1000 * buffer, 1000, true)]);
    }
    let mut long = frame(3500, 9);
    rig.arrive(&long);
    assert_eq!(rig.driver.used(RX), [], "the buffers are kept until there are enough");
    assert!(rig.driver.transport.kicks()[RX].read().is_err(), "and nobody tries meanwhile");
    rig.driver.add(RX, &[(DATA + 0x3000, 1000, true)]);
    rig.driver.run(RX);
    assert_eq!(rig.driver.used(RX), [(0, 1000), (1, 1000), (2, 1000), (3, 500)]);
    long[10] = 4;
    assert_eq!(rig.driver.get(DATA, 1000), long[..1000]);
    assert_eq!(rig.driver.get(DATA + 0x3000, 500), long[3000..]);
}

#[test]
fn a_frame_longer_than_a_guest_can_take_is_dropped() {
    let mut rig = rig(|all| all & !(1 << VIRTIO_NET_F_MRG_RXBUF));
    rig.driver.add(RX, &[(DATA, 1000, true)]);
    rig.arrive(&frame(1001, 1));
    assert_eq!(rig.driver.used(RX), []);
    rig.arrive(&frame(1000, 2));
    assert_eq!(rig.driver.used(RX), [(0, 1000)]);
}

#[test]
fn buffers_of_no_size_do_not_hang_the_device() {
    let mut rig = rig(|all| all);
    for _ in 0..QUEUE_SIZES[RX] {
        rig.driver.add(RX, &[(DATA, 100, false)]);
    }
    rig.driver.run(RX);
    rig.arrive(&frame(100, 1));
    assert_eq!(rig.driver.used(RX), [], "a frame that fits in no buffer is dropped");
    assert_eq!(rig.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_shut_link_passes_nothing_and_forgets_what_came() {
    let mut rig = rig(|all| all);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.set_open(false);
    rig.driver.put(DATA + 0x1000, &frame(64, 1));
    rig.driver.add(TX, &[(DATA + 0x1000, 64, false)]);
    rig.driver.run(TX);
    assert_eq!(rig.driver.used(TX).len(), 1, "the guest does not notice");
    assert_eq!(rig.leaves(), None);
    rig.arrive(&frame(100, 7));
    rig.driver.run(RX);
    assert_eq!(rig.driver.used(RX), []);

    rig.set_open(true);
    assert_eq!(rig.driver.used(RX), [], "what came while the gate was shut is gone");
    rig.arrive(&frame(100, 8));
    assert_eq!(rig.driver.used(RX), [(0, 100)]);
    assert_eq!(rig.driver.get(DATA, 100), received(&frame(100, 8)));
}

#[test]
fn frames_before_the_driver_are_delivered_when_it_is_ready() {
    let rig = rig(|all| all);
    let mut driver = rig.driver;
    driver.write(0x70, 0);
    send(&rig.far, &frame(100, 7), SendFlags::empty()).unwrap();
    driver.source_event(TOKEN_PORT);
    driver.handshake(&QUEUE_SIZES, 1 << 32);
    driver.add(RX, &[(DATA, 2048, true)]);
    driver.run(RX);
    assert_eq!(driver.used(RX), [(0, 100)]);
}

fn fork(parent: &Rig) -> Rig {
    let (net, far, offloads) = card(CLONES);
    let gate = net.gate();
    Rig { driver: parent.driver.fork(Box::new(net)), far, gate, offloads }
}

const CLONES: Mac = [2, 0, 0, 0, 0, 9];

fn sends(rig: &mut Rig, mac: Mac, fill: u8) {
    rig.driver.put(DATA + 0x1000, &frame_of(mac, 64, fill));
    rig.driver.add(TX, &[(DATA + 0x1000, 64, false)]);
    rig.driver.run(TX);
    assert_eq!(rig.driver.used(TX).len(), 1, "the guest does not notice");
}

#[test]
fn a_clones_card_is_shut_until_it_is_opened() {
    let mut parent = rig(|all| all & !(1 << VIRTIO_NET_F_GUEST_TSO4));
    (0..2).for_each(|_| _ = parent.driver.add(RX, &[(DATA, 2048, true)]));
    parent.arrive(&frame(100, 1));
    assert_eq!(parent.driver.used(RX), [(0, 100)]);
    sends(&mut parent, MAC, 2);
    assert_eq!(parent.leaves(), Some(frame(64, 2)));

    let mut clone = fork(&parent);
    assert_eq!(*clone.offloads.lock().unwrap(), Some(Offloads { checksum: true, tso4: false }));
    let mut mac = [0; 6];
    clone.driver.transport.read(0x100, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    clone.driver.settle();
    clone.arrive(&frame(100, 3));
    sends(&mut clone, CLONES, 4);
    assert_eq!((clone.leaves(), clone.driver.used(RX)), (None, vec![]));

    clone.set_open(true);
    assert_eq!(clone.driver.used(RX), [], "what came while it was shut is gone");
    clone.arrive(&frame(100, 5));
    assert_eq!(clone.driver.used(RX), [(1, 100)]);
    assert_eq!(clone.driver.get(DATA, 100), received(&frame(100, 5)));
    sends(&mut clone, CLONES, 6);
    assert_eq!(clone.leaves(), Some(frame_of(CLONES, 64, 6)));

    parent.arrive(&frame(100, 7));
    assert_eq!(parent.driver.used(RX), [(1, 100)], "the parent goes on");
    sends(&mut parent, MAC, 8);
    assert_eq!(parent.leaves(), Some(frame(64, 8)));
}

#[test]
fn frames_on_their_way_stay_with_the_parent() {
    let mut parent = rig(|all| all);
    parent.arrive(&frame(100, 1));
    parent.driver.put(DATA + 0x1000, &frame(64, 2));
    parent.driver.add(TX, &[(DATA + 0x1000, 64, false)]);
    let mut clone = fork(&parent);
    clone.driver.settle();
    clone.set_open(true);
    clone.driver.add(RX, &[(DATA, 2048, true)]);
    clone.driver.run(RX);
    assert_eq!((clone.leaves(), clone.driver.used(RX)), (None, vec![]));
    assert_eq!(clone.driver.used(TX).len(), 1);
    parent.driver.run(TX);
    parent.driver.add(RX, &[(DATA, 2048, true)]);
    parent.driver.run(RX);
    assert_eq!(parent.driver.used(RX), [(0, 100)]);
    assert_eq!(parent.leaves(), Some(frame(64, 2)));
}

#[test]
fn a_card_whose_link_was_opened_before_is_shut_by_a_restore() {
    let parent = rig(|all| all);
    let (net, _far, _) = card(MAC);
    let gate = net.gate();
    gate.set_open(false);
    gate.set_open(true);
    let clone = parent.driver.fork(Box::new(net));
    clone.source_event(TOKEN_GATE);
    assert!(!gate.is_open());
}

#[test]
#[ignore = "needs the right to make a tap"]
fn a_real_tap_takes_header_and_offloads() {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    port::make_tap_for_test(file.as_fd(), "patina-devtest").unwrap();
    let tap = Tap::new(file.into()).unwrap();
    tap.set_offloads(Offloads { checksum: true, tso4: true }).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(Box::new(tap), owner(MAC)).unwrap()));
    // The interface is down: what the guest sends is refused by the kernel, and dropped.
    driver.put(DATA, &frame(64, 1));
    driver.add(TX, &[(DATA, 64, false)]);
    driver.run(TX);
    assert_eq!(driver.used(TX), [(0, 0)]);
}
