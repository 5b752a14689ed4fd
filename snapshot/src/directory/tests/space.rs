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
