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

/// The files as revision 50d538c wrote them. A name that changes here loses the VMs of hosts that
/// are updated, or of those that go back.
#[test]
fn files_of_an_earlier_revision_are_read_and_are_written_with_the_same_names() {
    let (_folder, state) = state();
    let family = "6f0c1f9e-2f6c-4b7e-8a51-0d2f7c3b9e10";
    let clone = r#"{
  "format": 1,
  "name": "web.1",
  "uuid": "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11",
  "family": "6f0c1f9e-2f6c-4b7e-8a51-0d2f7c3b9e10",
  "net": { "index": 2, "base": "100.64.32.0" },
  "vmid": 1,
  "origin": { "parent_vmid": 0, "master": "web" },
  "vcpus": 2,
  "memory_mib": 256,
  "cmdline": "quiet",
  "ports": [{ "host": "127.0.0.1:8080", "guest_port": 80 }],
  "kernel": "/k",
  "rootfs": "/r",
  "rootfs_file": { "device": 1, "inode": 2, "bytes": 3, "modified_s": 4, "modified_ns": 5 },
  "kernel_file": { "device": 1, "inode": 7, "bytes": 8, "modified_s": 9, "modified_ns": 10 },
  "ticket": "9d2c2b0e-7d0e-4a57-8f51-90c7f4f0a0aa",
  "created_unix_ms": 1764000000000,
  "process": { "pid": 41, "start_ticks": 42, "boot": "b" },
  "ready_after_us": 90000,
  "ended": { "kind": "joined", "reason": "it joined with status 0", "unix_ms": 1764000001000 }
}"#;
    let dir = state.create_vm("web.1").unwrap();
    fs::write(dir.path().join("vm.json"), clone).unwrap();
    let record = dir.load().unwrap().expect("a record");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(serde_json::to_value(&record).unwrap(), json(clone));
    assert_eq!((record.name.as_str(), record.master(), record.vmid), ("web.1", "web", 1));
    assert_eq!(record.ended.expect("an end").end.kind, EndKind::Joined);

    let ends = [
        ("powered_off", EndKind::PoweredOff),
        ("rebooted", EndKind::Rebooted),
        ("panicked", EndKind::Panicked),
        ("triple_faulted", EndKind::TripleFaulted),
        ("killed", EndKind::Killed),
        ("joined", EndKind::Joined),
        ("vmm_error", EndKind::VmmError),
        ("vmm_died", EndKind::VmmDied),
    ];
    for (name, kind) in ends {
        let text = format!(r#"{{"kind":"{name}","reason":"why"}}"#);
        fs::write(dir.end_file(), &text).unwrap();
        let end = dir.load_end().expect(name);
        assert_eq!(end, End { kind, reason: "why".into() });
        assert_eq!(serde_json::to_string(&end).unwrap(), text);
    }

    let path = state.path().join("families").join(format!("{family}.json"));
    let text = "{\n  \"format\": 1,\n  \"next_vmid\": 7\n}";
    fs::write(&path, text).unwrap();
    let family = family.parse().unwrap();
    assert_eq!(state.next_vmid(family).unwrap(), Some(7));
    state.save_next_vmid(family, 7).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}
