//! Tests of what has a layout of its own: names, mappings, bitmaps; and of the messages' JSON.

use super::*;
use crate::config::EXTENTS_MAX;
use proptest::prelude::*;

#[test]
fn names_have_letters_digits_and_three_signs() {
    let longest = "a".repeat(64);
    for good in ["a", "layer-7_b.c", &longest] {
        assert!(Id::try_from(good.to_owned()).is_ok(), "{good}");
    }
    for bad in ["", "a b", "ä", "a/b", "a\n", &(longest + "a")] {
        assert_eq!(Id::try_from(bad.to_owned()), Err(IdError), "{bad:?}");
        assert!(serde_json::from_value::<Id>(bad.into()).is_err());
    }
}

#[test]
fn the_buckets_are_found_by_time_and_fetched_in_order() {
    let times = [0, 9, 10, 99, 100, 999, 1000, u64::MAX];
    assert_eq!(times.map(DemandBitmap::bucket), [0, 0, 1, 1, 2, 2, 3, 3]);
    let mut bitmap = DemandBitmap::new(20 * RUN_BYTES);
    for (run, bucket) in [(19, 0), (3, 1), (2, 1), (0, 3), (8, 2), (20, 0), (1, 4)] {
        bitmap.insert(run, bucket);
    }
    assert_eq!(bitmap.in_order().collect::<Vec<_>>(), [(0, 19), (1, 2), (1, 3), (2, 8), (3, 0)]);
}

#[test]
fn of_two_demands_of_a_run_the_earlier_one_is_kept() {
    let with = |demands: &[(usize, u8)]| {
        let mut bitmap = DemandBitmap::new(20 * RUN_BYTES);
        demands.iter().for_each(|(run, bucket)| {
            bitmap.insert(*run, *bucket);
        });
        bitmap
    };
    let mut all = with(&[(5, 2), (6, 1), (7, 3)]);
    assert_eq!(all.merge(&with(&[(5, 1), (6, 2), (7, 3), (8, 0)])), 2, "one is earlier, one is new");
    assert_eq!(all.in_order().collect::<Vec<_>>(), [(0, 8), (1, 5), (1, 6), (3, 7)]);
    assert_eq!(all.count(), 4);
    assert_eq!(all.merge(&with(&[(5, 1), (6, 2), (7, 3), (8, 0)])), 0, "nothing of it is new");
    // Of another layer, which is longer.
    let mut other = DemandBitmap::new(RUN_BYTES);
    assert_eq!((other.merge(&all), other.count()), (0, 0));
}

#[test]
fn a_bitmap_of_another_length_or_with_stray_bits_is_refused() {
    let bytes = 20 * RUN_BYTES;
    assert_eq!(DemandBitmap::encoded_bytes(bytes), 12);
    for length in [0, 11, 13] {
        assert!(DemandBitmap::decode(&vec![0; length], bytes).is_err(), "{length}");
    }
    let mut stray = vec![0; 12];
    stray[5] = 0x10;
    assert!(DemandBitmap::decode(&stray, bytes).is_err());
    stray[5] = 0x08;
    assert!(DemandBitmap::decode(&stray, bytes).is_ok());
}

#[test]
fn as_many_mappings_as_a_generation_has_extents_and_no_more() {
    let at =
        |page: usize| Mapping { address: page as u64 * PAGE_BYTES, bytes: PAGE_BYTES, offset: 0, layer: 0 };
    let many: Vec<_> = (1..=EXTENTS_MAX + 1).map(at).collect();
    assert_eq!(Mapping::decode(&Mapping::encode(&many[1..]), &[PAGE_BYTES]).as_deref(), Ok(&many[1..]));
    let refused = Mapping::decode(&Mapping::encode(&many), &[PAGE_BYTES]);
    assert_eq!(refused, Err(MappingsError::Count(EXTENTS_MAX + 1)));
}

#[test]
fn only_a_sealed_memfd_is_read() {
    let memfd = crate::memfd::sealed("test", b"content").unwrap();
    assert_eq!(read_sealed(&memfd, 7).unwrap(), b"content");
    let words = |file: &File, max_bytes| read_sealed(file, max_bytes).unwrap_err().to_string();
    assert_eq!(words(&memfd, 6), "it is too long");
    assert_eq!(words(&layer_memfd("test", 4096).unwrap(), 4096), "it is not sealed");
    assert_eq!(words(&File::open("/dev/zero").unwrap(), 1), "it is no memfd");
}

#[test]
fn messages_keep_their_words() {
    let text = |message: &FromPager| serde_json::to_string(message).unwrap();
    let layer = Id::try_from("a".to_owned()).unwrap();
    let failed = FromPager::RunFailed {
        layer: layer.clone(),
        run: 7,
        reason: "x".into(),
        vms: vec![FailedVm { vm: layer.clone(), is_poisoned: true }],
    };
    assert_eq!(
        text(&failed),
        r#"{"t":"run_failed","layer":"a","run":7,"reason":"x","vms":[{"vm":"a","is_poisoned":true}]}"#
    );
    assert_eq!(text(&FromPager::Hello { version: 1 }), r#"{"t":"hello","version":1}"#);
    let error = FromPager::Error { reason: "x".into() };
    assert_eq!(text(&error), r#"{"t":"error","reason":"x"}"#);
    let add = r#"{"t":"add_layer","layer":"a","bytes":4096,"has_demand":false,"fill":true,"new":1}"#;
    let expected = ToPager::AddLayer { layer, bytes: 4096, has_demand: false, fill: true, source: None };
    assert_eq!(serde_json::from_str::<ToPager>(add).unwrap(), expected);
    let forget = ToPager::Peers(ToPeers::Forget { peer: Id::try_from("b".to_owned()).unwrap() });
    let words = serde_json::to_string(&forget).unwrap();
    assert_eq!(words, r#"{"t":"peers","do":"forget","peer":"b"}"#);
    assert_eq!(serde_json::from_str::<ToPager>(&words).unwrap(), forget);
}

proptest! {
    #[test]
    fn whatever_a_vmm_sends_is_refused_or_lies_within_its_layers(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        // Numbers as they may occur, so that some lists are accepted.
        pages in prop::collection::vec((0_u64..40, 0_u64..5, 0_u64..12, 0_u64..3), 0..6),
    ) {
        let layers = [8 * PAGE_BYTES, 3 * PAGE_BYTES];
        let likely: Vec<u8> = pages
            .iter()
            .flat_map(|(at, length, offset, layer)| {
                [at * PAGE_BYTES, length * PAGE_BYTES, offset * PAGE_BYTES, *layer].map(u64::to_le_bytes)
            })
            .flatten()
            .collect();
        for bytes in [bytes, likely] {
            let Ok(mappings) = Mapping::decode(&bytes, &layers) else { continue };
            prop_assert_eq!(Mapping::encode(&mappings), bytes);
            prop_assert!(mappings.windows(2).all(|two| two[0].addresses().end <= two[1].address));
            for mapping in mappings {
                prop_assert!(mapping.bytes > 0);
                prop_assert!(mapping.offset + mapping.bytes <= layers[mapping.layer as usize]);
            }
        }
    }

    #[test]
    fn a_bitmap_comes_back_as_it_was(runs in 1_u64..200, demands in prop::collection::vec((0_usize..200, 0_u8..4), 0..50)) {
        let mut bitmap = DemandBitmap::new(runs * RUN_BYTES);
        demands.iter().for_each(|(run, bucket)| {
            bitmap.insert(*run, *bucket);
        });
        prop_assert_eq!(DemandBitmap::decode(bitmap.encode(), runs * RUN_BYTES), Ok(bitmap));
    }
}
