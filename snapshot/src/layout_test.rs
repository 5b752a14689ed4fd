#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;

#[derive(Debug, Clone, PartialEq)]
struct All {
    byte: u8,
    short: u16,
    word: u32,
    long: u64,
    signed: i64,
    flag: bool,
    pair: [u16; 2],
    blob: Blob<3>,
    some: Option<u8>,
    none: Option<u64>,
    list: Vec<Few>,
}

crate::layout!(All {
    byte: u8,
    short: u16,
    word: u32,
    long: u64,
    signed: i64,
    flag: bool,
    pair: [u16; 2],
    blob: Blob<3>,
    some: Option<u8>,
    none: Option<u64>,
    list: Vec<Few>,
});

#[derive(Debug, Clone, Copy, PartialEq)]
struct Few {
    value: u16,
}

crate::layout!(Few { value: u16 });

impl Item for Few {
    const WHAT: &'static str = "things";
    const MOST: usize = 3;
}

fn all() -> All {
    All {
        byte: 0x01,
        short: 0x0203,
        word: 0x0405_0607,
        long: 0x0809_0a0b_0c0d_0e0f,
        signed: -2,
        flag: true,
        pair: [0x1011, 0x1213],
        blob: Blob([0x14, 0x15, 0x16]),
        some: Some(0x17),
        none: None,
        list: vec![Few { value: 0x18 }, Few { value: 0x19 }],
    }
}

const ALL: [u8; 44] = [
    0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08, 0xfe, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x11, 0x10, 0x13, 0x12, 0x14, 0x15, 0x16, 1, 0x17, 0, 2, 0, 0, 0,
    0x18, 0, 0x19, 0, 0, 0,
];

#[test]
fn every_kind_of_value_has_the_bytes_of_its_table() {
    assert_eq!(to_bytes(&all()), ALL[..42]);
    assert_eq!(from_bytes::<All>(&ALL[..42]), Ok(all()));
}

#[test]
fn what_is_too_short_or_too_long_is_refused_with_its_place() {
    for length in 0..42 {
        let error = from_bytes::<All>(&ALL[..length]).unwrap_err();
        assert!(matches!(error, LayoutError::Short { at, .. } if at == length), "{length}: {error}");
    }
    assert_eq!(from_bytes::<All>(&ALL), Err(LayoutError::Long { at: 42, more: 2 }));
    assert_eq!(from_bytes::<u64>(&[1, 2]), Err(LayoutError::Short { at: 2, missing: 6 }));
}

#[test]
fn what_stands_for_nothing_is_refused() {
    let error = from_bytes::<bool>(&[2]).unwrap_err();
    assert_eq!(error.to_string(), "byte 0: 2 is not a truth value");
    assert!(from_bytes::<Option<u8>>(&[0xff, 1]).is_err());
}

/// With the greatest number there is, a vector of it would take 8 GiB.
#[test]
fn a_number_of_items_is_checked_before_memory_is_taken() {
    let error = from_bytes::<Vec<Few>>(&[4, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0]).unwrap_err();
    assert_eq!(error.to_string(), "it has 4 things; the limit is 3");
    let error = from_bytes::<Vec<u8>>(&[0xff, 0xff, 0xff, 0xff, 7]).unwrap_err();
    assert_eq!(error, LayoutError::Short { at: 5, missing: u32::MAX as usize - 1 });
    assert_eq!(from_bytes::<Vec<u8>>(&[2, 0, 0, 0, 7, 8]), Ok(vec![7, 8]));
}
