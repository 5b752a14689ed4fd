//! Snapshots on a disk that stalls: only what is about that disk waits for it.

use crate::{
    bench::{Bench, Client, get, kill, ready, runs, tell, vm, wait},
    clones::{clones, remove},
    disk::{Disk, Stall},
    snapshots::{create, from, list, only, restore},
    steps::until,
    streams::run,
};
use patina_proto::v1::{self, EndKind, VmState, wait_vm_request::Until};
use rustix::process::Signal;
use std::{path::PathBuf, time::Duration};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Status};

/// How long calls may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const STALLS: [Stall; 4] = [Stall::Write, Stall::Sync, Stall::SyncFolder, Stall::Rename];

/// A bench with a disk that can stall, on which snapshots are kept.
async fn with_disk(bench: &mut Bench) -> (Client, v1::Vm, Disk) {
    bench.small_state();
    let disk = Disk::mount(bench.path("disk"));
    let mut client = bench.start().await;
    let web = ready(&mut client, vm("web", "")).await;
    (client, web, disk)
}

type Call = JoinHandle<Result<v1::CreateSnapshotResponse, Status>>;

fn place(disk: &Disk, name: &str) -> String {
    let place: PathBuf = disk.at.join(name);
    place.to_str().unwrap().to_owned()
}

/// Keeps a VM on a disk that stalls: the call, which waits for the disk.
async fn keep_stalled(client: &Client, disk: &Disk, stall: Stall) -> Call {
    disk.stall(stall);
    let (mut caller, place) = (client.clone(), place(disk, "base"));
    let call = tokio::spawn(async move { create(&mut caller, "web", &place).await });
    until("it waits for the disk", async || disk.stalled() > 0).await;
    call
}

/// Calls that are not about the disk that stalls.
async fn others(client: &Client, web: &v1::Vm) {
    let mut client = client.clone();
    assert_eq!(run(&mut client, "web", &["echo", "on"]).await.0, "on", "it goes on");
    assert_eq!(get(&mut client, "web").await, *web);
    let clone = clones(&mut client, "web", 1).await.remove(0);
    kill(&mut client, &clone.name).await;
    // It is kept on another disk, and started from there.
    create(&mut client, "web", "other").await.unwrap();
    let new = restore(&mut client, from("other")).await.unwrap().remove(0);
    kill(&mut client, &new.name).await;
    assert_eq!(list(&mut client, "").await.len(), 1);
    let request = v1::RemoveSnapshotRequest { path: "other".into() };
    client.remove_snapshot(request).await.unwrap();
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_disk_that_stalls_while_a_vm_is_kept_holds_up_neither_the_vm_nor_other_calls() {
    tell(|mut bench| async move {
        let (mut client, web, disk) = with_disk(&mut bench).await;
        for stall in STALLS {
            let call = keep_stalled(&client, &disk, stall).await;
            let others = others(&client, &web);
            timeout(PATIENCE, others).await.expect("other calls are answered");
            assert!(!call.is_finished() && disk.stalled() > 0, "{stall:?}: it waits still");

            disk.release();
            call.await.unwrap().unwrap();
            assert_eq!(disk.names(), ["base"], "{stall:?}");
            let place = place(&disk, "base");
            client.verify_snapshot(v1::VerifySnapshotRequest { path: place.clone() }).await.unwrap();
            client.remove_snapshot(v1::RemoveSnapshotRequest { path: place }).await.unwrap();
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_caller_who_leaves_while_the_disk_stalls_leaves_nothing_half_written() {
    tell(|mut bench| async move {
        let (mut client, web, disk) = with_disk(&mut bench).await;
        for stall in STALLS {
            let call = keep_stalled(&client, &disk, stall).await;
            call.abort();
            assert!(call.await.unwrap_err().is_cancelled());
            // vmmd hears of it on the same connection, before these.
            for _ in 0..20 {
                assert_eq!(get(&mut client, "web").await, web);
            }
            disk.release();
            // What was being renamed is whole.
            let left = if stall == Stall::Rename { &["base"][..] } else { &[] };
            until("it is whole or gone", async || bench.memory_files("patina-") == 0 && disk.names() == left)
                .await;
            if !left.is_empty() {
                let request = v1::VerifySnapshotRequest { path: place(&disk, "base") };
                // It has its name a moment before whoever wrote it lets it go.
                until("it is let go", async || match client.verify_snapshot(request.clone()).await {
                    Err(status) if status.code() == Code::Aborted => false,
                    verified => verified.map(|_| true).unwrap(),
                })
                .await;
            }
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_that_is_killed_while_its_snapshot_stalls_ends_at_once() {
    tell(|mut bench| async move {
        let (mut client, web, disk) = with_disk(&mut bench).await;
        let call = keep_stalled(&client, &disk, Stall::Write).await;
        let ended = kill(&mut client, "web").await;
        assert_eq!((ended.state(), ended.end_kind()), (VmState::Ended, EndKind::Killed));
        assert!(!runs(web.pid) && !call.is_finished());
        // It was frozen before: its snapshot is whole.
        disk.release();
        call.await.unwrap().unwrap();
        assert_eq!(restore(&mut client, from(&place(&disk, "base"))).await.unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmmd_that_ends_while_a_disk_stalls_tells_its_callers_and_the_next_one_finds_its_vms() {
    tell(|mut bench| async move {
        let (mut client, web, disk) = with_disk(&mut bench).await;
        for signal in [Signal::TERM, Signal::KILL] {
            let call = keep_stalled(&client, &disk, Stall::Sync).await;
            bench.signal(signal);
            if signal == Signal::TERM {
                // The process itself is gone as soon as the kernel lets its thread go that waits
                // for the disk.
                call.await.unwrap().unwrap_err();
                assert!(!bench.path("vmmd.sock").exists() && disk.stalled() > 0);
            }
            disk.release();
            bench.ended();
            client = bench.start().await;
            assert_eq!(wait(&mut client, "web", Until::Ready).await.unwrap(), web);
            // What is left goes as soon as another is made beside it.
            create(&mut client, "web", &place(&disk, "next")).await.unwrap();
            assert_eq!(disk.names(), ["next"], "{signal:?}");
            let request = v1::RemoveSnapshotRequest { path: place(&disk, "next") };
            client.remove_snapshot(request).await.unwrap();
            only(&bench, &mut client, &["web"]).await;
        }
    });
}

/// More than threads of vmmd's that may wait for a disk.
const MANY: usize = 600;

#[test]
#[ignore = "needs root and /dev/kvm"]
fn however_many_calls_wait_for_a_disk_vms_are_made_killed_and_removed() {
    tell(|mut bench| async move {
        let (client, web, disk) = with_disk(&mut bench).await;
        disk.stall(Stall::Look);
        let (path, mut calls) = (place(&disk, "base"), Vec::new());
        for _ in 0..MANY {
            let (mut caller, request) = (client.clone(), v1::GetSnapshotRequest { path: path.clone() });
            calls.push(tokio::spawn(async move { caller.get_snapshot(request).await }));
        }
        until("they wait for the disk", async || disk.stalled() > 0).await;
        let others = async {
            let mut client = client.clone();
            for number in 0..3 {
                let name = format!("new-{number}");
                ready(&mut client, vm(&name, "")).await;
                kill(&mut client, &name).await;
                remove(&mut client, &name).await;
            }
        };
        timeout(PATIENCE, others).await.expect("they are answered");
        assert!(runs(web.pid) && disk.stalled() > 0);
        disk.release();
        for call in calls {
            // Some may have had no turn.
            let status = call.await.unwrap().unwrap_err();
            assert!(matches!(status.code(), Code::NotFound | Code::Unavailable), "{status}");
        }
    });
}
