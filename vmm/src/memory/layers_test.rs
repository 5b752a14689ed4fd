use super::*;
use crate::memory::extents::PAGE_BYTES;
use crate::memory::{allocate, reserve};
use crate::sys::pagemap::{Pagemap, Pages};
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 1 << 20;

fn read(memory: &Memory, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE_BYTES)).expect("a byte of RAM")
}

fn write(memory: &Memory, page: u64, value: u8) {
    memory.write_obj(value, GuestAddress(page * PAGE_BYTES)).expect("a byte of RAM");
}

/// The generation that a VM with this view of `base` is frozen into.
fn freeze(memory: &Memory, base: &Layers) -> Layers {
    let region = memory.iter().next().expect("a region");
    let runs = Pagemap::open().and_then(|map| map.private(region, Pages::All)).expect("the private pages");
    let layer = new_layer(RAM).expect("a layer");
    copy_runs(memory, &runs, &layer).expect("a copy");
    seal(&layer).expect("a seal");
    base.with(&runs, layer)
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
fn a_freeze_copies_what_was_written_and_nothing_else() {
    let first = root(&[(1, 1), (2, 2)]);
    let a = clone_of(&first);
    assert_eq!([read(&a, 1), read(&a, 200)], [1, 0]);
    write(&a, 7, 7);
    write(&a, 8, 8);
    let second = freeze(&a, &first);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&second.files()[1].metadata().expect("memfd"));
    assert_eq!(blocks * 512, 2 * PAGE_BYTES);
    assert_eq!(second.extents().as_slice().len(), 3);
}

#[test]
fn many_layers_become_two_with_the_same_pages() {
    let mut generation = root(&[(0, 1), (255, 9)]);
    let mut depth = 1;
    while !generation.is_long() {
        let memory = clone_of(&generation);
        write(&memory, depth, depth as u8);
        generation = freeze(&memory, &generation);
        depth += 1;
    }
    let merged = generation.merge(RAM).expect("two layers");
    assert_eq!(merged.files().len(), 2);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&merged.files()[1].metadata().expect("memfd"));
    assert_eq!(blocks * 512, (depth - 1) * PAGE_BYTES, "what the first layer has is not copied");
    let (many, two) = (clone_of(&generation), clone_of(&merged));
    assert!((0..RAM / PAGE_BYTES).all(|page| read(&many, page) == read(&two, page)));
    assert_eq!([read(&two, 0), read(&two, 3), read(&two, 255)], [1, 3, 9]);
}

#[test]
fn layers_that_are_none_are_refused() {
    let file = || root(&[]).files()[0].try_clone().expect("a descriptor");
    let check = |files, bytes| Layers::check(files, Extents::whole(RAM), bytes).unwrap_err();
    assert!(matches!(check(Vec::new(), RAM), LayersError::Count(0)));
    assert!(matches!(check((0..17).map(|_| file()).collect(), RAM), LayersError::Count(17)));
    let error = check(vec![file()], 2 * RAM);
    assert_eq!(error.to_string(), "read the generation: layer 0 has 1048576 bytes, the RAM 2097152");
    assert!(Layers::check(vec![file()], Extents::whole(RAM), RAM).is_ok());
}
