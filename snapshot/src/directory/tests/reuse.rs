//! A second snapshot of a VM writes only what the first has not.

use super::*;
use std::{os::unix::fs::MetadataExt as _, path::PathBuf};

struct Home {
    folder: tempfile::TempDir,
    base: File,
    top: File,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, base: layer(&[(1, 1), (900, 2)]), top: layer(&[(2, 3)]) }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn first(&self) -> Created {
        create_plain(&self.place("first"), &[&self.base]).unwrap()
    }

    /// A snapshot of both layers, with this as the base layer's earlier file.
    fn second(&self, known: &KnownLayer) -> Created {
        let mut reuse = |number| (number == 0).then(|| known.clone());
        let layers = [&self.base, &self.top];
        create(&self.place("second"), &description(), &state(), (&layers, &[]), &mut reuse, &unwatched)
            .unwrap()
    }

    fn inode(&self, name: &str, number: usize) -> u64 {
        Snapshot::open(&self.place(name)).unwrap().layers()[number].file().metadata().unwrap().ino()
    }

    fn is_whole(&self, name: &str) {
        let snapshot = Snapshot::open(&self.place(name)).unwrap();
        snapshot.verify(&unwatched).unwrap();
        assert!(content(&snapshot.layers()[0]) == content_of(&self.base));
    }
}

#[test]
fn a_second_snapshot_writes_only_its_newest_layer() {
    let home = Home::new();
    let first = home.first();
    assert_eq!((first.linked, first.read_bytes), (0, 2 * RUN_BYTES));
    let second = home.second(&first.known[0]);
    assert_eq!((second.linked, second.read_bytes), (1, RUN_BYTES));
    assert_eq!(home.inode("first", 0), home.inode("second", 0));
    assert_eq!(second.known[0].id, first.known[0].id);
    let usage = Snapshot::open(&home.place("second")).unwrap().usage().unwrap();
    assert!(usage.shared_bytes >= 2 * PAGE_BYTES && usage.own_bytes >= PAGE_BYTES, "{usage:?}");
    home.is_whole("second");
}

#[test]
fn each_of_two_snapshots_outlives_the_other() {
    for gone in ["first", "second"] {
        let home = Home::new();
        let first = home.first();
        home.second(&first.known[0]);
        remove(&home.place(gone)).unwrap();
        home.is_whole(if gone == "first" { "second" } else { "first" });
        assert_eq!(names(home.folder.path()).len(), 1);
    }
}

#[test]
fn a_layer_of_the_second_serves_a_third() {
    let home = Home::new();
    let first = home.first();
    let second = home.second(&first.known[0]);
    remove(&home.place("first")).unwrap();
    let mut reuse = |number: usize| second.known.get(number).cloned();
    let place = home.place("third");
    let layers = [&home.base, &home.top];
    let third = create(&place, &description(), &state(), (&layers, &[]), &mut reuse, &unwatched).unwrap();
    assert_eq!((third.linked, third.read_bytes), (2, 0));
    // What an opened snapshot says of its layers serves as well.
    let opened = Snapshot::open(&place).unwrap();
    assert_eq!(opened.known_layer(1).unwrap().as_ref(), Some(&third.known[1]));
    assert_eq!(opened.known_layer(2).unwrap(), None);
    home.is_whole("third");
}

#[test]
fn a_layer_that_is_not_the_same_any_more_is_written() {
    let changes: [fn(&Home); 4] = [
        // Gone.
        |home| remove(&home.place("first")).unwrap(),
        // Another snapshot has its place.
        |home| {
            remove(&home.place("first")).unwrap();
            create_plain(&home.place("first"), &[&layer(&[(9, 9)])]).unwrap();
        },
        // A copy of the file.
        |home| {
            let name =
                names(&home.place("first")).into_iter().find(|name| name.starts_with("layer-")).unwrap();
            let path = home.place("first").join(name);
            std::fs::copy(&path, home.place("copy")).unwrap();
            std::fs::rename(home.place("copy"), path).unwrap();
        },
        // Written to.
        |home| {
            let name =
                names(&home.place("first")).into_iter().find(|name| name.starts_with("layer-")).unwrap();
            let path = home.place("first").join(name);
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let home = Home::new();
        let first = home.first();
        change(&home);
        let second = home.second(&first.known[0]);
        assert_eq!((second.linked, second.read_bytes), (0, 3 * RUN_BYTES), "change {number}");
        home.is_whole("second");
    }
}

#[test]
fn a_layer_on_another_file_system_is_written() {
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let home = Home::new();
    let place = other.path().join("first");
    let first = create_plain(&place, &[&home.base]).unwrap();
    assert_ne!(other.path().metadata().unwrap().dev(), home.folder.path().metadata().unwrap().dev());
    let second = home.second(&first.known[0]);
    assert_eq!(second.linked, 0);
    home.is_whole("second");
}
