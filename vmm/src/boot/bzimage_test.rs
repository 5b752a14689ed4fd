use super::*;
use std::io::Write;

/// A bzImage of one setup sector whose payload is `payload`.
fn image(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 2 * SECTOR_BYTES];
    image[SETUP_SECTS] = 1;
    image[VERSION..VERSION + 2].copy_from_slice(&[15, 2]);
    image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn kernel() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
}

#[test]
fn gzip_unpacks_whatever_follows_the_stream() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&kernel()).expect("compress");
    let mut payload = encoder.finish().expect("compress");
    payload.extend_from_slice(&[0, 0, 6, 26]);
    assert_eq!(extract(&image(&payload)).expect("unpack"), kernel());
}

/// 2,000 calls of one function: in x86's filter all the same bytes.
fn code() -> Vec<u8> {
    let call = |index: u32| {
        let distance = 0x12_3456_u32.wrapping_sub(9 * index + 5).to_le_bytes();
        [&[0xe8][..], &distance, &[0x48, 0x89, (index % 7) as u8, 0x90]].concat()
    };
    (0..2000).flat_map(call).collect()
}

/// See `payloads/README.md`.
macro_rules! payload {
    ($name:literal) => {
        ($name, include_bytes!(concat!("payloads/", $name)).as_slice())
    };
}

#[test]
fn payloads_of_every_kind_that_linux_makes_unpack() {
    let payloads = [
        payload!("x86-crc32.xz"),
        payload!("x86-crc32-128m.xz"),
        payload!("x86-sha256.xz"),
        payload!("crc64.xz"),
        payload!("alone.lzma"),
        payload!("window-128m.zst"),
        payload!("legacy.lz4"),
        payload!("nine.gz"),
    ];
    for (name, payload) in payloads {
        let unpacked = extract(&image(payload)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(unpacked == code(), "{name}");
    }
    let bzip2 = extract(&image(payload!("nine.bz2").1)).expect_err("no bzip2");
    assert!(bzip2.to_string().contains("(gzip, xz, lzma, zstd and lz4 are)"), "{bzip2}");
}

#[test]
fn a_payload_that_has_changed_is_refused() {
    for (name, payload) in [payload!("x86-crc32.xz"), payload!("crc64.xz"), payload!("x86-sha256.xz")] {
        // In the check, which comes before the index and the footer.
        let mut changed = payload.to_vec();
        let at = payload.len() - 4 - 12 - 8 - 3;
        changed[at] ^= 1;
        let error = extract(&image(&changed)).expect_err(name);
        assert!(matches!(error, BzImageError::Unpack { format: "xz", .. }), "{name}: {error}");
        let half = extract(&image(&payload[..payload.len() / 2])).expect_err(name);
        assert!(matches!(half, BzImageError::Unpack { format: "xz", .. }), "{name}: {half}");
    }
}

#[test]
fn a_payload_that_asks_for_too_much_memory_is_refused() {
    // A dictionary of 2 GiB.
    let mut lzma = payload!("alone.lzma").1.to_vec();
    lzma[4] = 0x80;
    assert!(matches!(extract(&image(&lzma)), Err(BzImageError::Unpack { format: "lzma", .. })));
    // A window of a TiB.
    let mut zstd = payload!("window-128m.zst").1.to_vec();
    zstd[5] = 0xf0;
    let error = extract(&image(&zstd)).expect_err("too large a window");
    assert!(error.to_string().contains("its window of"), "{error}");
}

#[test]
fn a_kernel_that_grows_beyond_all_bounds_is_refused() {
    let error = read_bounded("gzip", std::io::repeat(0)).expect_err("too long");
    assert!(error.to_string().contains("longer than 536870912 bytes"), "{error}");
}

#[test]
fn a_payload_outside_the_file_an_old_protocol_and_rubbish_are_refused() {
    let mut cut = image(b"\x1f\x8b123456");
    cut.truncate(cut.len() - 1);
    assert!(matches!(extract(&cut), Err(BzImageError::Payload { length: 8, .. })));
    let mut old = image(b"");
    old[VERSION] = 7;
    assert!(matches!(extract(&old), Err(BzImageError::Protocol { major: 2, minor: 7 })));
    assert!(
        matches!(extract(&image(b"rubbish")), Err(BzImageError::Compression(magic)) if &magic == b"rubb")
    );
    assert!(matches!(extract(&image(b"\x1f\x8brubbish")), Err(BzImageError::Unpack { format: "gzip", .. })));
    assert!(extract(b"").is_err());
}
