use super::*;
use crate::devices::virtio::DeviceState;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::persist::RestoreError;
use crate::devices::virtio::queue::Chain;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{
    ACKNOWLEDGE, DATA, DRIVER, DRIVER_OK, Driver, FEATURES_OK, NEEDS_RESET, Rings, memory,
};
use proptest::prelude::*;

#[test]
fn the_identity_of_a_device() {
    let driver = Driver::new(Box::new(Rng::default()));
    assert_eq!(driver.read(0), 0x7472_6976);
    assert_eq!(driver.read(4), 2);
    assert_eq!(driver.read(8), 4);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 16);
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "a queue that does not exist");
    assert_eq!(driver.read(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 1);
}

#[test]
fn a_used_buffer_interrupts_until_acknowledged() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.add(0, &[(DATA, 1, true)]);
    driver.run(0);
    assert_eq!(driver.transport.interrupt_line().read().unwrap(), 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_reset_stops_the_queues() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
    driver.add(0, &[(DATA, 8, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), []);
    assert_eq!(driver.get(DATA, 8), [0; 8]);
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_are_checked_when_the_driver_is_ready() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    let good = driver.rings[0];
    for bad in [
        Rings { size: 0, ..good },
        Rings { size: 3, ..good },
        Rings { size: 32, ..good },
        Rings { used: u64::MAX - 3, ..good },
        Rings { descriptors: 8, ..good },
    ] {
        driver.handshake(&[], TRANSPORT_FEATURES);
        driver.write(reg::VIRTIO_MMIO_STATUS, 0);
        for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            driver.write(reg::VIRTIO_MMIO_STATUS, status);
        }
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        driver.write(reg::VIRTIO_MMIO_STATUS, 11);
        driver.set_queue(0, &bad);
        driver.write(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(driver.status(), 15 | NEEDS_RESET);
        assert!(matches!(driver.fault(), Some(DeviceError::Queue { index: 0, .. })));
        driver.run(0);
    }
}

#[test]
fn queues_are_fixed_once_the_driver_is_ready() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    let rings = driver.rings[0];
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    driver.set_queue(0, &Rings { used: 0x20_0000, ..rings });
    driver.add(0, &[(DATA, 8, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 8)]);
}

#[test]
fn a_queue_that_was_not_set_up_stays_empty() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.handshake(&[], TRANSPORT_FEATURES);
    driver.run(0);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn registers_take_only_whole_words() {
    let driver = Driver::new(Box::new(Rng::default()));
    for length in [1, 2, 3, 8] {
        let mut data = vec![0xaa; length];
        driver.transport.read(0, &mut data);
        assert_eq!(data, vec![0; length]);
    }
    driver.transport.write(0x70, &[0]);
    driver.transport.write(0x70, &[0; 8]);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_kick_by_register_reaches_the_queue() {
    let driver = Driver::new(Box::new(Rng::default()));
    driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(driver.transport.kicks()[0].read().unwrap(), 1);
    driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
}

#[test]
fn a_broken_device_leaves_the_others_alone() {
    let mut broken = Driver::new(Box::new(Rng::default()));
    let mut good = Driver::new(Box::new(Rng::default()));
    let mut devices = DeviceLoop::new().unwrap();
    broken.transport.attach(&devices).unwrap();
    good.transport.attach(&devices).unwrap();
    devices.start().unwrap();
    broken.add(0, &[(u64::MAX, 8, true)]);
    good.add(0, &[(DATA, 8, true)]);
    broken.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    good.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    for driver in [&broken, &good] {
        let line = sys::borrow(driver.transport.interrupt_line());
        let mut wait = [rustix::event::PollFd::from_borrowed_fd(line, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1);
    }
    devices.stop(std::time::Duration::from_secs(60)).unwrap();
    assert!(broken.fault().is_some());
    assert_eq!(good.used(0), [(0, 8)]);
    good.add(0, &[(DATA, 8, true)]);
    good.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(good.used(0), [], "nothing happens while the loop is stopped");
}

/// Says that it failed whenever it is kicked.
struct Failing(Chain);

impl VirtioDevice for Failing {
    fn device_type(&self) -> u32 {
        1
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError> {
        io.serve(index, &mut self.0, |_, _| Err(DeviceError::io("fail")(io::ErrorKind::Other.into())))
    }
    fn reset(&mut self) {}
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
    fn restore(&mut self, _: &DeviceState, _: bool) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[test]
fn a_device_error_asks_for_a_reset_once() {
    let mut driver = Driver::new(Box::new(Failing(Chain::default())));
    driver.add(0, &[(DATA, 8, true)]);
    driver.run(0);
    assert_eq!(driver.status(), 15 | NEEDS_RESET);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert!(matches!(driver.fault(), Some(DeviceError::Io { operation: "fail", .. })));
    driver.run(0);
    assert!(driver.transport.take_fault().is_none());
}

fn access() -> impl Strategy<Value = (bool, u64, usize, u64)> {
    let offset = prop_oneof![
        (0_u64..0x48).prop_map(|register| register * 4),
        prop::sample::select(vec![0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x90, 0xa0]),
        0..WINDOW_BYTES,
        any::<u64>(),
    ];
    let value =
        prop_oneof![0_u64..16, prop::sample::select(vec![1, 3, 11, 15, 0x1000, 0x2000]), any::<u64>()];
    (any::<bool>(), offset, prop::sample::select(vec![1_usize, 2, 4, 4, 4, 4, 8]), value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_access_in_any_order_is_survived(accesses in prop::collection::vec(access(), 0..200)) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let block = Block::new(file, false, "disk").unwrap();
        let transport = Arc::new(MmioTransport::new(Box::new(block), memory()).unwrap());
        for (write, offset, width, value) in accesses {
            let mut data = value.to_le_bytes();
            if write {
                transport.write(offset, &data[..width]);
            } else {
                transport.read(offset, &mut data[..width]);
            }
            transport.event(SOURCE_TOKENS);
        }
        transport.event(0);
        transport.event(u32::MAX);
    }
}
