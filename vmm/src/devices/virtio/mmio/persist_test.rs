use super::super::SOURCE_TOKENS;
use super::*;
use crate::devices::event_loop::{DeviceLoop, EventHandler};
use crate::devices::sys;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::net::{FramePort, Net, Offloads, Owner};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{DATA, Driver, NEEDS_RESET, memory};
use crate::devices::virtio::vsock::{HostPorts, Vsock};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use virtio_bindings::virtio_mmio as reg;

const SECTORS: u64 = 64;

fn disk() -> File {
    let mut file = tempfile::tempfile().unwrap();
    (0..SECTORS).for_each(|sector| file.write_all(&[sector as u8; 512]).unwrap());
    file
}

fn block(file: &File) -> Box<Block> {
    Box::new(Block::new(file.try_clone().unwrap(), true, "disk").unwrap())
}

/// Asks for a sector, without a kick; its contents come to a place of its own.
fn ask(driver: &mut Driver, sector: u64) {
    let header = DATA + sector * 0x1000;
    driver.put(header, &[0; 16]);
    driver.put(header + 8, &sector.to_le_bytes());
    driver.add(0, &[(header, 16, false), (header + 0x400, 512, true), (header + 0x800, 1, true)]);
}

fn answered(driver: &mut Driver, sectors: &[u64]) {
    assert_eq!(driver.used(0).len(), sectors.len());
    for sector in sectors {
        assert_eq!(driver.get(DATA + sector * 0x1000 + 0x400, 512), [*sector as u8; 512]);
    }
}

fn edges(transport: &MmioTransport) -> u64 {
    transport.interrupt_line().read().unwrap_or(0)
}

#[test]
fn a_disk_goes_on_where_it_was_in_parent_and_clone() {
    let file = disk();
    let mut parent = Driver::new(block(&file));
    ask(&mut parent, 1);
    ask(&mut parent, 2);
    parent.run(0);
    answered(&mut parent, &[1, 2]);
    // Made available, and its kick lost with the process.
    ask(&mut parent, 3);
    let mut clone = parent.fork(block(&file));
    clone.settle();
    answered(&mut clone, &[3]);
    assert_eq!(parent.used(0), [], "the parent's device has done nothing meanwhile");
    for driver in [&mut parent, &mut clone] {
        ask(driver, 4);
        driver.run(0);
    }
    answered(&mut parent, &[3, 4]);
    answered(&mut clone, &[4]);
    // More than the rings hold, so that the positions go round.
    for _ in 0..100 {
        (5..10).for_each(|sector| ask(&mut clone, sector));
        clone.run(0);
        answered(&mut clone, &[5, 6, 7, 8, 9]);
    }
    let mut grandchild = clone.fork(block(&file));
    ask(&mut grandchild, 11);
    grandchild.run(0);
    answered(&mut grandchild, &[11]);
}

#[test]
fn an_interrupt_that_was_not_seen_comes_again_when_the_loop_starts() {
    let file = disk();
    let mut parent = Driver::new(block(&file));
    ask(&mut parent, 1);
    parent.run(0);
    let clone = parent.fork(block(&file));
    assert_eq!(edges(&clone.transport), 0, "not before KVM is ready for it");
    let mut devices = DeviceLoop::new().unwrap();
    clone.transport.attach(&devices).unwrap();
    devices.start().unwrap();
    wait_for_edge(&clone.transport);
    devices.stop().unwrap();
    assert_eq!(clone.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    clone.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    let quiet = clone.fork(block(&file));
    quiet.settle();
    assert_eq!(edges(&quiet.transport), 0, "one that was seen does not");
}

fn wait_for_edge(transport: &MmioTransport) {
    let line = sys::borrow(transport.interrupt_line());
    let mut wait = [rustix::event::PollFd::from_borrowed_fd(line, rustix::event::PollFlags::IN)];
    let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1);
}

#[test]
fn a_device_that_failed_stays_so_and_says_so() {
    let mut parent = Driver::new(Box::new(Rng::default()));
    parent.add(0, &[(u64::MAX, 8, true)]);
    parent.run(0);
    let mut clone = parent.fork(Box::new(Rng::default()));
    assert_eq!(clone.status(), 15 | NEEDS_RESET);
    clone.settle();
    assert_eq!(edges(&clone.transport), 1);
    clone.handshake(&[16], 1 << 32);
    clone.add(0, &[(DATA, 8, true)]);
    clone.run(0);
    assert_eq!(clone.used(0), [(0, 8)]);
}

#[test]
fn a_driver_in_the_middle_of_its_handshake_goes_on() {
    let parent = Driver::new(Box::new(Rng::default()));
    parent.write(reg::VIRTIO_MMIO_STATUS, 0);
    parent.write(reg::VIRTIO_MMIO_STATUS, 1);
    parent.write(reg::VIRTIO_MMIO_STATUS, 3);
    parent.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    parent.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    parent.write(reg::VIRTIO_MMIO_STATUS, 11);
    parent.set_queue(0, &parent.rings[0]);
    let mut clone = parent.fork(Box::new(Rng::default()));
    clone.write(reg::VIRTIO_MMIO_STATUS, 15);
    clone.add(0, &[(DATA, 8, true)]);
    clone.run(0);
    assert_eq!(clone.used(0).len(), 1);
}

#[test]
fn a_clone_reads_a_half_read_configuration_again() {
    let parent = Driver::new(block(&disk()));
    let clone = parent.fork(block(&disk()));
    let generation = |driver: &Driver| driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    assert_ne!(generation(&parent), generation(&clone));
}

/// A warm transport that has taken a state over.
fn loaded(
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    state: &TransportState,
) -> Result<MmioTransport, RestoreError> {
    let transport = MmioTransport::new(device, memory.clone()).expect("events");
    state.restore((&transport, memory))?;
    Ok(transport)
}

/// A state of an active disk, changed at a path of its JSON.
fn changed(path: &str, value: Value) -> Result<MmioTransport, RestoreError> {
    let mut state =
        serde_json::to_value(TransportState::save(&Driver::new(block(&disk())).transport).unwrap()).unwrap();
    *state.pointer_mut(path).unwrap() = value;
    loaded(block(&disk()), memory(), &serde_json::from_value(state).unwrap())
}

#[test]
fn states_that_cannot_be_are_refused() {
    assert!(changed("/queue_select", json!(77)).is_ok());
    assert!(matches!(changed("/handshake/status", json!(5)), Err(RestoreError::Handshake(_))));
    assert!(matches!(changed("/handshake/accepted", json!(1_u64 << 60)), Err(RestoreError::Handshake(_))));
    assert!(matches!(changed("/interrupt_status", json!(4)), Err(RestoreError::Interrupt { status: 4 })));
    assert!(matches!(changed("/queues", json!([])), Err(RestoreError::QueueCount { saved: 0, found: 1 })));
    let position = changed("/queues/0/position", json!(null));
    assert!(matches!(position, Err(RestoreError::Position { index: 0 })));
    let ready = changed("/queues/0/registers/ready", json!(false));
    assert!(matches!(ready, Err(RestoreError::Position { index: 0 })));
    for (register, value) in [("size", 3_u64), ("size", 1 << 20), ("used", u64::MAX - 3), ("available", 0)] {
        let queue = changed(&format!("/queues/0/registers/{register}"), json!(value));
        assert!(matches!(queue, Err(RestoreError::Queue { index: 0, .. })), "{register}");
    }
    assert!(matches!(changed("/device", json!("Rng")), Err(RestoreError::Kind { wanted: "block", .. })));
    let size = changed("/device/Block/sectors", json!(65));
    assert!(matches!(size, Err(RestoreError::DiskSize { saved: 65, found: 64 })));
}

#[test]
fn a_refused_state_leaves_a_device_that_was_reset() {
    let mut state = TransportState::save(&Driver::new(block(&disk())).transport).unwrap();
    state.interrupt_status = 4;
    let driver = Driver::new(block(&disk()));
    state.restore((&driver.transport, memory())).unwrap_err();
    assert_eq!(driver.status(), 0);
    driver.settle();
}

struct Wire(OwnedFd);

impl FramePort for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn set_offloads(&self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }
}

struct NoPorts;

impl HostPorts for NoPorts {
    fn connect(&mut self, _: u32) -> Option<UnixStream> {
        None
    }

    fn carry_on(&mut self, _: u32) -> Option<UnixStream> {
        None
    }
}

fn device(kind: usize) -> Box<dyn VirtioDevice> {
    match kind {
        0 => block(&disk()),
        1 => {
            let wire = Wire(UnixStream::pair().unwrap().0.into());
            Box::new(
                Net::new(Box::new(wire), Owner { mac: [2; 6], ip: Ipv4Addr::UNSPECIFIED, neighbours: None })
                    .unwrap(),
            )
        }
        2 => Box::new(Vsock::new(3, Box::new(NoPorts)).unwrap().0),
        _ => Box::new(Rng::default()),
    }
}

/// Every number, flag and absence in a JSON text.
fn leaves<'v>(value: &'v mut Value, found: &mut Vec<&'v mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| leaves(field, found)),
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        leaf => found.push(leaf),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0_u64..70_000).prop_map(|number| json!(number)),
        2 => any::<u32>().prop_map(|number| json!(number)),
        2 => any::<u64>().prop_map(|number| json!(number)),
        1 => any::<bool>().prop_map(|flag| json!(flag)),
        1 => Just(json!(null)),
        1 => prop::collection::vec((any::<u32>(), any::<u32>()), 0..2000)
            .prop_map(|ports| json!(ports.iter().map(|(host, guest)| json!({"host": host, "guest": guest})).collect::<Vec<_>>())),
        1 => Just(json!({"next_avail": 7, "next_used": 65_535})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A state that a hostile host made up is refused or restored, and then the device works its
    /// queues, or asks for a reset; it never takes the process with it.
    #[test]
    fn any_state_is_restored_or_refused(
        kind in 0_usize..4,
        other in prop::option::weighted(0.1, 0_usize..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 0..4),
    ) {
        let parent = Driver::new(device(kind));
        let mut state = serde_json::to_value(TransportState::save(&parent.transport).unwrap()).unwrap();
        for (at, value) in changes {
            let mut found = Vec::new();
            leaves(&mut state, &mut found);
            let at = at.index(found.len());
            *found[at] = value;
        }
        let Ok(state) = serde_json::from_value::<TransportState>(state) else { return Ok(()) };
        let restored = loaded(device(other.unwrap_or(kind)), Arc::clone(&parent.memory), &state);
        let Ok(transport) = restored else { return Ok(()) };
        let queues = parent.rings.len() as u32;
        for round in 0..3 * queues {
            transport.event(SOURCE_TOKENS + round % queues);
            transport.event(round % 2);
        }
        let saved = serde_json::to_string(&TransportState::save(&transport).unwrap()).unwrap();
        prop_assert!(serde_json::from_str::<TransportState>(&saved).is_ok());
        for offset in (0..0x120).step_by(4) {
            transport.read(offset, &mut [0; 4]);
        }
    }
}
