//! `cargo xtask` that is told to end, or killed: what it runs cleans up, although the cargo in
//! between ends at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use patina_tests::process::{pidfd, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// In cargo's place: ends at once of a signal, as cargo does, and what it runs takes a while to
/// clean up. That kills its `sleep` too: a signal that reaches it while it is still a shell is
/// lost.
const CARGO: &str = r#"#!/bin/sh
clean_up() { kill -KILL $!; sleep 0.3; rm "$PLACE/running"; exit; }
(trap clean_up TERM; sleep 1000 & echo $! > "$PLACE/pid"; touch "$PLACE/running"; wait) &
wait
"#;
const DEADLINE: Duration = Duration::from_secs(20);

/// xtask, in the first thing that it has cargo do.
fn start() -> (TempDir, Child) {
    let place = tempfile::tempdir().unwrap();
    let cargo = place.path().join("cargo");
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("image").env("CARGO", cargo).env("PLACE", place.path()).env("PATINA_CACHE", place.path());
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the build runs", || place.path().join("running").exists());
    (place, child)
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {} s", DEADLINE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_cleaned_up(place: &Path) -> bool {
    !place.join("running").exists()
}

#[test]
fn told_to_end_it_waits_until_what_it_ran_has_cleaned_up() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (place, mut child) = start();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert!(!wait(&mut child, DEADLINE).unwrap().unwrap().success());
        assert!(is_cleaned_up(place.path()), "{signal:?}");
    }
}

#[test]
fn killed_it_has_what_it_ran_clean_up() {
    let (place, mut child) = start();
    let sleeper: u32 = fs::read_to_string(place.path().join("pid")).unwrap().trim().parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("what it ran cleans up", || is_cleaned_up(place.path()));
    until("the whole group ends", || pidfd(sleeper).is_err());
}
