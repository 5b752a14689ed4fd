use super::super::SOURCE_TOKENS;
use super::*;
use crate::devices::event_loop::{DeviceLoop, EventHandler};
use crate::devices::sys;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::persist::BlockState;
use crate::devices::virtio::net::{FramePort, Net, Offloads, Owner};
use crate::devices::virtio::queue::QueueRegisters;
use crate::devices::virtio::queue::persist::Position;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{DATA, Driver, NEEDS_RESET, memory};
use crate::devices::virtio::vsock::connection::Ports;
use crate::devices::virtio::vsock::{HostPorts, Vsock};
use patina_snapshot::layout;
use proptest::prelude::*;
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
    devices.stop(std::time::Duration::from_secs(60)).unwrap();
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

/// A state of an active disk, changed.
fn changed(change: impl FnOnce(&mut TransportState)) -> Result<MmioTransport, RestoreError> {
    let mut state = TransportState::save(&Driver::new(block(&disk())).transport).unwrap();
    change(&mut state);
    loaded(block(&disk()), memory(), &state)
}

#[test]
fn states_that_cannot_be_are_refused() {
    assert!(changed(|state| state.queue_select = 77).is_ok());
    let handshake = |change: fn(&mut HandshakeState)| changed(|state| change(&mut state.handshake));
    assert!(matches!(handshake(|shake| shake.status = 5), Err(RestoreError::Handshake(_))));
    assert!(matches!(handshake(|shake| shake.accepted = 1 << 60), Err(RestoreError::Handshake(_))));
    let interrupt = changed(|state| state.interrupt_status = 4);
    assert!(matches!(interrupt, Err(RestoreError::Interrupt { status: 4 })));
    let queues = changed(|state| state.queues.clear());
    assert!(matches!(queues, Err(RestoreError::QueueCount { saved: 0, found: 1 })));
    let position = changed(|state| state.queues[0].position = None);
    assert!(matches!(position, Err(RestoreError::Position { index: 0 })));
    let ready = changed(|state| state.queues[0].registers.ready = false);
    assert!(matches!(ready, Err(RestoreError::Position { index: 0 })));
    let registers: [fn(&mut QueueRegisters); 4] = [
        |registers| registers.size = 3,
        |registers| registers.size = 1 << 20,
        |registers| registers.used = u64::MAX - 3,
        |registers| registers.available = 0,
    ];
    for change in registers {
        let queue = changed(|state| change(&mut state.queues[0].registers));
        assert!(matches!(queue, Err(RestoreError::Queue { index: 0, .. })));
    }
    let kind = changed(|state| state.device = DeviceState::Rng);
    assert!(matches!(kind, Err(RestoreError::Kind { wanted: "block", .. })));
    let size = changed(|state| state.device = DeviceState::Block(BlockState { sectors: 65 }));
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
    fn connect(&mut self, _: Ports) -> Option<UnixStream> {
        None
    }

    fn carry_on(&mut self, _: Ports) -> Option<UnixStream> {
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

/// Other bytes for some of a state's, at a place of it.
fn any_change() -> impl Strategy<Value = (prop::sample::Index, Vec<u8>)> {
    let bytes = prop_oneof![
        4 => (0_u32..70_000).prop_map(|number| number.to_le_bytes().to_vec()),
        2 => any::<u16>().prop_map(|number| number.to_le_bytes().to_vec()),
        2 => any::<u64>().prop_map(|number| number.to_le_bytes().to_vec()),
        2 => (0_u8..3).prop_map(|flag| vec![flag]),
        1 => prop::collection::vec(any::<u8>(), 1..40),
    ];
    (any::<prop::sample::Index>(), bytes)
}

/// Connections that a vsock is to reset, in any number.
fn any_resets() -> impl Strategy<Value = Vec<Ports>> {
    let ports = (any::<u32>(), any::<u32>()).prop_map(|(host, guest)| Ports { host, guest });
    prop::collection::vec(ports, 0..2000)
}

/// A position of a queue, or none.
fn any_position() -> impl Strategy<Value = Option<Position>> {
    let position = (any::<u16>(), any::<u16>());
    prop::option::of(position.prop_map(|(next_avail, next_used)| Position { next_avail, next_used }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A state that a hostile host made up is refused or restored, and then the device works its
    /// queues, or asks for a reset; it never takes the process with it.
    #[test]
    fn any_state_is_restored_or_refused(
        kind in 0_usize..4,
        other in prop::option::weighted(0.1, 0_usize..4),
        changes in prop::collection::vec(any_change(), 0..4),
        resets in prop::option::weighted(0.3, any_resets()),
        position in prop::option::weighted(0.3, any_position()),
    ) {
        let parent = Driver::new(device(kind));
        let mut state = TransportState::save(&parent.transport).unwrap();
        if let (Some(resets), DeviceState::Vsock(vsock)) = (resets, &mut state.device) {
            vsock.resets = resets;
        }
        if let Some(position) = position {
            state.queues[0].position = position;
        }
        let mut bytes = layout::to_bytes(&state);
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes.iter_mut().skip(at).zip(change).for_each(|(byte, new)| *byte = new);
        }
        let Ok(state) = layout::from_bytes::<TransportState>(&bytes) else { return Ok(()) };
        let restored = loaded(device(other.unwrap_or(kind)), Arc::clone(&parent.memory), &state);
        let Ok(transport) = restored else { return Ok(()) };
        let queues = parent.rings.len() as u32;
        for round in 0..3 * queues {
            transport.event(SOURCE_TOKENS + round % queues);
            transport.event(round % 2);
        }
        let saved = TransportState::save(&transport).unwrap();
        prop_assert_eq!(layout::from_bytes(&layout::to_bytes(&saved)), Ok(saved));
        for offset in (0..0x120).step_by(4) {
            transport.read(offset, &mut [0; 4]);
        }
    }
}
