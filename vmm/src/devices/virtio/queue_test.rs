use super::*;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{
    DATA, Driver, INDIRECT, NEEDS_RESET, RAM_BYTES, memory, put_descriptor,
};
use crate::devices::virtio::{DeviceError, VirtioDevice};
use proptest::prelude::*;
use vm_memory::Bytes;

const RAM: u64 = RAM_BYTES as u64;
const GOOD: QueueRegisters =
    QueueRegisters { size: 16, ready: true, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

fn rng() -> Driver {
    Driver::new(Box::new(Rng::default()))
}

fn fault(driver: &Driver) -> QueueError {
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    match driver.fault() {
        Some(DeviceError::Queue { index: 0, source }) => source,
        other => panic!("{other:?}"),
    }
}

fn recovers(mut driver: Driver) {
    driver.handshake(&[16], super::super::handshake::TRANSPORT_FEATURES);
    driver.add(0, &[(DATA, 8, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 8)], "after a reset the device works again");
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let memory = memory();
    let start = |registers| VirtQueue::start(&registers, 16, &memory, 0);
    assert!(start(GOOD).is_ok());
    for bad in [
        QueueRegisters { size: 0, ..GOOD },
        QueueRegisters { size: 15, ..GOOD },
        QueueRegisters { size: 32, ..GOOD },
        QueueRegisters { size: 65_536 + 16, ..GOOD },
        QueueRegisters { size: u32::MAX, ..GOOD },
        QueueRegisters { descriptors: 0x1008, ..GOOD },
        QueueRegisters { available: 0x2001, ..GOOD },
        QueueRegisters { used: 0x3002, ..GOOD },
        QueueRegisters { descriptors: RAM - 0x10, ..GOOD },
        QueueRegisters { available: RAM - 2, ..GOOD },
        QueueRegisters { available: 0, ..GOOD },
        QueueRegisters { used: RAM, ..GOOD },
        QueueRegisters { used: RAM - 8, ..GOOD },
        QueueRegisters { used: u64::MAX - 3, ..GOOD },
        QueueRegisters { descriptors: u64::MAX - 15, ..GOOD },
        QueueRegisters { available: u64::MAX - 1, ..GOOD },
    ] {
        assert!(matches!(start(bad), Err(QueueError::Setup { .. })), "{bad:?}");
    }
}

#[test]
fn a_chain_that_loops_is_an_error() {
    let mut driver = rng();
    driver.put_descriptor(0, 0, (DATA, 8, true), 1, 1);
    driver.put_descriptor(0, 1, (DATA, 8, true), 1, 0);
    driver.make_available(0, 0);
    driver.run(0);
    assert!(matches!(fault(&driver), QueueError::Endless { head: 0 }));
    recovers(driver);
}

#[test]
fn a_chain_that_leads_out_of_its_table_is_an_error() {
    for (head, next) in [(0, 16), (0, u16::MAX), (16, 0), (u16::MAX, 0)] {
        let mut driver = rng();
        driver.put_descriptor(0, 0, (DATA, 8, true), 1, next);
        driver.make_available(0, head);
        driver.run(0);
        assert!(matches!(fault(&driver), QueueError::Endless { .. }));
        recovers(driver);
    }
}

#[test]
fn pieces_out_of_ram_are_errors() {
    for (address, length) in [
        (RAM, 1),
        (RAM - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 0xfff, 0x1001),
        (1 << 63, 8),
    ] {
        for write in [false, true] {
            let mut driver = rng();
            driver.add(0, &[(address, length, write), (DATA, 8, write)]);
            driver.run(0);
            assert!(matches!(fault(&driver), QueueError::NotRam { .. }), "{address:#x} {length:#x}");
            recovers(driver);
        }
    }
}

#[test]
fn a_piece_to_read_after_one_to_write_is_an_error() {
    let mut driver = rng();
    driver.add(0, &[(DATA, 8, true), (DATA, 8, false)]);
    driver.run(0);
    assert!(matches!(fault(&driver), QueueError::Order { head: 0 }));
    recovers(driver);
}

#[test]
fn an_available_index_that_jumps_is_an_error() {
    for jump in [17_u16, 1000, u16::MAX] {
        let driver = rng();
        let at = GuestAddress(driver.rings[0].available + 2);
        driver.memory.write_obj(jump, at).unwrap();
        driver.run(0);
        assert!(matches!(fault(&driver), QueueError::Ring(_)));
        recovers(driver);
    }
}

#[test]
fn pieces_of_no_length_are_passed_over() {
    let mut driver = rng();
    driver.add(0, &[(u64::MAX, 0, false), (DATA, 8, true), (RAM, 0, true)]);
    driver.add(0, &[(DATA, 0, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 8), (3, 0)]);
}

#[test]
fn four_gigabytes_in_pieces_are_too_long() {
    let memory = memory();
    // 1,024 pieces of 4 MiB are 4 GiB: one byte more than a chain's length can say.
    for index in 0..1024_u16 {
        let at = DATA + 16 * u64::from(index);
        put_descriptor(&memory, at, (0, RAM_BYTES as u32, true), u16::from(index < 1023), index + 1);
    }
    let registers =
        QueueRegisters { size: 1024, ready: true, descriptors: DATA, available: 0x2000, used: 0x4000 };
    let mut queue = VirtQueue::start(&registers, 1024, &memory, 0).unwrap();
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    let failed = queue.next(&memory, &mut Chain::default());
    // The crate ends the walk, this module the chain: either way the guest is told.
    assert!(matches!(failed, Err(QueueError::TooLong { .. } | QueueError::Endless { .. })), "{failed:?}");
}

#[test]
fn indirect_tables_are_followed_and_checked() {
    let table = DATA + 0x1_0000;
    // Good, empty, of odd length, nested, out of RAM, longer than a chain may be.
    for (address, length, good) in [
        (table, 32, true),
        (table, 0, false),
        (table, 33, false),
        (table + 0x1000, 32, false),
        (RAM, 32, false),
        (u64::MAX - 15, 64, false),
        (table + 0x2000, 16 * 2000, false),
    ] {
        let mut driver = rng();
        put_descriptor(&driver.memory, table, (DATA, 8, true), 1, 1);
        put_descriptor(&driver.memory, table + 16, (DATA, 8, true), 0, 0);
        put_descriptor(&driver.memory, table + 0x1000, (table, 32, false), INDIRECT, 0);
        for index in 0..2000_u16 {
            let at = table + 0x2000 + 16 * u64::from(index);
            put_descriptor(&driver.memory, at, (DATA, 1, true), u16::from(index < 1999), index + 1);
        }
        driver.put_descriptor(0, 0, (address, length, false), INDIRECT, 0);
        driver.make_available(0, 0);
        driver.run(0);
        if good {
            assert_eq!(driver.used(0), [(0, 16)]);
        } else {
            fault(&driver);
            recovers(driver);
        }
    }
}

#[test]
fn indices_wrap_around() {
    let mut driver = rng();
    for round in 0..66_000_u32 {
        let head = driver.add(0, &[(DATA, 1, true)]);
        driver.run(0);
        assert_eq!(driver.used(0), [(u32::from(head), 1)], "round {round}");
    }
}

#[test]
fn a_guest_that_wants_no_interrupts_gets_none() {
    let device = Rng::default();
    let mut driver = Driver::new(Box::new(device));
    driver.handshake(&[16], 1 << 32);
    driver.transport.interrupt_line().read().ok();
    driver.memory.write_obj(1_u16, GuestAddress(driver.rings[0].available)).unwrap();
    driver.add(0, &[(DATA, 1, true)]);
    driver.run(0);
    assert_eq!(driver.used(0).len(), 1);
    assert!(driver.transport.interrupt_line().read().is_err());
    driver.memory.write_obj(0_u16, GuestAddress(driver.rings[0].available)).unwrap();
    driver.add(0, &[(DATA, 1, true)]);
    driver.run(0);
    assert_eq!(driver.transport.interrupt_line().read().unwrap(), 1);
}

fn devices() -> Vec<Box<dyn VirtioDevice>> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    vec![Box::new(Rng::default()), Box::new(Block::new(file, false, "disk").unwrap())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Descriptors, rings and indices of arbitrary bytes.
    #[test]
    fn rubbish_in_the_rings_hurts_nobody(
        table in prop::collection::vec((prop_oneof![0..RAM + 0x1000, any::<u64>()], prop_oneof![0_u32..0x1000, any::<u32>()], 0_u16..8, 0_u16..20), 16),
        heads in prop::collection::vec(0_u16..20, 16),
        index in prop_oneof![0_u16..18, any::<u16>()],
    ) {
        for device in devices() {
            let driver = Driver::new(device);
            for (slot, (address, length, flags, next)) in (0..).zip(&table) {
                driver.put_descriptor(0, slot, (*address, *length, flags & 2 != 0), *flags, *next);
            }
            let rings = driver.rings[0];
            for (slot, head) in (0..).zip(&heads) {
                driver.memory.write_obj(*head, GuestAddress(rings.available + 4 + 2 * slot)).unwrap();
            }
            driver.memory.write_obj(index, GuestAddress(rings.available + 2)).unwrap();
            driver.run(0);
            if driver.status() & NEEDS_RESET == 0 {
                prop_assert!(driver.fault().is_none());
            }
        }
    }

    /// Copies in and out of a chain see the same bytes wherever its pieces are cut.
    #[test]
    fn chains_are_one_run_of_bytes(lengths in prop::collection::vec(0_u32..300, 1..8), offset in 0_u32..600, length in 0_usize..600) {
        let mut driver = rng();
        let total: u32 = lengths.iter().sum();
        let mut content = Vec::new();
        let mut parts = Vec::new();
        for (index, part_length) in (0_u64..).zip(&lengths) {
            let address = DATA + 0x1000 * index;
            let bytes: Vec<u8> = (0..*part_length).map(|at| (at as u8) ^ (index as u8) << 5).collect();
            driver.put(address, &bytes);
            content.extend_from_slice(&bytes);
            parts.push((address, *part_length, false));
        }
        driver.add(0, &parts);
        let rings = driver.rings[0];
        let registers = QueueRegisters { size: 16, ready: true, descriptors: rings.descriptors, available: rings.available, used: rings.used };
        let mut queue = VirtQueue::start(&registers, 16, &driver.memory, 0).unwrap();
        let mut chain = Chain::default();
        prop_assert!(queue.next(&driver.memory, &mut chain).unwrap());
        prop_assert_eq!(chain.readable_bytes(), total);
        let mut copy = vec![0; length];
        let inside = offset as usize + length <= total as usize;
        prop_assert_eq!(chain.read(&driver.memory, offset, &mut copy).is_ok(), inside);
        let slices = chain.slices(&driver.memory, Side::Readable, offset, length);
        prop_assert_eq!(slices.is_ok(), inside);
        if inside {
            prop_assert_eq!(&copy[..], &content[offset as usize..offset as usize + length]);
            prop_assert_eq!(slices.unwrap().bytes(), length);
        }
    }
}
