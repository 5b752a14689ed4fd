use super::*;
use crate::memory::{allocate, reserve};
use crate::sys::pagemap::{Pagemap, Pages};
use patina_control::PAGE_BYTES;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 1 << 20;

fn read(memory: &Memory, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE_BYTES)).expect("a byte of RAM")
}

fn write(memory: &Memory, page: u64, value: u8) {
    memory.write_obj(value, GuestAddress(page * PAGE_BYTES)).expect("a byte of RAM");
}

fn files(layers: &Layers) -> Vec<Arc<File>> {
    layers.layers().iter().map(|layer| Arc::clone(layer.memfd())).collect()
}

/// The generation that a VM with this view of `base` is frozen into.
fn freeze(memory: &Memory, base: &Layers) -> Layers {
    let region = memory.iter().next().expect("a region");
    let runs = Pagemap::open().and_then(|map| map.private(region, Pages::All)).expect("the private pages");
    let layer = new_layer(RAM).expect("a layer");
    copy_runs(memory, &runs, &layer).expect("a copy");
    base.with(runs, layer).expect("a generation")
}

fn clone_of(generation: &Layers) -> Memory {
    let memory = reserve(RAM).expect("address space");
    generation.map_over(&memory).expect("a view");
    memory
}

/// RAM of zeros but for what `pages` say.
fn root(pages: &[(u64, u8)]) -> Layers {
    let (memfd, memory) = allocate(RAM).expect("RAM");
    pages.iter().for_each(|(page, value)| write(&memory, *page, *value));
    drop(memory);
    seal(&memfd).expect("a seal");
    Layers::whole(memfd, RAM)
}

#[test]
fn what_one_writes_no_other_sees() {
    let first = root(&[(1, 1), (2, 2)]);
    let (a, b) = (clone_of(&first), clone_of(&first));
    write(&a, 2, 20);
    write(&a, 9, 90);
    let second = freeze(&a, &first);
    write(&a, 1, 100);
    write(&a, 9, 91);
    let c = clone_of(&second);
    write(&c, 2, 21);
    let third = freeze(&c, &second);
    let d = clone_of(&third);
    let seen = |memory: &Memory| [1, 2, 3, 9].map(|page| read(memory, page));
    assert_eq!(seen(&b), [1, 2, 0, 0]);
    assert_eq!(seen(&a), [100, 20, 0, 91]);
    assert_eq!(seen(&c), [1, 21, 0, 90]);
    assert_eq!(seen(&d), [1, 21, 0, 90]);
    assert_eq!(seen(&clone_of(&first)), [1, 2, 0, 0]);
    assert_eq!(seen(&clone_of(&second)), [1, 20, 0, 90]);
}

#[test]
fn a_freeze_copies_what_was_written_and_small_gaps() {
    let first = root(&[(1, 1), (2, 2), (8, 8)]);
    let a = clone_of(&first);
    assert_eq!([read(&a, 1), read(&a, 200)], [1, 0]);
    [6, 7, 10, 40].into_iter().for_each(|page| write(&a, page, 77));
    let held = held_pages(&first, 0);
    let second = freeze(&a, &first);
    assert_eq!(held_pages(&first, 0), held, "nothing was made where it was read");
    assert_eq!(held_pages(&second, 1), 5, "four pages and page 8, but no hole");
    let extents: Vec<_> =
        second.extents().as_slice().iter().map(|e| (e.start / PAGE_BYTES, e.layer)).collect();
    assert_eq!(extents, [(0, 0), (6, 1), (11, 0), (40, 1), (41, 0)]);
    let b = clone_of(&second);
    assert_eq!([2, 6, 7, 8, 9, 10, 40].map(|page| read(&b, page)), [2, 77, 77, 8, 0, 77, 77]);
}

fn held_pages(layers: &Layers, layer: usize) -> u64 {
    files(layers)[layer].metadata().expect("memfd").blocks() * 512 / PAGE_BYTES
}

#[test]
fn many_layers_become_two_with_the_same_pages() {
    let mut generation = root(&[(0, 1), (255, 9)]);
    let mut depth = 1;
    while !generation.is_long().expect("a look") {
        let memory = clone_of(&generation);
        write(&memory, depth, depth as u8);
        generation = freeze(&memory, &generation);
        depth += 1;
    }
    assert_eq!(depth, LAYERS_LONG as u64);
    let merged = generation.merge().expect("two layers");
    assert_eq!(files(&merged).len(), 2);
    assert_eq!(held_pages(&merged, 1), depth - 1, "what the first layer has is not copied");
    let (many, two) = (clone_of(&generation), clone_of(&merged));
    assert!((0..RAM / PAGE_BYTES).all(|page| read(&many, page) == read(&two, page)));
    assert_eq!([read(&two, 0), read(&two, 3), read(&two, 255)], [1, 3, 9]);
}

#[test]
fn a_large_layer_is_not_copied_again_for_a_few_young_pages() {
    let mut generation = root(&[(255, 9)]);
    let mut written: BTreeMap<u64, u8> = (0..100).map(|page| (page, 1)).collect();
    generation = next_of(&generation, &written);
    let large = Arc::clone(&files(&generation)[1]);
    let mut copied = 0;
    for round in 0..60u64 {
        let young = BTreeMap::from([(100 + round, 7)]);
        generation = next_of(&generation, &young);
        written.extend(young);
        if generation.is_long().expect("a look") {
            generation = generation.merge_youngest().expect("fewer layers");
            assert!(files(&generation).len() <= LAYERS_KEPT_MAX + 1);
            copied += held_pages(&generation, files(&generation).len() - 1);
        }
        // By now there is as much as half of it above it.
        if round < 50 {
            assert!(files(&generation).iter().any(|file| Arc::ptr_eq(file, &large)), "round {round}");
        }
    }
    assert!(copied < 60 * 6, "{copied} pages were copied for 60 that were written");
    let all = clone_of(&generation);
    assert!(written.iter().all(|(page, value)| read(&all, *page) == *value) && read(&all, 255) == 9);
}

/// The generation of a VM that wrote these pages since `base`, and no others.
fn next_of(base: &Layers, pages: &BTreeMap<u64, u8>) -> Layers {
    let memory = clone_of(base);
    pages.iter().for_each(|(page, value)| write(&memory, *page, *value));
    freeze(&memory, base)
}

#[test]
fn layers_with_scattered_pages_are_merged_whole() {
    let mut generation = Layers::whole(new_layer(LARGE).expect("a memfd"), LARGE);
    let scattered: BTreeSet<u64> = (0..=EXTENTS_LONG as u64 / 2).map(|n| n * 100).collect();
    generation = next(&generation, &scattered, 1);
    generation = next(&generation, &BTreeSet::from([7]), 2);
    assert!(generation.is_long().expect("a look"), "{} extents", generation.extents().as_slice().len());
    let merged = generation.merge_youngest().expect("two layers");
    assert_eq!(files(&merged).len(), 2);
    assert!(!merged.is_long().expect("a look"));
    assert_eq!([0, 7, 100].map(|page| value_of(&merged, page)), [1, 2, 1]);
}

#[test]
fn a_layer_that_no_page_is_in_is_let_go() {
    let first = root(&[(1, 1)]);
    let a = clone_of(&first);
    write(&a, 5, 5);
    let second = freeze(&a, &first);
    write(&a, 90, 6);
    let third = freeze(&a, &second);
    // Page 5 is private still and copied again, so that the second's layer is all covered.
    assert_eq!(files(&third).len(), 2);
    assert!(Arc::ptr_eq(&files(&third)[0], &files(&first)[0]));
    assert_eq!([1, 5, 90].map(|page| read(&clone_of(&third), page)), [1, 5, 6]);
    let whole = clone_of(&third);
    (0..RAM / PAGE_BYTES).for_each(|page| write(&whole, page, 3));
    assert_eq!(files(&freeze(&whole, &third)).len(), 1);
}

/// Sparse RAM, so large that scattered pages in it are far from each other.
const LARGE: u64 = 1 << 30;

/// The generation that follows when these pages are written.
fn next(base: &Layers, pages: &BTreeSet<u64>, value: u8) -> Layers {
    let layer = new_layer(LARGE).expect("a layer");
    for page in pages {
        layer.write_all_at(&[value], page * PAGE_BYTES).expect("a page");
    }
    let runs = union(pages.iter().map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES).collect());
    base.with(runs, layer).expect("a generation")
}

fn value_of(layers: &Layers, page: u64) -> u8 {
    let at = page * PAGE_BYTES;
    let extent = layers.extents().within(at..at + PAGE_BYTES).next().expect("an extent");
    let mut value = [0];
    files(layers)[usize::from(extent.layer)].read_exact_at(&mut value, at).expect("a page");
    value[0]
}

fn is_generation(layers: &Layers) {
    let files = files(layers).iter().map(|file| file.try_clone().expect("a descriptor")).collect();
    Layers::check(files, &[], layers.extents().clone(), LARGE).expect("what a clone takes");
}

#[test]
fn scattered_pages_can_be_written_between_any_number_of_freezes() {
    let mut generation = Layers::whole(new_layer(LARGE).expect("a memfd"), LARGE);
    let mut written = BTreeMap::new();
    let mut merged = 0;
    for round in 0..60u64 {
        // Other pages each time, all over RAM.
        let pages: BTreeSet<u64> = (0..500).map(|n| (n * 523 + round * 37) % (LARGE / PAGE_BYTES)).collect();
        generation = next(&generation, &pages, round as u8 + 1);
        written.extend(pages.into_iter().map(|page| (page, round as u8 + 1)));
        if generation.is_full().expect("a look") {
            generation = generation.merge().expect("a merged generation");
            merged += 1;
        }
        assert!(!generation.is_full().expect("a look"), "merging helps");
        is_generation(&generation);
    }
    assert!((5..=10).contains(&merged), "{merged} times of 60");
    assert!(written.iter().all(|(page, value)| value_of(&generation, *page) == *value));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn merging_keeps_every_page_in_few_extents(
        rounds in prop::collection::vec((1u64..3000, 1u64..100, 0u64..4096, any::<bool>()), 1..6),
        probes in prop::collection::vec(0..LARGE / PAGE_BYTES, 100),
    ) {
        let mut generation = Layers::whole(new_layer(LARGE).expect("a memfd"), LARGE);
        let mut written = BTreeMap::new();
        for (value, (count, step, from, is_whole)) in (1u8..).zip(rounds) {
            let pages: BTreeSet<u64> = (0..count).map(|n| (from + n * step) % (LARGE / PAGE_BYTES)).collect();
            generation = next(&generation, &pages, value);
            written.extend(pages.into_iter().map(|page| (page, value)));
            // As a freeze does.
            if is_whole || generation.is_full().expect("a look") {
                generation = generation.merge().expect("a merged generation");
                prop_assert!(generation.extents().as_slice().len() <= 2 * MERGED_RUNS_MAX + 1);
                prop_assert!(files(&generation).len() <= 2);
            }
            is_generation(&generation);
        }
        let pages = written.keys().chain(&probes).copied();
        for page in pages {
            prop_assert_eq!(value_of(&generation, page), written.get(&page).copied().unwrap_or(0));
        }
    }
}

#[test]
fn layers_that_hold_more_than_ram_are_long() {
    let first = root(&[(1, 1)]);
    let a = clone_of(&first);
    // All but the last page, so that the first layer stays.
    let mut generation = first;
    (0..200).for_each(|page| write(&a, page, 1));
    generation = freeze(&a, &generation);
    assert!(!generation.is_long().expect("a look"));
    let b = clone_of(&generation);
    (100..250).for_each(|page| write(&b, page, 2));
    generation = freeze(&b, &generation);
    assert_eq!(files(&generation).len(), 3);
    assert!(generation.is_long().expect("a look"), "350 pages above the first layer, and RAM has 256");
    let merged = generation.merge().expect("one layer");
    assert_eq!((files(&merged).len(), merged.extents().as_slice().len()), (1, 1), "most of RAM becomes all");
    let c = clone_of(&merged);
    assert_eq!([1, 99, 100, 249, 250, 255].map(|page| read(&c, page)), [1, 1, 2, 2, 0, 0]);
}

#[test]
fn layers_that_are_none_are_refused() {
    let file = || files(&root(&[]))[0].try_clone().expect("a descriptor");
    let check = |files, bytes| Layers::check(files, &[], Extents::whole(RAM), bytes).unwrap_err();
    assert!(matches!(check(Vec::new(), RAM), LayersError::Count(0)));
    assert!(matches!(check((0..17).map(|_| file()).collect(), RAM), LayersError::Count(17)));
    let error = check(vec![file()], 2 * RAM);
    assert_eq!(error.to_string(), "read the generation: layer 0 has 1048576 bytes, but the RAM has 2097152");
    assert!(Layers::check(vec![file()], &[], Extents::whole(RAM), RAM).is_ok());
}

proptest! {
    #[test]
    fn ram_that_is_merged_while_it_is_frozen_again_is_the_same(
        before in prop::collection::vec(prop::collection::vec((0u64..256, 1u8..), 0..20), 1..5),
        after in prop::collection::vec(prop::collection::vec((0u64..256, 1u8..), 0..20), 0..4),
        is_whole in any::<bool>(),
    ) {
        let first = root(&[(1, 1), (100, 2), (255, 3)]);
        let mut current = first.clone();
        let freeze_with = |current: &Layers, pages: &[(u64, u8)]| {
            let memory = clone_of(current);
            pages.iter().for_each(|(page, value)| write(&memory, *page, *value));
            if pages.is_empty() { current.clone() } else { freeze(&memory, current) }
        };
        for pages in &before {
            current = freeze_with(&current, pages);
        }
        let source = current.clone();
        let merged = if is_whole { source.merge() } else { source.merge_youngest() }.expect("a merge");
        for pages in &after {
            current = freeze_with(&current, pages);
        }
        let rebased = current.rebased(&source, &merged);
        prop_assert_eq!(rebased.extents().check(RAM, files(&rebased).len()), Ok(()));
        prop_assert!(files(&rebased).len() <= files(&merged).len() + after.len());
        let (one, other) = (clone_of(&current), clone_of(&rebased));
        for page in 0..RAM / PAGE_BYTES {
            prop_assert_eq!(read(&one, page), read(&other, page), "page {}", page);
        }
    }
}

/// The same, but its lowest layers are still being filled.
fn filling(layers: &Layers, lowest: u8) -> Layers {
    let files = files(layers).iter().map(|file| file.try_clone().expect("a descriptor")).collect();
    let numbers: Vec<u8> = (0..lowest).collect();
    Layers::check(files, &numbers, layers.extents().clone(), RAM).expect("the same layers")
}

#[test]
fn nothing_is_read_from_a_layer_that_is_being_filled() {
    let base = filling(&root(&[(1, 1), (8, 8)]), 1);
    let a = clone_of(&root(&[(1, 1), (8, 8)]));
    [6, 7, 10, 40].into_iter().for_each(|page| write(&a, page, 77));
    let second = freeze(&a, &base);
    assert_eq!(held_pages(&second, 1), 4, "page 8 may not be there yet");
    let extents: Vec<_> =
        second.extents().as_slice().iter().map(|e| (e.start / PAGE_BYTES, e.layer)).collect();
    assert_eq!(extents, [(0, 0), (6, 1), (8, 0), (10, 1), (11, 0), (40, 1), (41, 0)]);
    let to = new_layer(RAM).expect("a layer");
    let range = 7 * PAGE_BYTES..9 * PAGE_BYTES;
    let copy = || second.copy_to(&to, std::slice::from_ref(&range));
    let error = copy().unwrap_err();
    assert!(matches!(error, LayersError::Filling { layer: 0, start: 0x8000 }), "{error}");
    // As soon as it is complete, it is read as any other.
    second.layers()[0].note_complete();
    assert_eq!(copy().map_err(|error| error.to_string()), Ok(()));
}

#[test]
fn only_layers_above_those_that_are_being_filled_are_merged() {
    let mut generation = root(&[(255, 9)]);
    for page in 0..12u64 {
        generation = next_of(&generation, &BTreeMap::from([(page * 2, 1)]));
    }
    let lazy = filling(&generation, 3);
    assert!(!lazy.is_long().expect("a look") && lazy.is_full().expect("a look"));
    for merged in [lazy.merge(), lazy.merge_youngest()] {
        let merged = merged.expect("fewer layers");
        assert!(merged.layers().len() < lazy.layers().len());
        assert!(Arc::ptr_eq(&merged.layers()[2], &lazy.layers()[2]));
        let (many, few) = (clone_of(&generation), clone_of(&merged));
        assert!((0..RAM / PAGE_BYTES).all(|page| read(&many, page) == read(&few, page)));
    }
    let all = filling(&generation, generation.layers().len() as u8);
    assert_eq!(all.merge().expect("the same").layers().len(), all.layers().len());
}

#[test]
fn a_chain_that_cannot_be_merged_yet_ends_with_an_error() {
    let mut generation = root(&[(255, 9)]);
    let mut depth = 0u64;
    let error = loop {
        let lazy = filling(&generation, generation.layers().len() as u8);
        let memory = clone_of(&generation);
        write(&memory, depth * 4, 1);
        let region = memory.iter().next().expect("a region");
        let runs = Pagemap::open().and_then(|map| map.private(region, Pages::All)).expect("the pages");
        match lazy.with(runs, new_layer(RAM).expect("a layer")) {
            Ok(next) => generation = next,
            Err(error) => break error,
        }
        depth += 1;
        assert!(depth < 100);
    };
    assert_eq!(depth, LAYERS_MAX as u64 - 1);
    assert!(matches!(error, LayersError::Full { layers: 17, .. }), "{error}");
}

#[test]
fn a_copy_of_lost_memory_says_that_it_is_lost() {
    let (memfd, memory) = allocate(RAM).expect("RAM");
    write(&memory, 3, 3);
    let layer = new_layer(RAM).expect("a layer");
    let run = 2 * PAGE_BYTES..6 * PAGE_BYTES;
    copy_runs(&memory, std::slice::from_ref(&run), &layer).expect("all of it is there");
    // What lies behind the end of its file cannot be read any more than what is poisoned.
    ftruncate(&memfd, 4 * PAGE_BYTES).expect("a shorter file");
    let error = copy_runs(&memory, &[run], &layer).expect_err("lost memory");
    assert!(matches!(error, LayersError::Lost { start: 0x2000, bytes: 0x4000 }), "{error}");
    let text = error.to_string();
    assert!(text.contains("are lost") && !text.contains("free memory"), "{text}");
}
