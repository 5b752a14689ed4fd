use super::*;
use crate::devices::virtio::testing::{DATA, Driver, RAM_BYTES};
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::fs::FileExt;

const SECTORS: u64 = 64;
const STATUS: u64 = DATA + 0x8_0000;

fn disk(read_only: bool) -> (Driver, File) {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR_BYTES as usize]).unwrap();
    }
    file.write_all(b"half a sector").unwrap();
    let block = Block::new(file.try_clone().unwrap(), read_only, "test-disk").unwrap();
    (Driver::new(Box::new(block)), file)
}

fn header(driver: &Driver, kind: u32, sector: u64) -> (u64, u32, bool) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(DATA, &header);
    (DATA, 16, false)
}

/// Does one request with these data parts; returns its status and the length reported.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u32, u32) {
    driver.put(STATUS, &[0xff]);
    let mut parts = vec![header(driver, kind, sector)];
    parts.extend_from_slice(data);
    parts.push((STATUS, 1, true));
    let head = driver.add(0, &parts);
    driver.run(0);
    let used = driver.used(0);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, u32::from(head));
    (u32::from(driver.get(STATUS, 1)[0]), used[0].1)
}

#[test]
fn the_guest_sees_whole_sectors() {
    let (driver, _) = disk(true);
    let mut config = [0; 16];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..], 254_u32.to_le_bytes());
}

#[test]
fn reads_scatter_into_memory() {
    let (mut driver, _) = disk(true);
    let parts = [(DATA + 0x1000, 100, true), (DATA + 0x3000, 924, true)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &parts), (VIRTIO_BLK_S_OK, 1025));
    assert_eq!(driver.get(DATA + 0x1000, 100), [5; 100]);
    assert_eq!(driver.get(DATA + 0x3000, 412), [5; 412]);
    assert_eq!(driver.get(DATA + 0x3000 + 412, 512), [6; 512]);
}

#[test]
fn writes_gather_from_memory_and_flush() {
    let (mut driver, file) = disk(false);
    driver.put(DATA + 0x1000, &[7; 512]);
    let parts = [(DATA + 0x1000, 500, false), (DATA + 0x1000 + 500, 12, false)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 63, &parts), (VIRTIO_BLK_S_OK, 1));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 63 * SECTOR_BYTES).unwrap();
    assert_eq!(sector, [7; 512]);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let (mut driver, file) = disk(true);
    let part = [(DATA + 0x1000, 512, false)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 1, &part), (VIRTIO_BLK_S_IOERR, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, SECTOR_BYTES).unwrap();
    assert_eq!(sector, [1; 512]);
}

#[test]
fn the_name_is_told() {
    let (mut driver, _) = disk(true);
    let part = [(DATA + 0x1000, 20, true)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &part), (VIRTIO_BLK_S_OK, 21));
    assert_eq!(driver.get(DATA + 0x1000, 20), *b"test-disk\0\0\0\0\0\0\0\0\0\0\0");
    let short = [(DATA + 0x1000, 19, true)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &short).0, VIRTIO_BLK_S_IOERR);
}

#[test]
fn requests_beyond_the_disk_or_of_odd_length_fail() {
    let (mut driver, _) = disk(false);
    for (sector, length) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (0, 511), (u64::MAX, 512), (u64::MAX / 512, 1024)]
    {
        for (kind, write) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
            let part = [(DATA + 0x1000, length, write)];
            assert_eq!(
                request(&mut driver, kind, sector, &part),
                (VIRTIO_BLK_S_IOERR, 1),
                "{sector} {length}"
            );
        }
    }
}

#[test]
fn unknown_kinds_are_unsupported() {
    let (mut driver, _) = disk(false);
    for kind in [2, 3, 11, 13, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[]).0, VIRTIO_BLK_S_UNSUPP);
    }
}

#[test]
fn a_request_without_room_for_a_status_is_handed_back() {
    let (mut driver, _) = disk(false);
    let header = header(&driver, VIRTIO_BLK_T_IN, 0);
    driver.add(0, &[header]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 0)]);
}

#[test]
fn a_short_header_fails() {
    let (mut driver, _) = disk(false);
    driver.add(0, &[(DATA, 15, false), (STATUS, 1, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 1)]);
    assert_eq!(u32::from(driver.get(STATUS, 1)[0]), VIRTIO_BLK_S_IOERR);
}

#[test]
fn a_full_queue_is_served_in_one_go_and_interrupts_once_for_it() {
    let (mut driver, _) = disk(true);
    let part = header(&driver, VIRTIO_BLK_T_IN, 1);
    for _ in 0..80 {
        driver.add(0, &[part, (DATA + 0x1000, 512, true), (STATUS, 1, true)]);
    }
    driver.run(0);
    assert_eq!(driver.used(0).len(), 80);
    assert_eq!(driver.transport.interrupt_line().read().unwrap(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_request_hurts(
        kind in prop_oneof![0_u32..14, any::<u32>()],
        sector in prop_oneof![0..SECTORS + 2, any::<u64>()],
        parts in prop::collection::vec((prop_oneof![0_u64..RAM_BYTES as u64 + 0x2000, any::<u64>()], prop_oneof![0_u32..5000, any::<u32>()], any::<bool>()), 0..8),
    ) {
        let (mut driver, file) = disk(true);
        let mut chain = vec![header(&driver, kind, sector)];
        chain.extend(parts);
        driver.add(0, &chain);
        driver.run(0);
        // The guest may have written anything over its own rings; the disk is what must not change.
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, SECTOR_BYTES).unwrap();
        prop_assert_eq!(sector, [1; 512]);
        prop_assert_eq!(file.metadata().unwrap().len(), SECTORS * SECTOR_BYTES + 13);
    }
}

/// 256 requests of 16 MiB each, the most that a queue and a request can have: 4 GiB to be read.
#[test]
fn a_hostile_queue_of_the_longest_requests_is_left_after_each() {
    const PART: u32 = 2 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(u64::from(REQUEST_MAX_BYTES)).unwrap();
    let mut driver = Driver::new(Box::new(Block::new(file, true, "test-disk").unwrap()));
    let mut parts = vec![header(&driver, VIRTIO_BLK_T_IN, 0)];
    parts.extend((0..REQUEST_MAX_BYTES / PART).map(|_| (DATA + 0x10_0000, PART, true)));
    parts.push((STATUS, 1, true));
    let head = driver.add(0, &parts);
    // The same chain in all of the ring: hostile, and not forbidden.
    (1..256).for_each(|_| driver.make_available(0, head));
    for turn in 0..3 {
        driver.transport.kicks()[0].write(1).unwrap();
        driver.source_event(crate::devices::virtio::mmio::SOURCE_TOKENS);
        let done = driver.used(0).len();
        assert_eq!(done, 1, "requests of 16 MiB in turn {turn}");
        assert!(driver.transport.kicks()[0].read().is_ok(), "it is to be called again");
    }
    driver.transport.kicks()[0].write(1).unwrap();
    driver.settle();
    assert_eq!(driver.used(0).len(), 253, "and all are answered");
}
