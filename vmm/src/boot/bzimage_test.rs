use super::*;
use std::io::Write;

/// A bzImage of one setup sector whose payload is `payload`.
fn image(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 2 * SECTOR_BYTES];
    image[SETUP_SECTS] = 1;
    image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
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

#[test]
fn xz_and_lz4_unpack_without_the_size_behind_them() {
    let mut xz = Vec::new();
    lzma_rs::xz_compress(&mut kernel().as_slice(), &mut xz).expect("compress");
    xz.extend_from_slice(&(kernel().len() as u32).to_le_bytes());
    assert_eq!(extract(&image(&xz)).expect("unpack"), kernel());

    let block = lz4_flex::block::compress(&kernel());
    let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
    lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
    lz4.extend_from_slice(&block);
    lz4.extend_from_slice(&(kernel().len() as u32).to_le_bytes());
    assert_eq!(extract(&image(&lz4)).expect("unpack"), kernel());
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
