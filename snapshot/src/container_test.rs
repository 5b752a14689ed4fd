#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::cpuid::CpuidEntry;
use crate::layout::LayoutError;
use patina_control::config::KvmKind;
use proptest::prelude::*;

const SHAPE: Kind = Kind { tag: Tag(*b"SHAP"), version: 3, is_required: true };
const EXTRA: Kind = Kind { tag: Tag(*b"EX  "), version: 1, is_required: false };

fn facts() -> HostFacts {
    HostFacts {
        vendor: *b"AuthenticAMD",
        family: 25,
        model: 17,
        stepping: 1,
        kvm_kind: KvmKind::Svm,
        page_bytes: 4096,
        xcr0: 7,
        tsc_khz: 2_600_000,
        can_scale_tsc: true,
        kernel: "6.18.1".into(),
        cpuid: vec![CpuidEntry { function: 1, index: 2, flags: 1, eax: 3, ebx: 4, ecx: 5, edx: 6 }],
    }
}

fn written(sections: &[(&Kind, u16, u64)]) -> Vec<u8> {
    let mut writer = Writer::new(&facts());
    for (kind, index, content) in sections {
        writer.section(kind, *index, content);
    }
    writer.finish().unwrap()
}

fn sample() -> Vec<u8> {
    written(&[(&SHAPE, 0, 5), (&SHAPE, 1, 6), (&EXTRA, 0, 7)])
}

fn error(bytes: &[u8]) -> String {
    Container::read(bytes).unwrap_err().to_string()
}

/// With a right checksum again, after a change.
fn mended(bytes: &mut [u8], section_at: usize) {
    let length = u32::from_le_bytes(bytes[section_at + 16..section_at + 20].try_into().unwrap()) as usize;
    let checksum = crc32fast::hash(&bytes[section_at + 4..section_at + 20 + length]);
    bytes[section_at..section_at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Where the section after the facts begins.
const SECOND: usize = 20 + 20 + 78;

/// What stands here was written by the first release with containers, and each later one reads it.
/// If the layout changes, its version changes, and this stays as the old version's.
const GOLDEN_1: &str = "
    7f504154494e410a 01000000 92000000 02000000
    4e76852a 484f5354 0000 0100 01000000 4e000000
    41757468656e746963414d44 1900 1100 0100 02 00100000 0700000000000000 40ac2700 01
    06000000 362e31382e31 01000000 01000000 02000000 01000000 03000000 04000000 05000000 06000000
    8b971322 53484150 0100 0300 01000000 08000000 0807060504030201
";

#[test]
fn what_format_1_writes_is_written_and_read_the_same() {
    let golden: String = GOLDEN_1.split_whitespace().collect();
    let bytes = written(&[(&SHAPE, 1, 0x0102_0304_0506_0708)]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "a layout changed without a new version");
    let container = Container::read(&bytes).unwrap();
    assert_eq!(container.facts(), &facts());
    assert_eq!(container.get(&SHAPE, 1), Ok(0x0102_0304_0506_0708_u64));
}

#[test]
fn sections_read_back_and_optional_ones_are_skipped() {
    let bytes = sample();
    let container = Container::read(&bytes).unwrap();
    assert_eq!(container.refuse_foreign(&[SHAPE]), Ok(()));
    assert_eq!(container.all(&SHAPE, 2), Ok(vec![5_u64, 6]));
    assert_eq!(container.one(&EXTRA), Ok(7_u64));
    let seen: Vec<_> = container.sections().iter().map(|section| (section.tag, section.index)).collect();
    assert_eq!(seen, [(FACTS.tag, 0), (SHAPE.tag, 0), (SHAPE.tag, 1), (EXTRA.tag, 0)]);
    assert!(!container.sections()[3].is_required && container.sections()[1].is_required);
}

#[test]
fn facts_are_read_from_the_beginning_alone() {
    let bytes = sample();
    assert_eq!(read_facts(&bytes[..SECOND]), Ok(facts()));
    assert_eq!(read_facts(&bytes[..SECOND - 1]), Err(ContainerError::Cut { at: 20 }));
    // The most that there can be: all entries and a long name of the kernel.
    let most = HostFacts { kernel: "x".repeat(64), cpuid: vec![CpuidEntry::default(); 256], ..facts() };
    let bytes = Writer::new(&most).finish().unwrap();
    assert!(bytes.len() < 16 * 1024, "{}", bytes.len());
    assert_eq!(read_facts(&bytes), Ok(most));
}

#[test]
fn an_unknown_section_that_is_required_is_refused() {
    let bytes = sample();
    let error = Container::read(&bytes).unwrap().refuse_foreign(&[EXTRA]).unwrap_err().to_string();
    assert_eq!(
        error,
        "read the VM's state: this release does not know its section SHAP, which is required; use the release that \
         wrote the state, or a later one"
    );
}

#[test]
fn other_versions_are_refused_by_one_more_or_less() {
    for found in [0, 2, u32::MAX] {
        let mut bytes = sample();
        bytes[8..12].copy_from_slice(&found.to_le_bytes());
        let words = format!(
            "read the VM's state: its format is version {found}, and this release reads version 1; use the release that \
             wrote it, or boot the VM anew"
        );
        assert_eq!(error(&bytes), words);
        assert_eq!(read_facts(&bytes).unwrap_err().to_string(), words);
    }
    let bytes = sample();
    let container = Container::read(&bytes).unwrap();
    for known in [2, 4] {
        let kind = Kind { version: known, ..SHAPE };
        let error = container.get::<u64>(&kind, 0).unwrap_err();
        assert_eq!(container.refuse_foreign(&[kind]), Err(error.clone()), "and before any is decoded");
        let words = format!(
            "read the VM's state: section SHAP has version 3, and this release reads version {known}; use the release \
             that wrote the state, or boot the VM anew"
        );
        assert_eq!(error.to_string(), words);
    }
    let mut bytes = sample();
    bytes[20 + 10] = 2;
    mended(&mut bytes, 20);
    assert!(
        error(&bytes).starts_with("read the VM's state: section HOST has version 2"),
        "{}",
        error(&bytes)
    );
}

/// A state of a release that had no containers begins with the RAM's size.
#[test]
fn what_is_no_container_is_refused_with_what_to_do() {
    for bytes in
        [&b""[..], b"\x80\x02\x01\x00\x80\x80\x80\x80\x01\x00", b"\x7fPATINA\r", b"\x7fELF\x02\x01\x01\x00"]
    {
        assert_eq!(
            error(bytes),
            "read the VM's state: it does not begin as a state does; a VM that an older release started has another form \
             of state: boot it anew"
        );
    }
}

#[test]
fn damage_is_named_with_its_place() {
    let good = sample();
    let cut = &good[..good.len() - 1];
    assert_eq!(Container::read(cut).unwrap_err(), ContainerError::Length { found: 201, expected: 202 });
    let longer = [&good[..], b"x"].concat();
    assert_eq!(Container::read(&longer).unwrap_err(), ContainerError::Length { found: 203, expected: 202 });
    // A length that fits what is there does not make it whole.
    let mut cut = cut.to_vec();
    cut[LENGTH_AT] -= 1;
    assert_eq!(Container::read(&cut).unwrap_err(), ContainerError::Cut { at: SECOND + 56 });
    let mut longer = longer;
    longer[LENGTH_AT] += 1;
    assert_eq!(
        error(&longer),
        "read the VM's state: 1 bytes follow its last section; it is damaged: use another copy"
    );
    for sections in [0_u32, 257, u32::MAX] {
        let mut bytes = good.clone();
        bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&sections.to_le_bytes());
        let expected = ContainerError::Count { found: sections as usize };
        assert_eq!(Container::read(&bytes).unwrap_err(), expected);
    }
    let mut bytes = good.clone();
    bytes[SECOND + 20] ^= 1;
    assert!(matches!(Container::read(&bytes), Err(ContainerError::Checksum { at: SECOND, .. })));
    // A length that leads beyond all memory.
    let mut bytes = good.clone();
    bytes[SECOND + 16..SECOND + 20].fill(0xff);
    assert_eq!(Container::read(&bytes).unwrap_err(), ContainerError::Cut { at: SECOND });
    let mut bytes = good;
    bytes[SECOND + 12] = 3;
    mended(&mut bytes, SECOND);
    assert_eq!(Container::read(&bytes).unwrap_err(), ContainerError::Flags { tag: SHAPE.tag, flags: 3 });
}

#[test]
fn a_section_that_is_there_twice_or_not_at_all_is_refused() {
    let twice = written(&[(&SHAPE, 1, 5), (&EXTRA, 0, 7), (&SHAPE, 1, 6)]);
    assert_eq!(
        error(&twice),
        "read the VM's state: section SHAP 1 is there twice; the state was not written by Patina"
    );
    let bytes = sample();
    let container = Container::read(&bytes).unwrap();
    let missing = container.all::<u64>(&SHAPE, 3).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "read the VM's state: section SHAP 2 is missing; the state was not written by Patina"
    );
    let more = container.one::<u64>(&SHAPE).unwrap_err();
    assert_eq!(
        more.to_string(),
        "read the VM's state: it has a section SHAP 1, and should have 1 of that kind; the state was not written by \
         Patina"
    );
    let mut bytes = sample();
    bytes[20 + 4..20 + 8].copy_from_slice(b"ZZZZ");
    mended(&mut bytes, 20);
    assert_eq!(Container::read(&bytes).unwrap_err(), ContainerError::Missing { tag: FACTS.tag, index: 0 });
}

#[test]
fn content_of_another_layout_is_refused_with_its_section() {
    let bytes = sample();
    let container = Container::read(&bytes).unwrap();
    let error = container.get::<u32>(&SHAPE, 1).unwrap_err();
    let expected =
        ContainerError::Content { tag: SHAPE.tag, index: 1, source: LayoutError::Long { at: 4, more: 4 } };
    assert_eq!(error, expected);
    assert_eq!(error.to_string(), "read the VM's state: section SHAP 1");
}

#[test]
fn what_is_too_long_is_neither_written_nor_read() {
    const BIG: Kind = Kind { tag: Tag(*b"BIG "), version: 1, is_required: true };
    let limit = usize::try_from(STATE_MAX_BYTES).unwrap();
    let writer = |bytes: usize| {
        let mut writer = Writer::new(&facts());
        writer.section(&BIG, 0, &vec![7_u8; bytes]);
        writer.finish()
    };
    // The header of the section, and the number of bytes.
    let rest = limit - SECOND - 20 - 4;
    let most = writer(rest).unwrap();
    assert_eq!(most.len(), limit);
    assert!(Container::read(&most).is_ok());
    assert_eq!(writer(rest + 1), Err(ContainerError::TooLong { found: limit + 1 }));
    let mut longer = most;
    longer.push(0);
    longer[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&u32::try_from(limit + 1).unwrap().to_le_bytes());
    assert_eq!(Container::read(&longer).unwrap_err(), ContainerError::TooLong { found: limit + 1 });
    let mut many = Writer::new(&facts());
    (0..256).for_each(|index| many.section(&SHAPE, index, &0_u8));
    assert_eq!(many.finish(), Err(ContainerError::Count { found: 257 }));
}

/// Each byte, in each way; each length.
#[test]
fn no_changed_and_no_cut_container_is_accepted() {
    let good = sample();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        for change in 1..=u8::MAX {
            bytes[at] = good[at] ^ change;
            assert!(Container::read(&bytes).is_err(), "byte {at} with {change:#x}");
        }
        assert!(Container::read(&good[..at]).is_err(), "{at} bytes");
    }
}

proptest! {
    /// With a right checksum, so that what is behind it is reached.
    #[test]
    fn no_bytes_make_the_reader_fail(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        content in prop::collection::vec(any::<u8>(), 0..300),
        changes in prop::collection::vec((4_usize..SECOND - 20, any::<u8>()), 0..6),
    ) {
        prop_assert!(Container::read(&bytes).is_err());
        if let Ok(facts) = layout::from_bytes::<HostFacts>(&content) {
            prop_assert_eq!(facts.check(&facts), Ok(()));
        }
        let mut bytes = sample();
        for (at, byte) in changes {
            bytes[20 + at] = byte;
        }
        if u32::from_le_bytes(bytes[36..40].try_into().unwrap()) == 78 {
            mended(&mut bytes, 20);
        }
        if let Ok(container) = Container::read(&bytes) {
            prop_assert_eq!(container.facts().check(container.facts()), Ok(()));
        }
    }
}
