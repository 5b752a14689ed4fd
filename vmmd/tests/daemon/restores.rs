//! Restores that are disturbed: whoever is killed at whatever step, on a disk that is full or
//! stalls, or while the scheduler is away. Nothing is left of what fails.

use crate::{
    bench::{Bench, Client, get, ready, runs, tell, vm, wait},
    clones::remove,
    scheduler::asking,
    snapshots::{create, flip, from, layer_file, list, lost, names, only, restore, restore_held},
    steps::{Hold, epoch, known, until},
    streams::{exec, run, start},
};
use patina_proto::v1::{RestoreSnapshotRequest, Vm, VmState, wait_vm_request::Until};
use patina_snapshot::manifest::RUN_BYTES;
use rustix::{
    fs::SeekFrom,
    process::{Pid, Signal, kill_process},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tonic::Code;

#[path = "../../../pager/tests/host/fuse.rs"]
#[allow(dead_code, reason = "the pager's tests need more of it")]
pub mod fuse;
#[path = "../../../pager/tests/host/sys.rs"]
#[allow(dead_code, reason = "the pager's tests need more of it")]
pub mod sys;

use fuse::{Behaviour, Fuse};

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The layers that a process has open.
pub fn open_layers(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_layer = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|name| name.to_string_lossy().contains("memfd:patina-layer"))
    };
    entries.map(|entry| entry.path()).filter(is_layer).collect()
}

/// Whether a run of a layer that a process has open has arrived.
fn has_arrived(pid: u32, run: u64) -> bool {
    let data = run * RUN_BYTES;
    let has = |file: fs::File| rustix::fs::seek(file, SeekFrom::Data(data)) == Ok(data);
    open_layers(pid).into_iter().any(|layer| fs::File::open(layer).is_ok_and(has))
}

/// That nothing is left but the VM `web`: neither VMs nor memory, records or snapshots.
async fn nothing_but_web(bench: &Bench, client: &mut Client, snapshots: &[&str]) {
    only(bench, client, &["web"]).await;
    until("no memory is left", async || {
        bench.memory_files("patina-") == 0 && bench.pager().is_none_or(|pager| open_layers(pager).is_empty())
    })
    .await;
    assert_eq!(names(&bench.path("state/families")), [""; 0], "families whose numbers are written down");
    assert_eq!(names(&bench.path("state/snapshots")), snapshots);
    let records = fs::read_dir(bench.path("state/pager")).into_iter().flatten().flatten();
    let mut records = records.map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!(records.find(|name| name.ends_with(".json")), None, "no layer is written down");
}

/// Where a restore stands still.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// The master has its generation, and does not ask the pager yet.
    Sent,
    /// The pager serves it, and it has not started.
    Served,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Victim {
    Vmm,
    Pager,
    Vmmd,
}

/// Whether the master is there although somebody was killed.
async fn disturb(
    bench: &mut Bench,
    client: &mut Client,
    hold: &Hold,
    web: u32,
    victim: Victim,
) -> Option<bool> {
    hold.lock();
    let mut caller = client.clone();
    let call = tokio::spawn(async move {
        let request = RestoreSnapshotRequest { name: "new".into(), count: 3, ..from("base") };
        caller.restore_snapshot(request).await.map(|made| made.into_inner().vms)
    });
    assert_eq!(hold.reached(1).await, [0], "the master goes first");
    let clones = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok() && *pid != web;
    match victim {
        Victim::Vmm => {
            // The clones' vmms are warm, and none of them has started.
            let pids: Vec<_> = bench.processes().into_iter().filter(clones).collect();
            pids.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        }
        Victim::Pager => signal(bench.pager().unwrap(), Signal::KILL),
        Victim::Vmmd => {
            bench.stop(Signal::KILL);
        }
    }
    hold.unlock();
    match call.await.unwrap() {
        Ok(vms) => {
            // A clone that is to be served at this very moment may fail, and says so.
            assert_eq!(vms.len(), 3);
            Some(true)
        }
        Err(status) if victim == Victim::Vmmd => {
            assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal), "{status}");
            *client = bench.start().await;
            None
        }
        Err(status) => {
            assert_eq!(status.code(), Code::Internal, "{status}");
            Some(false)
        }
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn whoever_is_killed_at_whatever_step_of_a_restore_nothing_is_left() {
    tell(|mut bench| async move {
        bench.small_state();
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        let holds = ["attach", "start"].map(|name| Hold::new(bench.path(name)));
        let words = ["attach", "start"].map(|name| format!("hold-{name}={}", bench.path(name).display()));
        let words = format!("ram=6 {}", words.join(" "));
        let request = patina_proto::v1::CreateVmRequest { memory_mib: 64, ..vm("web", &words) };
        let web = ready(&mut client, request).await;
        create(&mut client, "web", "base").await.unwrap();
        // What is complete needs no pager: this one is never complete.
        bench.stop(Signal::KILL);
        let fuse = in_place_of(&bench, &layer_file(&bench.path("state/snapshots/base")));
        fuse.set(4, Behaviour::Fails);
        let mut client = bench.start().await;
        for (step, hold) in [(Step::Sent, &holds[0]), (Step::Served, &holds[1])] {
            for victim in [Victim::Vmm, Victim::Pager, Victim::Vmmd] {
                let done = disturb(&mut bench, &mut client, hold, web.pid, victim).await;
                if victim == Victim::Pager && step == Step::Served {
                    assert_eq!(done, Some(true), "another pager serves it");
                }
                assert!(victim != Victim::Vmm || done == Some(false), "{step:?}");
                let vms = client.list_vms(patina_proto::v1::ListVmsRequest::default()).await.unwrap();
                for left in vms.into_inner().vms.iter().filter(|vm| vm.name != "web") {
                    // It had all that it needs. Nobody may have been told of it, but nothing is
                    // half-made either.
                    let left = wait(&mut client, &left.name, Until::Ready).await.unwrap();
                    assert_eq!(left.state(), VmState::Ready, "{step:?}, {victim:?}: {left:?}");
                    assert_eq!(run(&mut client, &left.name, &["read", "0"]).await.0, "of web");
                    remove(&mut client, &left.name).await;
                }
                nothing_but_web(&bench, &mut client, &["base"]).await;
                until("no ticket is left", async || known(&bench, 0).await == Some(0)).await;
                assert!(runs(web.pid), "{step:?}, {victim:?}");
            }
        }
        // And all is as before.
        assert_eq!(restore(&mut client, from("base")).await.unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn whoever_is_killed_while_a_vm_is_kept_no_snapshot_is_left() {
    tell(|mut bench| async move {
        let hold = Hold::new(bench.path("freeze"));
        let words = format!("hold-freeze={}", bench.path("freeze").display());
        let mut client = bench.start().await;
        for victim in [Victim::Vmmd, Victim::Pager, Victim::Vmm] {
            ready(&mut client, vm("first", &words)).await;
            create(&mut client, "first", "base").await.unwrap();
            remove(&mut client, "first").await;
            let web = restore(&mut client, RestoreSnapshotRequest { name: "web".into(), ..from("base") });
            let web = web.await.unwrap().remove(0);
            hold.lock();
            let mut caller = client.clone();
            let call = tokio::spawn(async move { create(&mut caller, "web", "next").await });
            hold.reached(1).await;
            match victim {
                Victim::Vmm => signal(web.pid, Signal::KILL),
                Victim::Pager => signal(bench.pager().unwrap(), Signal::KILL),
                Victim::Vmmd => {
                    bench.stop(Signal::KILL);
                }
            }
            hold.unlock();
            let made = call.await.unwrap();
            match victim {
                // Nothing of it is needed for that.
                Victim::Pager => {
                    made.unwrap();
                    let request = patina_proto::v1::RemoveSnapshotRequest { path: "next".into() };
                    client.remove_snapshot(request).await.unwrap();
                }
                Victim::Vmmd => {
                    made.unwrap_err();
                    client = bench.start().await;
                    assert_eq!(wait(&mut client, "web", Until::Ready).await.unwrap().pid, web.pid);
                }
                Victim::Vmm => {
                    made.unwrap_err();
                    assert_eq!(wait(&mut client, "web", Until::Ended).await.unwrap().state(), VmState::Ended);
                }
            }
            assert_eq!(names(&bench.path("state/snapshots")), ["base"], "{victim:?}");
            remove(&mut client, "web").await;
            let request = patina_proto::v1::RemoveSnapshotRequest { path: "base".into() };
            client.remove_snapshot(request).await.unwrap();
            only(&bench, &mut client, &[]).await;
            until("no memory is left", async || bench.memory_files("patina-") == 0).await;
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_master_that_is_being_restored_does_not_count_as_ended_when_the_host_registers_anew() {
    tell(|mut bench| async move {
        bench.start_scheduler().await;
        let hold = Hold::new(bench.path("start"));
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &format!("hold-start={}", bench.path("start").display()))).await;
        create(&mut client, "web", "base").await.unwrap();
        let call = restore_held(&client, &hold).await;
        let before = epoch(&bench).await;
        bench.signal_scheduler(Signal::KILL);
        bench.start_scheduler().await;
        until("the host registers anew", async || {
            let mut scheduler = bench.scheduler().await;
            let hosts = scheduler.list_hosts(patina_proto::v1::ListHostsRequest::default()).await;
            hosts.is_ok_and(|hosts| {
                hosts.into_inner().hosts.first().is_some_and(|host| host.alive && host.epoch > before)
            })
        })
        .await;
        hold.unlock();
        let vms = call.await.unwrap().unwrap();
        let args = json!({"ticket": vms[1].ticket, "timeout_ms": 15_000});
        // The master comes last: the others wait for it.
        let mut meet = vec![asking(&client, "new.1", "sync", args.clone())];
        meet.push(asking(&client, "new.2", "sync", args.clone()));
        meet.push(asking(&client, "new", "sync", args));
        for met in futures::future::join_all(meet).await {
            let met = met.unwrap();
            assert_eq!(met["ok"]["arrived"], 3, "{met}");
        }
    });
}

/// Puts a file system whose reads the test decides on in the place of a layer's file.
pub fn in_place_of(bench: &Bench, file: &Path) -> Fuse {
    fs::create_dir(bench.path("fuse")).unwrap();
    let fuse = Fuse::mount(bench.path("fuse"), fs::read(file).unwrap()).unwrap();
    let [from, to] = [&bench.path("fuse/layer"), file].map(|path| path.to_str().unwrap().to_owned());
    assert!(Command::new("mount").args(["--bind", &from, &to]).status().unwrap().success());
    fuse
}

/// Keeps a VM of six runs in the snapshot `base`, and starts vmmd anew on a disk that never reads
/// run 4 of it: the VM, the layer's id, and that disk.
async fn keep_with_a_stall(bench: &mut Bench) -> (Client, Vm, String, Fuse) {
    bench.small_state();
    let mut client = bench.start().await;
    let request = patina_proto::v1::CreateVmRequest { memory_mib: 64, ..vm("web", "ram=6") };
    let parent = ready(&mut client, request).await;
    let kept = create(&mut client, "web", "base").await.unwrap().snapshot.unwrap();
    bench.stop(Signal::TERM);
    let fuse = in_place_of(bench, &layer_file(&bench.path("state/snapshots/base")));
    fuse.set(4, Behaviour::Stalls);
    (bench.start().await, parent, kept.layers[0].id.clone(), fuse)
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_disk_that_stalls_during_a_restore_ends_only_the_vm_that_needs_it() {
    tell(|mut bench| async move {
        let (mut client, parent, layer, fuse) = keep_with_a_stall(&mut bench).await;
        let request = RestoreSnapshotRequest { name: "new".into(), count: 2, ..from("base") };
        restore(&mut client, request).await.unwrap();
        assert_eq!(run(&mut client, "new.1", &["read", "2"]).await.0, "run 2");
        let mut caller = client.clone();
        let needs = tokio::spawn(async move { run(&mut caller, "new", &["read", "4"]).await });
        let begun = std::time::Instant::now();
        lost(&mut client, "new", &layer, 4).await;
        assert!(begun.elapsed().as_secs() < 6, "{:?}", begun.elapsed());
        needs.await.unwrap_err();
        assert_eq!(run(&mut client, "new.1", &["read", "3"]).await.0, "run 3", "it goes on");
        // The disk comes back, and with it the run.
        fuse.release();
        let pager = bench.pager().unwrap();
        until("the run arrives", async || has_arrived(pager, 4)).await;
        assert_eq!(run(&mut client, "new.1", &["read", "4"]).await.0, "run 4");
        for name in ["new", "new.1"] {
            remove(&mut client, name).await;
        }
        assert!(runs(parent.pid));
        only(&bench, &mut client, &["web"]).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_exec_in_a_vm_that_waits_for_memory_is_answered_and_says_why() {
    tell(|mut bench| async move {
        let (mut client, _, layer, _fuse) = keep_with_a_stall(&mut bench).await;
        restore(&mut client, RestoreSnapshotRequest { name: "new".into(), ..from("base") }).await.unwrap();
        let mut caller = client.clone();
        let needs = tokio::spawn(async move { exec(&mut caller, vec![start("new", &["read", "4"])]).await });
        // Its only vCPU waits from some moment on.
        let refused = loop {
            if let Err(status) = exec(&mut client, vec![start("new", &["echo"])]).await {
                break status;
            }
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let names = refused.message().contains("run 4 ") && refused.message().contains(&layer);
        assert!(names, "{refused}");
        needs.await.unwrap().unwrap_err();
        lost(&mut client, "new", &layer, 4).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_disk_that_is_full_refuses_a_restore_and_nothing_is_left() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = bench.start().await;
        let web = ready(&mut client, vm("web", "")).await;
        let place = bench.path("kept").to_str().unwrap().to_owned();
        create(&mut client, "web", &place).await.unwrap();
        let free = rustix::fs::statvfs(bench.path("state")).unwrap();
        let fill = fs::File::create(bench.path("state/fill")).unwrap();
        let bytes = free.f_bavail * free.f_bsize;
        rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        // Which write fails first is not said here.
        restore(&mut client, from(&place)).await.unwrap_err();
        drop(fill);
        fs::remove_file(bench.path("state/fill")).unwrap();
        nothing_but_web(&bench, &mut client, &[]).await;
        assert_eq!(get(&mut client, "web").await.pid, web.pid);
        assert_eq!(restore(&mut client, from(&place)).await.unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn snapshots_are_listed_page_by_page() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        for name in ["a", "b", "c"] {
            create(&mut client, "web", name).await.unwrap();
        }
        flip(&bench.path("state/snapshots/b"), 0);
        let all = list(&mut client, "").await;
        assert_eq!(all.len(), 3);
        let (mut token, mut paged) = (String::new(), Vec::new());
        for expected in [2, 1] {
            let request = patina_proto::v1::ListSnapshotsRequest {
                page_size: 2,
                page_token: token,
                ..Default::default()
            };
            let page = client.list_snapshots(request).await.unwrap().into_inner();
            assert_eq!(page.snapshots.len(), expected);
            paged.extend(page.snapshots);
            token = page.next_page_token;
        }
        assert_eq!((paged, token.as_str()), (all, ""));
    });
}
