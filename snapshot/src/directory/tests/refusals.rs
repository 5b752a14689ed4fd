//! What is not a snapshot, or not there, or in use: each has an error of its own.

use super::*;
use crate::manifest::ManifestError;
use rustix::fs::{FlockOperation, flock};
use std::{fs, os::unix::fs::symlink, path::PathBuf};

struct Home(tempfile::TempDir);

impl Home {
    /// A directory with a snapshot `one`.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        create_plain(&home.place("one"), &[&layer(&[(1, 1)]), &layer(&[(2, 2)])]).unwrap();
        home
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> Result<Snapshot, OpenError> {
        Snapshot::open(&self.place(name))
    }
}

#[test]
fn what_is_no_snapshot_is_not_opened_and_the_reason_is_given() {
    let home = Home::new();
    fs::create_dir(home.place("empty")).unwrap();
    fs::write(home.place("file"), "x").unwrap();
    symlink(home.place("one"), home.place("link")).unwrap();
    assert!(matches!(home.open("missing"), Err(OpenError::Missing(_))));
    assert!(matches!(home.open("missing/missing"), Err(OpenError::Missing(_))));
    assert!(matches!(home.open("empty"), Err(OpenError::NotASnapshot(_))));
    assert!(matches!(home.open("file"), Err(OpenError::NotADirectory(_))));
    assert!(matches!(home.open("link"), Err(OpenError::Link(_))));
    assert!(matches!(Snapshot::open(Path::new("/")), Err(OpenError::NotADirectory(_))));
    fs::rename(home.place("one"), home.place(&format!("{UNFINISHED_PREFIX}0"))).unwrap();
    assert!(matches!(home.open(&format!("{UNFINISHED_PREFIX}0")), Err(OpenError::Unfinished(_))));
}

#[test]
fn files_that_are_missing_or_of_another_kind_are_refused() {
    for name in names(&Home::new().place("one")) {
        let home = Home::new();
        let file = home.place("one").join(&name);
        let aside = home.place("aside");
        fs::rename(&file, &aside).unwrap();
        let missing = home.open("one").unwrap_err();
        assert!(matches!(missing, OpenError::MissingFile(_) | OpenError::NotASnapshot(_)), "{missing}");
        symlink(&aside, &file).unwrap();
        assert!(matches!(home.open("one"), Err(OpenError::Link(path)) if path == file));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(home.open("one"), Err(OpenError::NotAFile(path)) if path == file));
        fs::remove_dir(&file).unwrap();
        // Nobody writes into it: opening it does not wait.
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(home.open("one"), Err(OpenError::NotAFile(path)) if path == file));
        fs::remove_file(&file).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(&file).unwrap();
        assert!(matches!(home.open("one"), Err(OpenError::NotAFile(path)) if path == file));
        drop(socket);
        fs::remove_file(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        home.open("one").unwrap();
    }
}

#[test]
fn a_snapshot_is_not_made_where_something_is() {
    let home = Home::new();
    fs::create_dir(home.place("empty")).unwrap();
    symlink("nowhere", home.place("link")).unwrap();
    let file = layer(&[(1, 1)]);
    for name in ["one", "empty", "link"] {
        assert!(matches!(create_plain(&home.place(name), &[&file]), Err(CreateError::Exists(_))), "{name}");
    }
    assert!(matches!(create_plain(Path::new("/"), &[&file]), Err(CreateError::Place(_))));
    let reserved = home.place(&format!("{UNFINISHED_PREFIX}x"));
    assert!(matches!(create_plain(&reserved, &[&file]), Err(CreateError::Reserved(_))));
    assert!(matches!(create_plain(&home.place("no/where"), &[&file]), Err(CreateError::File(_))));
    // What appears while it is written is not replaced.
    let late = home.place("late");
    let appear = |_| {
        fs::create_dir_all(&late).unwrap();
        std::ops::ControlFlow::Continue(())
    };
    let created = create(&late, &description(), &state(), (&[&file], &[]), &mut |_| None, &appear);
    assert!(matches!(created, Err(CreateError::Exists(_))), "{created:?}");
    assert_eq!(names(home.0.path()), ["empty", "late", "link", "one"]);
    assert!(names(&late).is_empty());
}

#[test]
fn state_layers_or_a_description_that_cannot_be_saved_leave_nothing() {
    let home = Home::new();
    let place = home.place("two");
    let (file, short) = (layer(&[(1, 1)]), memfd(MEMORY_BYTES - 4096));
    assert!(matches!(create_plain(&place, &[]), Err(CreateError::Layers(0))));
    assert!(matches!(create_plain(&place, &[&file; 17]), Err(CreateError::Layers(17))));
    let error = create_plain(&place, &[&file, &short]);
    assert!(matches!(error, Err(CreateError::LayerSize { layer: 1, .. })), "{error:?}");
    let with = |state: &File, description: Description| {
        create(&place, &description, state, (&[&file], &[]), &mut |_| None, &unwatched)
    };
    assert!(matches!(with(&memfd(0), description()), Err(CreateError::StateSize { found: 0 })));
    assert!(matches!(with(&memfd((16 << 20) + 1), description()), Err(CreateError::StateSize { .. })));
    let nameless = Description { name: String::new(), ..description() };
    assert!(matches!(with(&state(), nameless), Err(CreateError::Description(_))));
    assert_eq!(names(home.0.path()), ["one"]);
}

#[test]
fn only_a_snapshot_is_removed() {
    let home = Home::new();
    let not = |name: &str| {
        let error = remove(&home.place(name)).unwrap_err();
        assert!(matches!(error, RemoveError::NotASnapshot { .. }), "{error}");
    };
    fs::create_dir(home.place("empty")).unwrap();
    fs::create_dir(home.place("other")).unwrap();
    fs::write(home.place("other/manifest"), "name: web").unwrap();
    fs::write(home.place("file"), "x").unwrap();
    symlink(home.place("one"), home.place("link")).unwrap();
    ["empty", "other", "file", "link", ".."].into_iter().for_each(not);
    assert!(matches!(remove(&home.place("missing")), Err(RemoveError::Missing(_))));
    // A file of someone else in it, a directory, or a link with a file's name.
    fs::write(home.place("one/notes"), "mine").unwrap();
    not("one");
    fs::remove_file(home.place("one/notes")).unwrap();
    let name = format!("one/layer-{}", "0".repeat(64));
    fs::create_dir(home.place(&name)).unwrap();
    not("one");
    fs::remove_dir(home.place(&name)).unwrap();
    symlink("/etc/passwd", home.place(&name)).unwrap();
    not("one");
    fs::remove_file(home.place(&name)).unwrap();
    home.open("one").unwrap().verify(&unwatched).unwrap();
    // A damaged one goes.
    fs::write(home.place("one/state"), "x").unwrap();
    assert!(matches!(home.open("one"), Err(OpenError::Size { .. })));
    remove(&home.place("one")).unwrap();
    assert_eq!(names(home.0.path()), ["empty", "file", "link", "other"]);
}

#[test]
fn an_open_snapshot_is_not_removed_and_one_that_is_being_made_is_not_opened() {
    let home = Home::new();
    let (first, second) = (home.open("one").unwrap(), home.open("one").unwrap());
    drop(first);
    assert!(matches!(remove(&home.place("one")), Err(RemoveError::InUse(_))));
    // Its layers alone do not keep it, and are read on when it is gone.
    let layers = second.into_layers();
    remove(&home.place("one")).unwrap();
    assert!(content(&layers[0]) == content_of(&layer(&[(1, 1)])));

    create_plain(&home.place("one"), &[&layer(&[(1, 1)])]).unwrap();
    let folder = File::open(home.place("one")).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    assert!(matches!(home.open("one"), Err(OpenError::Busy(_))));
    assert!(matches!(remove(&home.place("one")), Err(RemoveError::InUse(_))));
}

#[test]
fn what_a_killed_process_left_goes_and_what_is_in_use_or_foreign_stays() {
    let home = Home::new();
    let unfinished = |name: &str| home.place(&format!("{UNFINISHED_PREFIX}{name}"));
    for name in ["left", "locked", "foreign"] {
        fs::create_dir(unfinished(name)).unwrap();
        fs::write(unfinished(name).join("state"), "x").unwrap();
        fs::write(unfinished(name).join("layer-unfinished"), "x").unwrap();
    }
    fs::write(unfinished("foreign").join("notes"), "mine").unwrap();
    fs::write(unfinished("file"), "mine").unwrap();
    symlink(home.place("one"), unfinished("link")).unwrap();
    let lock = File::open(unfinished("locked")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert!(matches!(remove(&unfinished("locked")), Err(RemoveError::InUse(_))));
    create_plain(&home.place("two"), &[&layer(&[])]).unwrap();
    let name = |name: &str| format!("{UNFINISHED_PREFIX}{name}");
    let expected = [name("file"), name("foreign"), name("link"), name("locked"), "one".into(), "two".into()];
    assert_eq!(names(home.0.path()), expected);
    assert_eq!(names(&unfinished("locked")).len(), 2);
    assert_eq!(names(&unfinished("foreign")), ["notes"]);
    drop(lock);
    remove(&unfinished("locked")).unwrap();
    remove(&home.place("two")).unwrap();
    home.open("one").unwrap().verify(&unwatched).unwrap();
}

#[test]
fn a_layer_is_loaded_only_into_an_empty_file_of_its_length() {
    let home = Home::new();
    let snapshot = home.open("one").unwrap();
    let load = |into: &File| load_layer(&snapshot.layers()[0], into, &unwatched);
    assert!(matches!(load(&memfd(MEMORY_BYTES + 4096)), Err(LoadError::Size { .. })));
    assert!(matches!(load(&layer(&[(5000, 1)])), Err(LoadError::NotEmpty { .. })));
    // A file in memory that may not grow any more is not written.
    let read_only = File::open("/dev/null").unwrap();
    assert!(load(&read_only).is_err());
}

#[test]
fn a_run_that_does_not_exist_is_refused_and_a_wrong_one_leaves_zeros() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    let snapshot = home.open("one").unwrap();
    let saved = &snapshot.layers()[0];
    let mut buffer = vec![9; usize::try_from(RUN_BYTES).unwrap()];
    assert!(matches!(saved.read_run(1024, &mut buffer), Err(RunError::Range { run: 1024, runs: 1024, .. })));
    assert!(matches!(saved.read_run(1, &mut buffer), Ok(Run::Zero)));
    let path = home.place("one").join(format!("layer-{}", saved.id()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[2], PAGE_BYTES).unwrap();
    let error = saved.read_run(0, &mut buffer).unwrap_err();
    assert!(matches!(error, RunError::Digest { run: 0, .. }), "{error}");
    assert!(error.to_string().contains(&saved.id().to_string()), "{error}");
    assert!(buffer.iter().all(|byte| *byte == 0));
    // Cut while it is open.
    file.set_len(PAGE_BYTES).unwrap();
    let error = saved.read_run(0, &mut buffer).unwrap_err();
    assert!(matches!(error, RunError::Read { run: 0, .. }), "{error}");
}

#[test]
fn a_newer_manifest_is_named_as_such() {
    let home = Home::new();
    let path = home.place("one/manifest");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let error = home.open("one").unwrap_err();
    assert!(
        matches!(&error, OpenError::Manifest { source: ManifestError::Version { found: 2 }, .. }),
        "{error}"
    );
    remove(&home.place("one")).unwrap();
}
