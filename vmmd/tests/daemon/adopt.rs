//! What an earlier vmmd left: much of it, some of it broken, on a full disk; and control
//! connections that break.

use crate::{
    bench::{Client, get, kill, ready, runs, tell, vm, wait},
    clones::{clone, clones},
    streams::{members, run},
};
use patina_proto::v1::{self, EndKind, VmState, wait_vm_request::Until};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, io::Write as _, path::Path, process::Command};
use tonic::Code;
use tonic_types::StatusExt as _;

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

async fn list(client: &mut Client) -> Vec<v1::Vm> {
    client.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms
}

async fn events(client: &mut Client, kind: v1::EventKind) -> Vec<v1::Event> {
    let request = v1::WatchEventsRequest { past_only: true, ..Default::default() };
    let mut stream = client.watch_events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(event);
    }
    events.retain(|event| event.kind() == kind);
    events
}

async fn remove_broken(client: &mut Client, name: &str) -> Result<(), tonic::Status> {
    let request = v1::RemoveVmRequest { name: name.into(), broken: true, ..Default::default() };
    client.remove_vm(request).await.map(drop)
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_control_connection_that_breaks_is_made_again() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        // It has said nothing when it breaks: the state is learned over the next one.
        ready(&mut client, vm("first", "hang-up")).await;
        ready(&mut client, vm("a", "")).await;
        for _ in 0..3 {
            assert_eq!(run(&mut client, "a", &["hang-up"]).await.1, 0);
            assert!(members(&mut client, "a").await.contains("100.64.16.1"), "its calls are answered");
        }
        clones(&mut client, "a", 1).await;
        let ended = kill(&mut client, "a").await;
        assert_eq!((ended.end_kind(), ended.end_reason.as_str()), (EndKind::Killed, "killed by an operator"));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_list_comes_at_once_while_many_are_taken_over_and_some_never_answer() {
    tell(|mut bench| async move {
        const MANY: usize = 200;
        let client = bench.start().await;
        let make = |index: usize| {
            let mut client = client.clone();
            async move { ready(&mut client, vm(&format!("vm{index:03}"), "")).await }
        };
        let made = futures::future::join_all((0..MANY).map(make)).await;
        bench.stop(Signal::KILL);
        // One process does nothing any more, and one folder is on a disk that does not answer.
        signal(made[3].pid, Signal::STOP);
        let record = bench.path("state/vms/vm005/vm.json");
        let kept = fs::read(&record).unwrap();
        fs::remove_file(&record).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &record, rustix::fs::FileType::Fifo, mode, 0).unwrap();

        let mut client = bench.start().await;
        let listed = list(&mut client).await;
        assert_eq!(listed.len(), MANY, "none is missing");
        let states: Vec<_> = listed.iter().map(|vm| (vm.name.as_str(), vm.state())).collect();
        // The list came before that one was given up. On a slow machine others are on their way,
        // too.
        assert_eq!(states[5], ("vm005", VmState::Adopting));
        let is_there = |state| matches!(state, VmState::Ready | VmState::Adopting);
        assert!(states.iter().all(|(_, state)| is_there(*state)), "{states:?}");
        for vm in listed.iter().filter(|vm| vm.name != "vm005") {
            assert_eq!(get(&mut client, &vm.name).await.state(), VmState::Ready, "{}", vm.name);
        }
        assert_eq!(list(&mut client).await[5].state(), VmState::Adopting, "no other has waited for it");
        assert_eq!(run(&mut client, "vm007", &["echo", "hi"]).await, ("hi".into(), 0));
        kill(&mut client, "vm008").await;
        let hung = kill(&mut client, "vm003").await;
        assert_eq!((hung.state(), runs(made[3].pid)), (VmState::Ended, false));

        // Whoever waits for all gets it when that one is given up; it is tried again.
        bench.logged("cannot be taken over").await;
        let states: Vec<_> = list(&mut client).await.iter().map(v1::Vm::state).collect();
        assert_eq!(states[5], VmState::Broken);
        assert_eq!(clones(&mut client, "vm009", 1).await.len(), 1);
        assert!(runs(made[5].pid), "and its process is left alone");
        fs::remove_file(&record).unwrap();
        fs::write(&record, kept).unwrap();
        bench.logged("taken over after all").await;
        assert_eq!(get(&mut client, "vm005").await, made[5]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_cannot_be_taken_over_is_told_tried_again_and_removed_when_somebody_says_so() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let torn = ready(&mut client, vm("torn", "")).await;
        let lost = ready(&mut client, vm("lost", "")).await;
        ready(&mut client, vm("well", "")).await;
        let clone_of_torn = clones(&mut client, "torn", 1).await.remove(0);
        bench.stop(Signal::KILL);
        let mut kept = Vec::new();
        for name in ["torn", "torn.1", "lost"] {
            let path = bench.path(&format!("state/vms/{name}/vm.json"));
            kept.push(fs::read(&path).unwrap());
            fs::write(path, "{").unwrap();
        }
        let mut client = bench.start().await;
        let listed = list(&mut client).await;
        let told: Vec<_> =
            listed.iter().map(|vm| (vm.name.as_str(), vm.state(), vm.problem.contains("vm.json"))).collect();
        let (broken, ready_state) = (VmState::Broken, VmState::Ready);
        let expected = [
            ("lost", broken, true),
            ("torn", broken, true),
            ("torn.1", broken, true),
            ("well", ready_state, false),
        ];
        assert_eq!(told, expected);
        assert_eq!(events(&mut client, v1::EventKind::Broken).await.len(), 3);
        assert!(runs(torn.pid) && runs(lost.pid) && runs(clone_of_torn.pid), "they are left alone");
        let status = client.get_vm(v1::GetVmRequest { name: "torn".into() }).await.unwrap_err();
        assert!(status.message().contains("vmctl rm --broken torn"), "{status}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "VM_BROKEN");

        // Mended, they are VMs again; a clone too, which began under another folder.
        for (name, record) in ["torn", "torn.1"].iter().zip(kept) {
            fs::write(bench.path(&format!("state/vms/{name}/vm.json")), record).unwrap();
        }
        for _ in 0..2 {
            bench.logged("taken over after all").await;
        }
        assert_eq!(get(&mut client, "torn").await, torn);
        assert_eq!(kill(&mut client, "torn.1").await.end_kind(), EndKind::Killed);

        assert_eq!(remove_broken(&mut client, "well").await.unwrap_err().code(), Code::FailedPrecondition);
        remove_broken(&mut client, "lost").await.unwrap();
        assert!(!runs(lost.pid) && !bench.path("state/vms/lost").exists());
        ready(&mut client, vm("lost", "")).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_record_that_the_hosts_crash_cut_short_is_of_nobody() {
    tell(|mut bench| async move {
        bench.start().await;
        bench.stop(Signal::KILL);
        for (name, record) in [("cut", &b"{\"format\":1,\"na"[..]), ("zeros", &[0; 300])] {
            fs::create_dir(bench.path(&format!("state/vms/{name}"))).unwrap();
            fs::write(bench.path(&format!("state/vms/{name}/vm.json")), record).unwrap();
        }
        fs::write(bench.path("state/boot"), "an earlier one\n").unwrap();
        let mut client = bench.start().await;
        assert!(bench.vm_folders().is_empty());
        ready(&mut client, vm("cut", "")).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_half_made_vm_whose_files_cannot_be_deleted_is_told_and_removed_later() {
    tell(|mut bench| async move {
        bench.small_state();
        bench.start().await;
        bench.stop(Signal::KILL);
        let busy = bench.path("state/vms/half-made/busy");
        fs::create_dir_all(&busy).unwrap();
        let mount = |program: &str, words: &[&str]| {
            assert!(Command::new(program).args(words).arg(&busy).status().unwrap().success());
        };
        mount("mount", &["-t", "tmpfs", "tmpfs"]);
        let mut client = bench.start().await;
        let listed = list(&mut client).await;
        assert_eq!(
            (listed.len(), listed[0].name.as_str(), listed[0].state()),
            (1, "half-made", VmState::Broken)
        );
        assert!(listed[0].problem.contains("half-made: Device or resource busy"), "{listed:?}");
        assert!(remove_broken(&mut client, "half-made").await.is_err());
        mount("umount", &[]);
        bench.logged("removed after all").await;
        assert!(bench.vm_folders().is_empty());
        ready(&mut client, vm("half-made", "")).await;
    });
}

/// Fills the disk.
pub fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for bytes in [1 << 16, 1] {
        while file.write_all(&vec![b'x'; bytes]).is_ok() {}
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_full_disk_keeps_no_vmmd_from_starting() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = bench.start().await;
        let dead = ready(&mut client, vm("dead", "")).await;
        let before = ready(&mut client, vm("web", "")).await;
        bench.stop(Signal::KILL);
        signal(dead.pid, Signal::KILL);
        while runs(dead.pid) {
            tokio::task::yield_now().await;
        }
        fs::create_dir(bench.path("state/vms/half-made")).unwrap();
        fill(&bench.path("state/full"));

        let mut client = bench.start().await;
        assert_eq!(get(&mut client, "dead").await.end_kind(), EndKind::VmmDied);
        assert_eq!(wait(&mut client, "web", Until::Ready).await.unwrap(), before);
        let unwritten = events(&mut client, v1::EventKind::Unwritten).await;
        assert!(unwritten.len() == 1 && unwritten[0].vm == "dead", "{unwritten:?}");
        assert!(unwritten[0].text.contains("No space left"), "{unwritten:?}");
        assert!(members(&mut client, "web").await.contains("100.64"));
        // When there is room, all is as if there always had been.
        fs::remove_file(bench.path("state/full")).unwrap();
        bench.logged("written after all").await;
        let record = fs::read_to_string(bench.path("state/vms/dead/vm.json")).unwrap();
        assert!(record.contains("vmm_died"), "{record}");
        kill(&mut client, "web").await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_hooks_four_kib_of_newlines_arrive_in_the_error() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "long=4096")).await;
        let status = clone(&mut client, "web", 1).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let whole = status.get_details_debug_info().unwrap().detail;
        assert!(whole.contains(&"\n".repeat(4096)) && whole.contains("pre-clone"), "{}", whole.len());
    });
}
