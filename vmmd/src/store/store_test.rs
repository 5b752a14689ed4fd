use super::*;
use crate::plan::lifecycle::Ended;
use patina_control::end::{End, EndKind};
use record::{Record, tests::sample};
use vm::TAIL_BYTES;

fn state() -> (tempfile::TempDir, StateDir) {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(&folder.path().join("state")).unwrap();
    (folder, state)
}

#[test]
fn a_record_reads_back_whole() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    assert_eq!(dir.load().unwrap(), None);
    let mut record = sample("a");
    record.ended = Some(Ended { end: End { kind: EndKind::Panicked, reason: "why".into() }, unix_ms: 5 });
    dir.save(&record, Lasting::Host).unwrap();
    assert_eq!(dir.load().unwrap(), Some(record));
    assert_eq!(state.list().unwrap().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_crash_while_writing_leaves_the_old_record() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    dir.save(&sample("a"), Lasting::Host).unwrap();
    fs::write(dir.path().join("vm.json.new"), b"{\"format\":1,\"na").unwrap();
    assert_eq!(dir.load().unwrap(), Some(sample("a")));
    let mut next = sample("a");
    next.ready_after_us = Some(3);
    dir.save(&next, Lasting::Host).unwrap();
    assert_eq!(dir.load().unwrap(), Some(next));
}

#[test]
fn what_is_no_record_of_ours_is_an_error_not_a_loss() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    fs::write(dir.path().join("vm.json"), b"{\"format\":1,").unwrap();
    assert!(matches!(dir.load(), Err(StoreError::Parse { .. })));
    let later = Record { format: 2, ..sample("a") };
    dir.save(&later, Lasting::Host).unwrap();
    assert!(matches!(dir.load(), Err(StoreError::Format { format: 2, .. })));
}

#[test]
fn a_record_that_the_hosts_crash_left_empty_is_none() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    fs::write(dir.path().join("vm.json"), b"").unwrap();
    assert_eq!(dir.load().unwrap(), None);
}

#[test]
fn a_warm_folder_becomes_a_vms_whole_and_never_anothers() {
    let (_folder, state) = state();
    let [first, second] = [state.create_warm().unwrap(), state.create_warm().unwrap()];
    first.save(&sample("a"), Lasting::Process).unwrap();
    let dir = state.promote(&first, "a").unwrap();
    assert_eq!(dir.load().unwrap(), Some(sample("a")));
    assert!(matches!(state.promote(&second, "a"), Err(StoreError::Move { .. })));
    fs::create_dir(state.vm("b").path()).unwrap();
    assert!(matches!(state.promote(&second, "b"), Err(StoreError::Move { .. })), "an empty one too");
    assert_eq!((state.list_warm().unwrap().len(), state.list().unwrap().len()), (1, 2));
}

#[test]
fn last_words_are_the_account_of_the_end_or_the_logs_last_line() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    assert_eq!(dir.last_words(), "");
    fs::write(dir.vmm_log(), "first\nlast\n\n").unwrap();
    assert_eq!(dir.last_words(), "last");
    fs::write(dir.end_file(), br#"{"kind":"vmm_error","reason":"restore the vCPU"}"#).unwrap();
    assert_eq!(dir.last_words(), "restore the vCPU");
}

#[test]
fn half_an_end_file_is_none() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    assert_eq!(dir.load_end(), None);
    fs::write(dir.end_file(), br#"{"kind":"panicked","rea"#).unwrap();
    assert_eq!(dir.load_end(), None);
    fs::write(dir.end_file(), br#"{"kind":"panicked","reason":"oops"}"#).unwrap();
    assert_eq!(dir.load_end(), Some(End { kind: EndKind::Panicked, reason: "oops".into() }));
}

#[test]
fn one_vmmd_owns_a_state_folder() {
    let (_folder, state) = state();
    let error = StateDir::open(state.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Locked { .. }));
    assert!(text.contains(&format!("pid {}", std::process::id())) && text.contains("--state-dir"), "{text}");
}

#[test]
fn the_lock_of_a_vmmd_that_was_killed_passes_on_when_its_child_is_a_vmm() {
    let (_folder, state) = state();
    let (path, file) = (state.path().to_owned(), state.path().join("lock"));
    drop(state);
    // A process that is gone, and somebody who still holds its lock.
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    fs::write(&file, format!("{}\n", gone.id())).unwrap();
    let child = File::open(&file).unwrap();
    child.lock().unwrap();
    let next = thread::spawn(move || StateDir::open(&path).map(|state| state.path().to_owned()));
    let inode = format!(":{} ", std::os::unix::fs::MetadataExt::ino(&child.metadata().unwrap()));
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        thread::yield_now();
    }
    drop(child);
    assert!(next.join().unwrap().is_ok());
}

#[test]
fn a_folder_is_made_once_and_deleting_twice_is_fine() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    assert!(matches!(state.create_vm("a"), Err(StoreError::CreateDir { .. })));
    dir.save(&sample("a"), Lasting::Host).unwrap();
    dir.delete().unwrap();
    dir.delete().unwrap();
    assert!(state.list().unwrap().is_empty());
}

#[test]
fn only_the_end_of_a_long_log_is_read() {
    let (_folder, state) = state();
    let dir = state.create_vm("a").unwrap();
    assert_eq!(dir.log_tail(), "");
    fs::write(dir.vmm_log(), format!("{}the end", "x".repeat(5000))).unwrap();
    let tail = dir.log_tail();
    assert!(tail.ends_with("the end") && tail.len() as u64 == TAIL_BYTES);
}

#[test]
fn a_file_that_many_write_at_once_is_one_of_theirs_whole() {
    const BYTES: usize = 1 << 20;
    let (_folder, state) = state();
    let path = state.path().join("list");
    let is_whole = |bytes: &[u8]| bytes.len() == BYTES && bytes.iter().all(|byte| *byte == bytes[0]);
    let begin = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for writer in 0..4 {
            let (path, begin) = (&path, &begin);
            scope.spawn(move || {
                begin.wait();
                for _ in 0..20 {
                    write_whole(path, &vec![writer; BYTES], Lasting::Process).unwrap();
                    assert!(is_whole(&fs::read(path).unwrap()), "torn");
                }
            });
        }
    });
    assert!(is_whole(&fs::read(&path).unwrap()));
    let others = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let new: Vec<_> = others.filter(|name| name.to_string_lossy().contains("new")).collect();
    assert!(new.is_empty(), "{new:?}");
}

#[test]
fn a_file_that_cannot_become_the_other_leaves_nothing() {
    let (_folder, state) = state();
    let path = state.path().join("is-a-folder");
    fs::create_dir(&path).unwrap();
    let before = fs::read_dir(state.path()).unwrap().count();
    assert!(write_whole(&path, b"x", Lasting::Process).is_err());
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), before);
}
