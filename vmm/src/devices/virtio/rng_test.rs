use super::*;
use crate::devices::virtio::testing::{DATA, Driver};

#[test]
fn a_buffer_is_filled() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    let head = driver.add(0, &[(DATA, 40, true), (DATA + 0x1000, 600, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(u32::from(head), 640)]);
    let bytes = driver.get(DATA + 0x1000, 600);
    assert!(bytes.chunks(100).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    assert_eq!(driver.get(DATA + 0x1000 + 600, 8), [0; 8], "nothing beyond the buffer");
}

#[test]
fn a_huge_buffer_gets_a_part() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.add(0, &[(DATA, 1 << 20, true)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, REQUEST_MAX_BYTES)]);
    assert_eq!(driver.get(DATA + u64::from(REQUEST_MAX_BYTES), 16), [0; 16]);
}

#[test]
fn a_buffer_to_read_is_handed_back_untouched() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.add(0, &[(DATA, 64, false)]);
    driver.run(0);
    assert_eq!(driver.used(0), [(0, 0)]);
    assert_eq!(driver.get(DATA, 64), [0; 64]);
}
