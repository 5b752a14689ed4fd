//! The disk is full, or a file may not be longer.

use super::*;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{env, path::PathBuf, process::Command};

const HOME: &str = "PATINA_SNAPSHOT_TEST_FULL";

/// A layer of 8 MiB of data.
fn large() -> File {
    layer(&(0..2048).map(|page| (page * 2, 1)).collect::<Vec<_>>())
}

#[test]
#[ignore = "it is the process that another test of this file starts"]
fn child() {
    let Ok(home) = env::var(HOME).map(PathBuf::from) else { return };
    let layer = large();
    let limit = Rlimit { current: Some(MEMORY_BYTES - 1), maximum: None };
    setrlimit(Resource::Fsize, limit).unwrap();
    let error = create_plain(&home.join("place"), &[&layer]).unwrap_err();
    assert!(matches!(error, CreateError::File(_)), "{error}");
    assert!(names(&home).is_empty(), "{:?}", names(&home));
}

#[test]
fn a_limit_for_the_length_of_files_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let exe = env::current_exe().unwrap();
    // Without the trap, the limit ends the process.
    let mut child = Command::new("sh");
    child.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(exe);
    child.args(["--exact", "directory::tests::space::child", "--ignored"]).env(HOME, home.path());
    let output = child.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_full_disk_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mount = |command: &str, options: &[&str]| {
        assert!(Command::new(command).args(options).arg(home.path()).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
    let created = create_plain(&home.path().join("place"), &[&large()]);
    let left = names(home.path());
    let fits = create_plain(&home.path().join("small"), &[&layer(&[(1, 1)])]);
    mount("umount", &[]);
    let error = created.unwrap_err();
    let text = patina_daemon::chain(&error);
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.ends_with("nothing was left behind"), "{text}");
    assert!(left.is_empty(), "{left:?}");
    fits.unwrap();
}

#[test]
fn what_is_free_is_not_written_and_all_else_is() {
    let home = tempfile::tempdir().unwrap();
    let data = layer(&(0..64).map(|page| (page, 7)).collect::<Vec<_>>());
    // A page, the end of a run with the next one whole, and one where there is no data.
    let run = RUN_BYTES / PAGE_BYTES;
    let free = [(3, 1), (run - 2, run + 2), (2 * run + 1, 2), (5 * run, 9)];
    let free = free.map(|(first, count)| first * PAGE_BYTES..(first + count) * PAGE_BYTES);
    let place = home.path().join("place");
    let created =
        create(&place, &description(), &state(), (&[&data], &free), &mut |_| None, &unwatched).unwrap();
    assert_eq!(created.free_bytes, [Some((1 + run + 2 + 2) * PAGE_BYTES)]);
    let mut expected = vec![7; usize::try_from(64 * PAGE_BYTES).unwrap()];
    expected.resize(usize::try_from(MEMORY_BYTES).unwrap(), 0);
    for range in free {
        expected[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0);
    }
    let snapshot = Snapshot::open(&place).unwrap();
    let written = snapshot.layer(0).unwrap();
    assert!(content(written) == expected, "another content");
    let on_disk = std::os::unix::fs::MetadataExt::blocks(&written.file().metadata().unwrap()) * 512;
    let most = (64 - (run + 5)) * PAGE_BYTES;
    assert!((1..=most).contains(&on_disk), "{on_disk} of at most {most} bytes");
    snapshot.verify(&unwatched).unwrap();
}
