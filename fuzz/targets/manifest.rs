//! Bytes of any kind as a manifest: as they are, and with the length and digest that make them pass
//! the first checks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use patina_snapshot::manifest::Manifest;

/// Where the header has the length of the whole.
const LENGTH: std::ops::Range<usize> = 16..24;
const TRAILER_BYTES: usize = 32;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if bytes.len() >= LENGTH.end + TRAILER_BYTES {
        check(&sealed(bytes));
    }
});

/// What is accepted has exactly this encoding.
fn check(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode().expect("what was read can be written"), bytes);
    }
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    let content = sealed.len() - TRAILER_BYTES;
    let length = u64::try_from(sealed.len()).expect("a length");
    sealed[LENGTH].copy_from_slice(&length.to_le_bytes());
    let digest = blake3::hash(&sealed[..content]);
    sealed[content..].copy_from_slice(digest.as_bytes());
    sealed
}
