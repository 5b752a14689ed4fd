//! Bytes of any kind as the container of a state: as they are, and with the lengths and checksums
//! that make them pass the first checks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use patina_snapshot::{
    container::{Container, FACTS, FORMAT, MAGIC, SECTIONS_MAX, read_facts},
    facts::HostFacts,
    layout,
};

const HEADER_BYTES: usize = 20;
const SECTION_HEADER_BYTES: usize = 20;
/// In the header of a section: what the checksum covers begins here.
const COVERED: usize = 4;
/// In the header of a section.
const LENGTH: std::ops::Range<usize> = 16..20;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&sealed(bytes));
});

/// The beginning says the same as the whole. Facts that were read are written so that they read the
/// same.
fn check(bytes: &[u8]) {
    let begun = read_facts(bytes);
    if let Ok(container) = Container::read(bytes) {
        assert_eq!(begun.as_ref(), Ok(container.facts()));
        // The kernel's release is only shown, and what cannot be shown of it is replaced.
        let facts = HostFacts { kernel: String::new(), ..container.facts().clone() };
        assert_eq!(layout::from_bytes(&layout::to_bytes(&facts)).as_ref(), Ok(&facts));
        let refused = container.refuse_foreign(&[]).is_err();
        let others = &container.sections()[1..];
        assert_eq!(refused, others.iter().any(|section| section.is_required && section.tag != FACTS.tag));
    }
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    sealed.resize(sealed.len().max(HEADER_BYTES), 0);
    let (mut at, mut sections) = (HEADER_BYTES, 0);
    while sealed.len() - at >= SECTION_HEADER_BYTES && sections < SECTIONS_MAX {
        let section = &mut sealed[at..];
        let most = section.len() - SECTION_HEADER_BYTES;
        let said = u32::from_le_bytes(section[LENGTH].try_into().expect("four bytes"));
        let length = usize::try_from(said).map_or(most, |said| said.min(most));
        section[LENGTH].copy_from_slice(&number(length));
        let end = SECTION_HEADER_BYTES + length;
        let checksum = crc32fast::hash(&section[COVERED..end]);
        section[..COVERED].copy_from_slice(&checksum.to_le_bytes());
        at += end;
        sections += 1;
    }
    sealed.truncate(at);
    sealed[..8].copy_from_slice(&MAGIC);
    sealed[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    sealed[12..16].copy_from_slice(&number(at));
    sealed[16..20].copy_from_slice(&number(sections));
    sealed
}

fn number(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("a small number").to_le_bytes()
}
