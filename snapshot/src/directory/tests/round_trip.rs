use super::*;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::atomic::{AtomicU64, Ordering},
};

const PAGES: u64 = MEMORY_BYTES / PAGE_BYTES;

/// Pages side by side and far apart, at the first and the last page; some of them of zeros.
fn pages() -> impl Strategy<Value = BTreeMap<u64, u8>> {
    let page = prop_oneof![0..40_u64, 1000..1040_u64, PAGES - 40..PAGES, 0..PAGES];
    prop::collection::btree_map(page, prop_oneof![Just(0_u8), any::<u8>()], 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_gives_back_what_was_saved(contents in prop::collection::vec(pages(), 1..4)) {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("one");
        let of = |pages: &BTreeMap<u64, u8>| layer(&pages.iter().map(|(page, byte)| (*page, *byte)).collect::<Vec<_>>());
        let files: Vec<File> = contents.iter().map(of).collect();
        let created = create_plain(&place, &files.iter().collect::<Vec<_>>()).unwrap();

        let snapshot = Snapshot::open(&place).unwrap();
        prop_assert_eq!(snapshot.manifest(), &created.manifest);
        prop_assert_eq!(snapshot.state().unwrap(), STATE);
        prop_assert_eq!(snapshot.layers().len(), files.len());
        let report = snapshot.verify(&unwatched).unwrap();
        let mut runs = 0;
        for ((file, pages), saved) in files.iter().zip(&contents).zip(snapshot.layers()) {
            prop_assert!(content(saved) == content_of(file));
            // The file can be mapped, and a page of zeros takes no space in it.
            prop_assert!(content_of(saved.file()) == content_of(file));
            let full = pages.values().filter(|byte| **byte != 0).count() as u64;
            // The file system may need blocks to say where the others are.
            prop_assert!(saved.file().metadata().unwrap().blocks() * 512 <= (full + 4) * PAGE_BYTES);
            let mut present: Vec<_> = pages.iter().filter(|(_, byte)| **byte != 0).map(|(page, _)| page / 16).collect();
            present.dedup();
            runs += present.len() as u64;
            prop_assert_eq!(saved.layer().runs().iter().map(|(run, _)| run).collect::<Vec<_>>(), present);
            // It is loaded as it was, and what was zeros is a hole.
            let memory = memfd(MEMORY_BYTES);
            load_layer(saved, &memory, &unwatched).unwrap();
            prop_assert!(content_of(&memory) == content_of(file));
            prop_assert_eq!(memory.metadata().unwrap().blocks() * 512, full * PAGE_BYTES);
        }
        prop_assert_eq!(report, Report { runs, bytes: STATE.len() as u64 + runs * RUN_BYTES });
        drop(snapshot);
        remove(&place).unwrap();
        prop_assert!(names(home.path()).is_empty());
    }
}

#[test]
fn only_its_owner_can_read_a_snapshot() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("one");
    create_plain(&place, &[&layer(&[(1, 1)])]).unwrap();
    assert_eq!(place.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    for name in names(&place) {
        assert_eq!(place.join(&name).metadata().unwrap().permissions().mode() & 0o7777, 0o400, "{name}");
    }
}

#[test]
fn layers_of_one_content_are_one_file() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("one");
    let (same, empty) = ([(5, 5), (500, 6)], layer(&[]));
    create_plain(&place, &[&layer(&same), &empty, &layer(&same), &empty]).unwrap();
    assert_eq!(names(&place).len(), 2 + 2, "{:?}", names(&place));
    let snapshot = Snapshot::open(&place).unwrap();
    assert!(content(&snapshot.layers()[2]) == content_of(&layer(&same)));
    assert_eq!(snapshot.layers()[1].layer().runs().present(), 0);
    snapshot.verify(&unwatched).unwrap();
}

#[test]
fn progress_ascends_to_the_whole_and_a_break_cancels() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("one");
    let pages: Vec<_> = (0..200).map(|page| (page * 50, 1)).collect();
    let file = layer(&pages);
    let (most, calls) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = |progress: Progress| {
        most.fetch_max(progress.done_bytes, Ordering::Relaxed);
        calls.fetch_add(1, Ordering::Relaxed);
        assert_eq!(progress.total_bytes, 200 * RUN_BYTES);
        ControlFlow::Continue(())
    };
    let created = create(&place, &description(), &state(), (&[&file], &[]), &mut |_| None, &watch).unwrap();
    assert_eq!((most.into_inner(), created.read_bytes), (200 * RUN_BYTES, 200 * RUN_BYTES));
    assert!(calls.into_inner() > 1);

    let cancel = |_| ControlFlow::Break(());
    let error =
        create(&home.path().join("two"), &description(), &state(), (&[&file], &[]), &mut |_| None, &cancel);
    assert!(matches!(error, Err(CreateError::Cancelled)));
    assert_eq!(names(home.path()), ["one"]);
    let snapshot = Snapshot::open(&place).unwrap();
    assert!(matches!(snapshot.verify(&cancel), Err(VerifyError::Cancelled)));
    let loaded = load_layer(&snapshot.layers()[0], &memfd(MEMORY_BYTES), &cancel);
    assert!(matches!(loaded, Err(LoadError::Cancelled)));
}

#[test]
fn a_list_has_the_snapshots_of_a_directory_and_what_is_wrong_with_them() {
    let home = tempfile::tempdir().unwrap();
    for name in ["b", "a", "damaged"] {
        create_plain(&home.path().join(name), &[&layer(&[(1, 1), (2, 2)])]).unwrap();
    }
    std::fs::remove_file(home.path().join("damaged/state")).unwrap();
    std::fs::create_dir(home.path().join("other")).unwrap();
    std::fs::write(home.path().join("file"), "x").unwrap();
    std::fs::create_dir(home.path().join(format!("{UNFINISHED_PREFIX}1"))).unwrap();
    let listed = list(home.path(), "", usize::MAX).unwrap();
    let found =
        listed.iter().map(|one| (one.place.file_name().unwrap().to_str().unwrap(), one.found.is_ok()));
    assert_eq!(found.collect::<Vec<_>>(), [("a", true), ("b", true), ("damaged", false)]);
    let (manifest, usage) = listed[0].found.as_ref().unwrap();
    assert_eq!(manifest.description, description());
    assert!(usage.own_bytes >= 2 * PAGE_BYTES && usage.shared_bytes == 0, "{usage:?}");
    assert!(list(&home.path().join("missing"), "", usize::MAX).is_err());
}

#[test]
fn a_page_of_a_list_has_so_many_snapshots_after_a_path() {
    let home = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        create_plain(&home.path().join(name), &[&layer(&[(1, 1)])]).unwrap();
    }
    let page = |after: &str, most| {
        let listed = list(home.path(), home.path().join(after).to_str().unwrap(), most).unwrap();
        listed.into_iter().map(|one| one.place).collect::<Vec<_>>()
    };
    assert_eq!(page("a", 1), [home.path().join("b")]);
    assert_eq!(page("b", 2), [home.path().join("c")]);
    assert!(page("c", 1).is_empty() && page("", 0).is_empty());
}
