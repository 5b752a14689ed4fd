use super::*;
use crate::memory::layers::{Layers, new_layer};
use crate::memory::reserve;
use crate::sys::userfault::Userfault;
use proptest::prelude::*;
use std::collections::BTreeSet;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

#[test]
fn both_ways_find_the_private_pages() {
    const RAM: u64 = 64 << 20;
    let memory = reserve(RAM).expect("address space");
    let file = new_layer(RAM).expect("a memfd");
    file.write_all_at(&[1; 4 * 4096], 0).expect("pages of the file");
    Layers::whole(file, RAM).map_over(&memory).expect("a view");
    let region = memory.iter().next().expect("a region");
    let map = Pagemap::open().expect("the page tables");
    assert_eq!(map.private(region, Pages::All).expect("a scan"), []);
    // Every third page of a part, so that there are more ranges than fit in a batch; and the last
    // page.
    let written: Vec<u64> = (0..3000).step_by(3).chain([RAM / 4096 - 1]).collect();
    for page in &written {
        memory.write_obj(7u8, GuestAddress(page * 4096)).expect("a write");
    }
    let read: u8 = memory.read_obj(GuestAddress(4096)).expect("a read");
    assert_eq!(read, 1);
    let expected: Vec<_> = written.iter().map(|page| page * 4096..(page + 1) * 4096).collect();
    assert_eq!(map.private(region, Pages::All).expect("the private pages"), expected);
    let table = map.read_table(region.as_ptr() as u64, RAM).expect("the table");
    assert_eq!(table, expected);
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn what_was_written_since_is_found_and_nothing_else() {
    const RAM: u64 = 4 << 20;
    let Some(tracker) = Userfault::open() else {
        panic!("Linux 6.7 or later and the right to make a userfaultfd are needed for this test");
    };
    let memory = reserve(RAM).expect("address space");
    let file = new_layer(RAM).expect("a memfd");
    file.write_all_at(&[1; 8 * 4096], 0).expect("pages of the file");
    Layers::whole(file, RAM).map_over(&memory).expect("a view");
    let region = memory.iter().next().expect("a region");
    let map = Pagemap::open().expect("the page tables");
    let write = |page: u64| memory.write_obj(page as u8, GuestAddress(page * 4096)).expect("a write");
    let written = || map.private(region, Pages::Written).expect("the written pages");
    let pages = |pages: &[u64]| pages.iter().map(|p| p * 4096..(p + 1) * 4096).collect::<Vec<_>>();
    write(1);
    tracker.track(region).expect("tracking");
    write(5);
    assert_eq!(written(), pages(&[1, 5]));
    assert_eq!(written(), []);
    write(5);
    write(7);
    write(900);
    assert_eq!(written(), pages(&[5, 7, 900]));
    assert_eq!(written(), []);
    assert_eq!(map.private(region, Pages::All).expect("all").len(), 4);
    let value: u8 = memory.read_obj(GuestAddress(7 * 4096)).expect("a read");
    assert_eq!(value, 7);
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_shared_mapping_is_tracked_until_it_is_forgotten() {
    let tracker = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
    let (_memfd, memory) = crate::memory::allocate(4 << 20).expect("RAM");
    let region = memory.iter().next().expect("a region");
    let map = Pagemap::open().expect("the page tables");
    let write = |page: u64| memory.write_obj(page as u8, GuestAddress(page * 4096)).expect("a write");
    write(1);
    write(2);
    tracker.track(region).expect("tracking");
    let first = 4096..3 * 4096;
    assert_eq!(map.written(region).expect("the first scan"), std::slice::from_ref(&first));
    write(2);
    write(9);
    assert_eq!(map.written(region).expect("the second look"), [2 * 4096..3 * 4096, 9 * 4096..10 * 4096]);
    tracker.forget(region, 0, region.len()).expect("forgetting");
    assert!(map.written(region).is_err());
}

#[test]
fn the_fast_search_begins_with_linux_6_10() {
    let version = kernel::version;
    assert!(
        version("6.9") < Some(FAST_SINCE) && version("6.10") >= Some(FAST_SINCE) && None < Some(FAST_SINCE)
    );
}

/// Something that happens to a mapping.
#[derive(Debug, Clone)]
enum Event {
    Write(u64),
    Read(u64),
    /// A whole range is prefaulted.
    CopyAhead(u64, u64),
    /// Pages are written out to swap, where there is any.
    PageOut(u64, u64),
    /// Somebody asks, while others might write or not.
    Ask(Pages),
}

/// In three tables of 2 MiB each, of which the last may stay empty.
const MODEL_PAGES: u64 = 1536;

fn event() -> impl Strategy<Value = Event> {
    // Most pages lie near others, so that there are windows of several.
    let page = prop_oneof![0..40u64, 500..530u64, 0..MODEL_PAGES];
    let range = (page.clone(), 1..30u64).prop_map(|(first, pages)| (first, pages.min(MODEL_PAGES - first)));
    prop_oneof![
        6 => page.clone().prop_map(Event::Write),
        4 => page.prop_map(Event::Read),
        1 => range.clone().prop_map(|(first, pages)| Event::CopyAhead(first, pages)),
        1 => range.prop_map(|(first, pages)| Event::PageOut(first, pages)),
        1 => Just(Event::Ask(Pages::Written)),
        1 => Just(Event::Ask(Pages::WrittenAtRest)),
    ]
}

/// Has both ways and a model watch the same events. What a way finds are exactly the pages that
/// were written or prefaulted since it was asked last; nothing comes to be in the file.
fn watch(events: &[Event], is_fast: bool) {
    let ram = MODEL_PAGES * PAGE_BYTES;
    let tracker = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
    let memory = reserve(ram).expect("address space");
    let file = new_layer(ram).expect("a memfd");
    file.write_all_at(&[1; 20 * 4096], 10 * 4096).expect("pages of the file");
    let held = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("its size"));
    Layers::whole(file.try_clone().expect("it once more"), ram).map_over(&memory).expect("a view");
    let region = memory.iter().next().expect("a region");
    let map = Pagemap { is_fast, ..Pagemap::open().expect("the page tables") };
    let mut written = BTreeSet::new();
    let found = |written: &mut BTreeSet<u64>, pages| {
        let before = held();
        let found = map.private(region, pages).expect("the written pages");
        let found: BTreeSet<u64> =
            found.into_iter().flat_map(|run| run.step_by(PAGE_BYTES as usize)).collect();
        let expected = std::mem::take(written).into_iter().map(|page| page * PAGE_BYTES).collect();
        assert_eq!(found, expected);
        assert_eq!(held(), before, "something was made where it was looked");
    };
    for (step, event) in events.iter().enumerate() {
        if step == events.len() / 4 {
            tracker.track(region).expect("tracking");
            found(&mut written, Pages::Written);
        }
        match event {
            Event::Write(page) => {
                memory.write_obj(7u8, GuestAddress(page * PAGE_BYTES)).expect("a write");
                written.insert(*page);
            }
            Event::Read(page) => {
                let _: u8 = memory.read_obj(GuestAddress(page * PAGE_BYTES)).expect("a read");
            }
            Event::CopyAhead(first, pages) => {
                crate::sys::view::prefault(region, first * PAGE_BYTES, pages * PAGE_BYTES).expect("copies");
                written.extend(*first..first + pages);
            }
            Event::PageOut(first, pages) => {
                let at = region.as_ptr().wrapping_add((first * PAGE_BYTES) as usize).cast();
                // SAFETY: the range is within the region's mapping; its content stays.
                unsafe {
                    rustix::mm::madvise(at, (pages * PAGE_BYTES) as usize, rustix::mm::Advice::LinuxPageOut)
                }
                .expect("advice");
            }
            Event::Ask(pages) if step > events.len() / 4 => found(&mut written, *pages),
            Event::Ask(_) => {}
        }
    }
    if !events.is_empty() {
        found(&mut written, Pages::WrittenAtRest);
        found(&mut written, Pages::WrittenAtRest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    #[ignore = "needs root and Linux 6.7"]
    fn written_pages_are_those_of_a_model_whatever_happens(events in prop::collection::vec(event(), 0..120)) {
        watch(&events, false);
        if Pagemap::open().expect("the page tables").is_fast {
            watch(&events, true);
        }
    }
}

/// As in a freeze: pages are copied while somebody writes, and again at rest. The copy is the
/// memory then, whatever came in between.
#[test]
#[ignore = "needs root and Linux 6.7"]
fn no_write_is_missed_that_comes_during_a_scan() {
    const PAGES: u64 = 3 * 512;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let tracker = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
    let memory = reserve(PAGES * PAGE_BYTES).expect("address space");
    let file = new_layer(PAGES * PAGE_BYTES).expect("a memfd");
    Layers::whole(file, PAGES * PAGE_BYTES).map_over(&memory).expect("a view");
    let region = memory.iter().next().expect("a region");
    let map = Pagemap::open().expect("the page tables");
    tracker.track(region).expect("tracking");
    let value = |page: u64| memory.read_obj::<u64>(GuestAddress(page * PAGE_BYTES)).expect("a read");
    let mut copy = vec![0; PAGES as usize];
    let take = |copy: &mut [u64], pages| {
        for run in map.private(region, pages).expect("the written pages") {
            for page in run.start / PAGE_BYTES..run.end / PAGE_BYTES {
                copy[page as usize] = value(page);
            }
        }
    };
    for round in 0..8u64 {
        let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = round + 1;
                while !stop.load(Ordering::Relaxed) {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    memory
                        .write_obj(state, GuestAddress((state >> 33) % PAGES * PAGE_BYTES))
                        .expect("a write");
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..20 {
                let before = writes.load(Ordering::Relaxed);
                while writes.load(Ordering::Relaxed) < before + 20 {
                    std::thread::yield_now();
                }
                take(&mut copy, Pages::Written);
            }
            stop.store(true, Ordering::Relaxed);
        });
        take(&mut copy, Pages::WrittenAtRest);
        let wrong = (0..PAGES).find(|page| copy[*page as usize] != value(*page));
        assert_eq!(wrong, None, "a page of round {round}");
    }
}

/// What the time of a further clone's pause depends on: the kernel looks up the page behind an
/// entry only near what was written, however much is resident. `pause_again_1g_us` of
/// `cargo xtask bench clone` measures the time.
#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_scan_at_rest_leaves_no_resident_page_to_be_looked_up_again() {
    const RAM: u64 = 128 << 20;
    let (tracker, map) =
        (Userfault::open().expect("a userfaultfd"), Pagemap::open().expect("the page tables"));
    let map = Pagemap { is_fast: true, ..map };
    let memory = reserve(RAM).expect("address space");
    Layers::whole(new_layer(RAM).expect("a memfd"), RAM).map_over(&memory).expect("a view");
    let region = memory.iter().next().expect("a region");
    crate::sys::view::prefault(region, 0, RAM).expect("resident pages");
    tracker.track(region).expect("tracking");
    let start = region.as_ptr() as u64;
    let unprotected = || map.scan(start, 0..RAM, UNPROTECTED).expect("a scan");
    assert_eq!(unprotected(), std::iter::once(0..RAM).collect::<Vec<_>>());
    map.private(region, Pages::WrittenAtRest).expect("a scan");
    assert_eq!(unprotected(), []);

    let written: Vec<_> = (0..256).map(|nth| nth * 64 * PAGE_BYTES).collect();
    written.iter().for_each(|at| memory.write_obj(7u8, GuestAddress(*at)).expect("a write"));
    let pages: Vec<_> = written.iter().map(|at| *at..at + PAGE_BYTES).collect();
    assert_eq!(unprotected(), pages);
    // However many there are, the kernel looks up these, and nothing in between.
    for count in [1, PROTECT_CALLS_MAX, PROTECT_CALLS_MAX + 1, pages.len()] {
        let (ranges, question) = scans_at_rest(&pages[..count]);
        assert_eq!(ranges, pages[..count]);
        assert_eq!(question.flags != 0, count <= PROTECT_CALLS_MAX, "calls that protect are few");
    }
    assert_eq!(map.private(region, Pages::WrittenAtRest).expect("a scan"), pages);
    assert_eq!(unprotected(), []);
}

/// Any other category or flag, and the kernel's `pagemap_scan_pmd_entry` takes the long way, which
/// looks up every page.
#[test]
fn the_question_that_the_kernel_answers_quickly_is_asked_exactly() {
    for (question, flags) in
        [(UNPROTECTED, PM_SCAN_CHECK_WPASYNC), (PROTECT, PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING)]
    {
        assert_eq!(question.flags, flags);
        assert_eq!((question.category_mask, question.return_mask), (PAGE_IS_WRITTEN, PAGE_IS_WRITTEN));
        assert_eq!((question.category_inverted, question.category_anyof_mask), (0, 0));
    }
}
