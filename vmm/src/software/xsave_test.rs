use super::*;
use proptest::prelude::*;

/// AVX at 576, 256 bytes, as on every CPU; a second one behind it.
fn layout() -> Layout {
    Layout::new(0b1000_0111, |bit| match bit {
        2 => (256, 576),
        7 => (64, 832),
        _ => (0, 0),
    })
}

const ALL: u64 = 0b1000_0111;
const BYTES: usize = 896;

fn state(fill: u8, in_use: u64) -> Vec<u8> {
    let mut state = vec![fill; BYTES];
    state[24..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
    state[XSTATE_BV..XSTATE_BV + HEADER_BYTES].fill(0);
    state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&in_use.to_le_bytes());
    state
}

#[test]
fn the_area_ends_with_the_last_component_of_the_mask() {
    assert_eq!(layout().area_bytes(3), 576);
    assert_eq!(layout().area_bytes(7), 832);
    assert_eq!(layout().area_bytes(ALL), BYTES);
}

#[test]
fn what_is_saved_comes_back() {
    let before = state(0xa5, ALL);
    let mut area = vec![0; BYTES];
    layout().save(&before, &mut area, ALL);
    let mut after = state(0x11, ALL);
    layout().restore(&mut after, &area, ALL, ALL).expect("a good area");
    assert_eq!(after[XMM], before[XMM]);
    assert_eq!(after[X87_REGISTERS], before[X87_REGISTERS]);
    assert_eq!(after[576..], before[576..]);
}

#[test]
fn a_component_out_of_the_mask_is_not_touched_and_one_not_present_becomes_initial() {
    let mut area = vec![0; BYTES];
    layout().save(&state(0xa5, 3), &mut area, ALL);
    assert_eq!(u64_at(&area, XSTATE_BV), 3);
    let mut after = state(0x11, ALL);
    layout().restore(&mut after, &area, AVX, ALL).expect("a good area");
    assert!(after[576..832].iter().all(|byte| *byte == 0));
    assert_eq!(after[XMM][0], 0x11);
    assert_eq!(after[832], 0x11);
}

#[test]
fn reserved_bits_compaction_and_foreign_components_are_forbidden() {
    let good = state(0, ALL);
    let with = |at: usize, value: u8| {
        let mut area = good.clone();
        area[at] = value;
        layout().restore(&mut state(0, ALL), &area, ALL, ALL)
    };
    assert_eq!(with(XSTATE_BV + 1, 1), Err(Forbidden));
    assert_eq!(with(XCOMP_BV + 7, 0x80), Err(Forbidden));
    assert_eq!(with(26, 1), Err(Forbidden));
    assert_eq!(with(25, 0x1f), Ok(()));
}

proptest! {
    #[test]
    fn any_area_and_mask_are_bounded(bytes in proptest::collection::vec(any::<u8>(), BYTES), mask in 0..=ALL) {
        let mut area = bytes.clone();
        layout().save(&state(7, ALL), &mut area, mask);
        let result = layout().restore(&mut state(7, ALL), &bytes, mask, ALL);
        prop_assert!(result.is_ok() || result == Err(Forbidden));
    }
}
