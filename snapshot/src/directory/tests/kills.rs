//! A process that makes or removes a snapshot is killed before each operation that changes a file,
//! or that operation fails.

use super::{
    super::steps::in_tests::{FAIL_WITH, LEFT},
    *,
};
use std::{env, path::PathBuf, process::Command, sync::atomic::Ordering::SeqCst};

/// What the child does: `create`, `again` or `remove`.
const JOB: &str = "PATINA_SNAPSHOT_TEST_JOB";
/// The directory in which it does that.
const HOME: &str = "PATINA_SNAPSHOT_TEST_HOME";
/// Before which operation it ends.
const STEP: &str = "PATINA_SNAPSHOT_TEST_STEP";
/// With which error that operation fails. 0: the process is killed.
const ERRNO: &str = "PATINA_SNAPSHOT_TEST_ERRNO";
/// Of a child in which an operation has failed.
const FAILED: i32 = 9;

fn layers() -> [File; 2] {
    [layer(&[(0, 1), (1, 2), (40, 3), (16_383, 4)]), layer(&[(7, 7), (700, 8)])]
}

#[test]
#[ignore = "it is the process that the other tests of this file start"]
fn child() {
    let (Ok(job), Ok(home)) = (env::var(JOB), env::var(HOME)) else { return };
    let home = PathBuf::from(home);
    let number = |name| env::var(name).unwrap().parse().unwrap();
    let [base, top] = layers();
    let known = Snapshot::open(&home.join("base")).ok().and_then(|base| base.known_layer(0).unwrap());
    FAIL_WITH.store(number(ERRNO), SeqCst);
    LEFT.store(number(STEP), SeqCst);
    let place = home.join("place");
    let failed = match job.as_str() {
        "create" => create_plain(&place, &[&base, &top]).err().map(|error| patina_daemon::chain(&error)),
        "again" => {
            let mut reuse = |number| known.clone().filter(|_| number == 0);
            let all = [&base, &top];
            let created = create(&place, &description(), &state(), (&all, &[]), &mut reuse, &unwatched);
            created.err().map(|error| patina_daemon::chain(&error))
        }
        _ => remove(&place).err().map(|error| patina_daemon::chain(&error)),
    };
    if let Some(failed) = failed {
        println!("{failed}");
        std::process::exit(FAILED);
    }
}

/// How a child ended.
#[derive(Debug, PartialEq)]
enum Ended {
    Killed,
    Failed,
    Done,
}

fn run(job: &str, home: &Path, step: u64, errno: i32) -> Ended {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "directory::tests::kills::child", "--ignored", "--nocapture"]);
    child.env(JOB, job).env(HOME, home).env(STEP, step.to_string()).env(ERRNO, errno.to_string());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        None => Ended::Killed,
        Some(FAILED) => {
            assert!(text.contains("os error") || text.contains("exists already"), "{text}");
            Ended::Failed
        }
        Some(0) if text.contains("1 passed") => Ended::Done,
        _ => panic!("{job}, step {step}: {output:?}"),
    }
}

/// Does a job again and again, and ends it before each of its operations. Returns how many it has.
fn at_each_step(job: &str, errno: i32, begin: impl Fn(&Path), after: impl Fn(&Path, &Ended)) -> u64 {
    for step in 1.. {
        let home = tempfile::tempdir().unwrap();
        begin(home.path());
        let ended = run(job, home.path(), step, errno);
        assert_ne!(ended, if errno == 0 { Ended::Failed } else { Ended::Killed }, "step {step}");
        after(home.path(), &ended);
        if ended == Ended::Done {
            return step - 1;
        }
    }
    unreachable!("a job ends");
}

/// At the place is a whole snapshot or none.
fn is_whole_or_none(home: &Path) -> bool {
    let place = home.join("place");
    if !place.exists() {
        return false;
    }
    let snapshot = Snapshot::open(&place).unwrap();
    assert_eq!(snapshot.verify(&unwatched).unwrap().runs, 3 + 2);
    true
}

/// Another snapshot beside it removes what was left.
fn next_one_sweeps(home: &Path, expected: &[&str]) {
    create_plain(&home.join("zz"), &[&layer(&[(3, 3)])]).unwrap();
    assert_eq!(names(home), expected);
}

fn nothing(_: &Path) {}

fn base(home: &Path) {
    create_plain(&home.join("base"), &[&layers()[0]]).unwrap();
}

fn place(home: &Path) {
    let [base, top] = layers();
    create_plain(&home.join("place"), &[&base, &top]).unwrap();
}

#[test]
fn a_create_that_is_killed_at_any_step_leaves_no_half_snapshot() {
    let steps = at_each_step("create", 0, nothing, |home, ended| {
        let made = is_whole_or_none(home);
        assert!(made || *ended == Ended::Killed);
        if !made {
            // What it left has a name that says so, and is not listed.
            assert!(names(home).iter().all(|name| name.starts_with(UNFINISHED_PREFIX)), "{:?}", names(home));
            assert!(list(home, "", usize::MAX).unwrap().is_empty());
        }
        next_one_sweeps(home, if made { &["place", "zz"] } else { &["zz"] });
    });
    assert!(steps > 20, "{steps} steps");
}

#[test]
fn a_create_that_fails_at_any_step_leaves_nothing() {
    for errno in [28, 5] {
        let steps = at_each_step("create", errno, nothing, |home, ended| {
            assert_eq!(is_whole_or_none(home), *ended == Ended::Done);
            assert_eq!(names(home).len(), usize::from(*ended == Ended::Done), "{:?}", names(home));
        });
        assert!(steps > 20, "{steps} steps");
    }
}

#[test]
fn a_second_snapshot_that_is_killed_or_fails_harms_the_first_in_no_way() {
    for errno in [0, 28] {
        at_each_step("again", errno, base, |home, _| {
            is_whole_or_none(home);
            let first = Snapshot::open(&home.join("base")).unwrap();
            first.verify(&unwatched).unwrap();
            drop(first);
            remove(&home.join("base")).unwrap();
            is_whole_or_none(home);
            assert!(names(home).iter().all(|name| name == "place"), "{:?}", names(home));
        });
    }
}

#[test]
fn a_remove_that_is_killed_or_fails_at_any_step_leaves_a_whole_snapshot_or_none() {
    for errno in [0, 5] {
        let steps = at_each_step("remove", errno, place, |home, _| {
            let left = is_whole_or_none(home);
            next_one_sweeps(home, if left { &["place", "zz"] } else { &["zz"] });
        });
        assert!(steps > 5, "{steps} steps");
    }
}
