use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A manifest in format version 1, as hexadecimal digits. Lines that begin with `#` are comments.
const GOLDEN_1: &str = include_str!("golden_v1.txt");

fn golden() -> Vec<u8> {
    let lines = GOLDEN_1.lines().filter(|line| !line.starts_with('#'));
    let digits: Vec<u8> = lines.flat_map(str::bytes).filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn digest(number: u8) -> Hash {
    Hash::from_bytes([number; 32])
}

/// What the golden file holds.
fn manifest() -> Manifest {
    let runs = 64 * 16;
    let first = Runs::new(runs, &[(0, digest(0xa0)), (9, digest(0xa9)), (1023, digest(0xaf))]).unwrap();
    let second = Runs::new(runs, &[(64, digest(0xb0))]).unwrap();
    Manifest {
        description: Description {
            uuid: Uuid::from_bytes([0x11; 16]),
            created_unix_ms: 1_795_800_000_123,
            name: "web".to_owned(),
            vcpus: 2,
            memory_mib: 64,
            cmdline: "quiet".to_owned(),
            kernel: ImageRef { digest: digest(0xc0), path: "/images/vmlinux".into() },
            rootfs: ImageRef { digest: digest(0xc1), path: "/images/root.erofs".into() },
            agent_abi: 3,
            prefault_list: (0..16).collect(),
        },
        state: StateRef { bytes: 4711, digest: digest(0x57) },
        layers: vec![Arc::new(Layer::new(first)), Arc::new(Layer::new(second))],
        optional: vec![Section { tag: 1000, bytes: b"later".to_vec() }],
    }
}

/// Where the section with this tag begins.
fn section(bytes: &[u8], tag: u32) -> usize {
    let mut at = wire::HEADER_BYTES;
    while u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) != tag {
        let length = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        at += wire::SECTION_HEADER_BYTES + usize::try_from(length).unwrap();
    }
    at
}

/// Gives changed bytes the length and digest that a manifest with them would have.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let content = bytes.len() - wire::TRAILER_BYTES;
    let length = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    let digest = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn version_1_is_read_and_written_as_it_always_was() {
    let written = manifest().encode().unwrap();
    let hex: Vec<String> =
        written.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    assert!(written == golden(), "a manifest is written as\n{}", hex.join("\n"));
    assert_eq!(Manifest::decode(&golden()).unwrap(), manifest());
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let whole = golden();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit} of byte {at}");
        }
        assert!(Manifest::decode(&whole[..at]).is_err(), "cut to {at} bytes");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(matches!(Manifest::decode(&longer), Err(ManifestError::Length { .. })));
}

#[test]
fn other_versions_are_named_whatever_else_has_changed() {
    for version in [0, 2, u32::MAX] {
        let mut bytes = golden();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        for bytes in [sealed(bytes.clone()), bytes] {
            let error = Manifest::decode(&bytes).unwrap_err();
            assert!(matches!(error, ManifestError::Version { found } if found == version), "{error}");
        }
    }
    assert!(matches!(Manifest::decode(b"#!/bin/sh\necho hello"), Err(ManifestError::Magic)));
}

/// Changes the section list of the golden manifest.
fn with_section(tag: u32, change: impl FnOnce(&mut Vec<u8>, usize)) -> Result<Manifest, ManifestError> {
    let mut bytes = golden();
    let at = section(&bytes, tag);
    change(&mut bytes, at);
    Manifest::decode(&sealed(bytes))
}

#[test]
fn a_required_section_that_is_not_known_is_refused_and_an_optional_one_is_kept() {
    assert_eq!(Manifest::decode(&golden()).unwrap().optional, manifest().optional);
    let error = with_section(1000, |bytes, at| bytes[at + 4] = 1).unwrap_err();
    assert!(matches!(error, ManifestError::Unknown { tag: 1000 }), "{error}");
    let error = with_section(1000, |bytes, at| bytes[at + 4] = 2).unwrap_err();
    assert!(matches!(error, ManifestError::Flags { tag: 1000, flags: 2 }), "{error}");
    let error = with_section(wire::LAYERS, |bytes, at| bytes[at + 4] = 0).unwrap_err();
    assert!(matches!(error, ManifestError::Flags { tag: wire::LAYERS, flags: 0 }), "{error}");
}

#[test]
fn sections_come_once_in_order_and_none_is_missing() {
    let error = with_section(wire::STATE, |bytes, at| bytes[at] = 1).unwrap_err();
    assert!(matches!(error, ManifestError::Order { tag: 1 }), "{error}");
    let error = with_section(wire::VM, |bytes, at| bytes[at] = 0).unwrap_err();
    assert!(matches!(error, ManifestError::Order { tag: 0 }), "{error}");
    for missing in [wire::VM, wire::STATE, wire::LAYERS] {
        let error = with_section(missing, |bytes, at| {
            let length = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
            bytes.drain(at..at + wire::SECTION_HEADER_BYTES + usize::try_from(length).unwrap());
            bytes[12] -= 1;
        });
        assert!(matches!(error, Err(ManifestError::Missing { tag }) if tag == missing), "{error:?}");
    }
    let error = with_section(1000, |bytes, _| bytes[12] -= 1).unwrap_err();
    assert!(matches!(error, ManifestError::Extra { .. }), "{error}");
    let error = with_section(1000, |bytes, _| bytes[12] += 1).unwrap_err();
    assert!(matches!(error, ManifestError::Cut { .. }), "{error}");
    let error = with_section(1000, |bytes, _| bytes[15] = 0xff).unwrap_err();
    assert!(matches!(error, ManifestError::Field { field: "number of sections", .. }), "{error}");
}

#[test]
fn numbers_that_promise_more_than_there_is_are_refused() {
    for (tag, offset) in
        [(wire::VM, 8), (wire::LAYERS, 16), (wire::LAYERS, 16 + 4 + 32), (wire::LAYERS, 16 + 4 + 40)]
    {
        for byte in 0..4 {
            let changed = with_section(tag, |bytes, at| bytes[at + offset + byte] = 0xff);
            assert!(changed.is_err(), "section {tag}, byte {}", offset + byte);
        }
    }
}

#[test]
fn a_layer_is_known_by_all_that_it_has() {
    let of = |count, present: &[(u64, Hash)]| Layer::new(Runs::new(count, present).unwrap()).id();
    let one = of(1024, &[(3, digest(1)), (4, digest(2))]);
    assert_eq!(one, of(1024, &[(3, digest(1)), (4, digest(2))]));
    for other in [
        of(1024, &[(3, digest(1)), (5, digest(2))]),
        of(1024, &[(3, digest(2)), (4, digest(1))]),
        of(1025, &[(3, digest(1)), (4, digest(2))]),
        of(1024, &[(3, digest(1))]),
    ] {
        assert_ne!(one, other);
    }
    // A digest in the list that is not the id's.
    let error = with_section(wire::LAYERS, |bytes, at| bytes[at + 16 + 4] ^= 1).unwrap_err();
    assert!(error.to_string().contains("the id that its digests have"), "{error}");
}

#[test]
fn limits_hold_for_what_is_written_and_what_is_read() {
    let refused = |field: &str, change: fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        let error = manifest.encode().unwrap_err();
        assert!(matches!(&error, ManifestError::Field { field: found, .. } if *found == field), "{error}");
    };
    refused("name", |manifest| manifest.description.name.clear());
    refused("name", |manifest| manifest.description.name = "x".repeat(NAME_MAX_BYTES + 1));
    refused("name", |manifest| manifest.description.name = "a\u{1b}[2J".to_owned());
    refused("command line", |manifest| manifest.description.cmdline = "x".repeat(CMDLINE_MAX_BYTES + 1));
    refused("number of vCPUs", |manifest| manifest.description.vcpus = 0);
    refused("RAM", |manifest| manifest.description.memory_mib = 63);
    refused("path of the kernel", |manifest| {
        manifest.description.kernel.path = "x".repeat(PATH_MAX_BYTES + 1).into();
    });
    refused("state", |manifest| manifest.state.bytes = 0);
    refused("state", |manifest| manifest.state.bytes = STATE_MAX_BYTES + 1);
    refused("number of layers", |manifest| manifest.layers.clear());
    refused("number of layers", |manifest| {
        manifest.layers = vec![manifest.layers[0].clone(); LAYERS_MAX + 1]
    });
    refused("layer", |manifest| manifest.description.memory_mib = 65);
    refused("prefault list", |manifest| manifest.description.prefault_list = vec![0; (1 << 20) + 1]);
    refused("number of unknown sections", |manifest| {
        let section = |tag| Section { tag, bytes: Vec::new() };
        manifest.optional = (1000..).take(OPTIONAL_MAX + 1).map(section).collect();
    });
    refused("unknown sections", |manifest| {
        let section = |tag| Section { tag, bytes: vec![0; OPTIONAL_MAX_BYTES / 2 + 1] };
        manifest.optional = vec![section(1000), section(1001)];
    });
    let tags = |manifest: &mut Manifest, tags: &[u32]| {
        let section = |tag: &u32| Section { tag: *tag, bytes: Vec::new() };
        manifest.optional = tags.iter().map(section).collect();
    };
    for order in [&[4][..], &[0], &[9, 9], &[9, 8]] {
        let mut manifest = manifest();
        tags(&mut manifest, order);
        assert!(matches!(manifest.encode(), Err(ManifestError::Order { .. })), "{order:?}");
    }
    // What is read has no vCPU: its number follows the uuid, the time, the RAM and the agent's ABI.
    let error =
        with_section(wire::VM, |bytes, at| bytes[at + wire::SECTION_HEADER_BYTES + 32] = 0).unwrap_err();
    assert!(matches!(error, ManifestError::Field { field: "number of vCPUs", .. }), "{error}");
    // A list that is empty is not written, so it is not read either.
    let error = with_section(wire::PREFAULT_LIST, |bytes, at| {
        let length = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        bytes[at + 8..at + 16].fill(0);
        let at = at + wire::SECTION_HEADER_BYTES;
        bytes.drain(at..at + usize::try_from(length).unwrap());
    });
    assert!(matches!(error, Err(ManifestError::Cut { part: "prefault list" })), "{error:?}");
}

#[test]
fn a_stray_bit_in_a_bitmap_is_refused() {
    // 100 runs: bits 100 to 103 of the last byte belong to no run.
    let runs = Runs::new(100, &[(99, digest(1))]).unwrap();
    let mut bitmap = runs.bitmap();
    assert_eq!((bitmap.len(), Runs::of_bitmap(100, &bitmap, vec![digest(1)])), (13, Some(runs)));
    bitmap[12] |= 0x10;
    assert_eq!(Runs::of_bitmap(100, &bitmap, vec![digest(1), digest(2)]), None);
    assert_eq!(Runs::of_bitmap(100, &[0; 12], vec![]), None);
    assert_eq!(Runs::of_bitmap(100, &[0; 13], vec![digest(1)]), None);
}

#[test]
fn runs_out_of_order_or_beyond_the_last_are_refused() {
    let new = |present: &[u64]| {
        let present: Vec<_> = present.iter().map(|run| (*run, digest(0))).collect();
        Runs::new(100, &present)
    };
    assert!(new(&[0, 1, 99]).is_ok());
    for wrong in [&[1, 0][..], &[1, 1], &[100]] {
        assert!(new(wrong).is_err(), "{wrong:?}");
    }
    assert!(Runs::new(u64::MAX, &[]).is_err());
}

proptest! {
    #[test]
    fn runs_are_those_of_a_map(count in 1_u64..300, present in prop::collection::btree_map(0_u64..300, any::<u8>(), 0..80)) {
        let present: BTreeMap<u64, Hash> =
            present.into_iter().filter(|(run, _)| *run < count).map(|(run, byte)| (run, digest(byte))).collect();
        let list: Vec<_> = present.iter().map(|(run, digest)| (*run, *digest)).collect();
        let runs = Runs::new(count, &list).unwrap();
        prop_assert_eq!(runs.present(), present.len() as u64);
        for run in 0..310 {
            prop_assert_eq!(runs.digest(run), present.get(&run), "run {}", run);
        }
        let found: Vec<_> = runs.iter().map(|(run, digest)| (run, *digest)).collect();
        prop_assert_eq!(&found, &list);
        let digests = list.iter().map(|(_, digest)| *digest).collect();
        prop_assert_eq!(Runs::of_bitmap(count, &runs.bitmap(), digests), Some(runs));
    }

    /// Behind the digest: whatever the bytes are, what is accepted is written in the same way.
    #[test]
    fn a_manifest_has_one_encoding(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = golden();
        let content = bytes.len() - wire::TRAILER_BYTES;
        for (at, byte) in changes {
            bytes[at.index(content)] = byte;
        }
        let bytes = sealed(bytes);
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn bytes_of_any_kind_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut all = wire::MAGIC.to_vec();
        all.extend(1_u32.to_le_bytes());
        all.extend(&bytes);
        all.resize(all.len().max(wire::HEADER_BYTES + wire::TRAILER_BYTES), 0);
        prop_assert!(Manifest::decode(&sealed(all)).is_err());
    }
}
