use super::*;
use crate::plan::lifecycle::Ended;
use patina_control::end::{End, EndKind};
use std::{fs, io::Write};

fn status(phase: Phase) -> VmStatus {
    VmStatus { phase, ready_after_us: None, vmm_version: Some(1), ports: Vec::new() }
}

fn ended() -> Phase {
    Phase::Ended(Ended { end: End { kind: EndKind::PoweredOff, reason: String::new() }, unix_ms: 1 })
}

fn open(path: &Path) -> Log {
    Log { file: File::open(path).unwrap(), offset_bytes: 0, memory: Vec::new() }
}

#[tokio::test]
async fn a_follower_gets_what_is_added_until_the_vm_ends() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "one ").unwrap();
    let (sender, receiver) = watch::channel(status(Phase::Ready));
    let (answers, mut got) = mpsc::channel(8);
    let (watch, log) = (Watch::new(file.path()).unwrap(), open(file.path()));
    let task = tokio::spawn(async move { stream(log, Some(watch), receiver, &answers).await });
    assert_eq!(got.recv().await.unwrap().unwrap().data, b"one ");
    file.as_file().write_all(b"").unwrap();
    fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(b"two").unwrap();
    assert_eq!(got.recv().await.unwrap().unwrap().data, b"two");
    sender.send(status(ended())).unwrap();
    assert!(got.recv().await.is_none());
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_follow_the_stream_ends_with_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![b'x'; CHUNK_BYTES + 1]).unwrap();
    let (_sender, receiver) = watch::channel(status(Phase::Booting));
    let (answers, mut got) = mpsc::channel(8);
    stream(open(file.path()), None, receiver, &answers).await.unwrap();
    drop(answers);
    let mut length = 0;
    while let Some(answer) = got.recv().await {
        length += answer.unwrap().data.len();
    }
    assert_eq!(length, CHUNK_BYTES + 1);
}

#[test]
fn a_log_that_lost_its_older_half_is_read_on_where_it_was() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = |range: std::ops::Range<u32>| range.map(|i| format!("line {i}\n")).collect::<String>();
    fs::write(file.path(), lines(0..1000)).unwrap();
    let mut log = open(file.path());
    while log.next().unwrap().is_some() {}
    fs::write(file.path(), lines(700..1005)).unwrap();
    assert_eq!(log.next().unwrap().unwrap(), lines(1000..1005).into_bytes());
}

#[test]
fn a_place_that_is_gone_is_the_beginning() {
    assert_eq!(resume(b"abcabcd", b"abc"), 6);
    assert_eq!(resume(b"xyz", b"abc"), 0);
    assert_eq!(resume(b"xyz", b""), 0);
    assert_eq!(resume(b"a", b"abc"), 0);
}
