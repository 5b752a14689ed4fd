//! Warm VMs: ready before anybody asks, seen by nobody, gone with their family.

use crate::{
    bench::{Bench, Client, interfaces, kill, ready, runs, tell, vm, wait},
    clones::{clone, clones, console, remove, sorted},
    tickets::granted,
};
use patina_proto::v1::{self, CloneOutcome, clone_outcome::Outcome, wait_vm_request::Until};
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, fs, path::Path};
use tonic::Code;

const FULL: &str = "the pool is as it should be";

/// The vmms that are no VM's.
async fn warm(bench: &Bench, client: &mut Client) -> BTreeSet<u32> {
    let vms = client.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
    let pids: BTreeSet<u32> = vms.iter().map(|vm| vm.pid).collect();
    &bench.processes() - &pids
}

fn made(outcome: &CloneOutcome) -> &v1::Vm {
    match outcome.outcome.as_ref().unwrap() {
        Outcome::Vm(vm) => vm,
        Outcome::Error(error) => panic!("{error}"),
    }
}

fn error(outcome: &CloneOutcome) -> &str {
    match outcome.outcome.as_ref().unwrap() {
        Outcome::Vm(vm) => panic!("made: {vm:?}"),
        Outcome::Error(error) => error,
    }
}

fn end(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// How much less urgent each thread of a process is than others: field 19.
fn nice(pid: u32) -> BTreeSet<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end meanwhile.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats.map(|stat| stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()).collect()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn warm_vms_wait_for_a_family_and_clones_take_them_in_order() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        client.create_vm(vm("slow", "slow")).await.unwrap();
        let parent = ready(&mut client, vm("web", "")).await;
        bench.logged(FULL).await;
        let first = warm(&bench, &mut client).await;
        let guests = *nice(parent.pid).first().unwrap();
        assert_eq!(first.len(), 2, "none for a family that is not ready");
        for pid in &first {
            assert_eq!(nice(*pid), [guests - 10].into(), "its start will go before the guests that run");
        }
        let all = ["pt0", "pt0.0", "pt1", "pt1.0", "pt1.1", "pt1.2"];
        assert_eq!(sorted(interfaces().await), all);
        assert_eq!(
            (bench.warm_folders(), sorted(bench.vm_folders())),
            (2, vec!["slow".into(), "web".into()])
        );
        let members = crate::streams::members(&mut client, "web").await;
        assert_eq!(members.matches("vmid").count(), 1, "{members}");

        // One more than are warm.
        let outcomes = clone(&mut client, "web", 3).await.unwrap();
        assert_eq!(outcomes.iter().map(|made| made.vmid).collect::<Vec<_>>(), [1, 2, 3]);
        let pids: Vec<u32> = outcomes.iter().map(|outcome| made(outcome).pid).collect();
        assert_eq!(pids[..2].iter().copied().collect::<BTreeSet<_>>(), first);
        assert!(!first.contains(&pids[2]));
        // The third was made while the guests of the first two ran: before them, not beside them.
        let log = fs::read_to_string(bench.path("state/vms/web.3/vmm.log")).unwrap();
        assert!(log.contains(&format!("begun at nice {}\n", guests - 10)), "{log}");
        for outcome in &outcomes {
            assert!((1..20_000_000).contains(&outcome.executing_after_us), "{outcome:?}");
            wait(&mut client, &made(outcome).name, Until::Ready).await.unwrap();
            assert_eq!(nice(made(outcome).pid), [guests].into());
        }
        bench.logged(FULL).await;
        assert_eq!(warm(&bench, &mut client).await.len(), 2);
        assert_eq!(clones(&mut client, "web.2", 1).await[0].vmid, 4, "the least that is warm");
        bench.logged(FULL).await;

        for name in ["web", "web.1", "web.2", "web.3", "web.4"] {
            kill(&mut client, name).await;
        }
        assert_eq!(bench.processes().len(), 1, "the slow one");
        assert_eq!(
            (bench.warm_folders(), sorted(interfaces().await)),
            (0, vec!["pt0".into(), "pt0.0".into()])
        );
        assert!(!bench.path(&format!("state/families/{}.json", parent.family)).exists());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_warm_vm_that_dies_is_replaced_under_its_vmid() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        bench.logged(FULL).await;
        for pid in warm(&bench, &mut client).await {
            end(pid);
        }
        for _ in 0..2 {
            let line = bench.logged("a warm vmm died").await;
            assert!(line.contains("stand-in of web."), "with its last words: {line}");
            let how = "the vmm was killed by SIGKILL (sent by somebody, or by the kernel's OOM killer; vmmd did not";
            assert!(line.contains(how), "{line}");
        }
        bench.logged(FULL).await;
        assert_eq!((warm(&bench, &mut client).await.len(), bench.warm_folders()), (2, 2));
        let made = clones(&mut client, "web", 2).await;
        assert_eq!(made.iter().map(|vm| vm.vmid).collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_daemon_that_starts_ends_what_its_killed_predecessor_had_warm() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        clones(&mut client, "web", 1).await;
        bench.logged(FULL).await;
        let before = warm(&bench, &mut client).await;
        bench.stop(Signal::KILL);
        assert!(before.iter().all(|pid| runs(*pid)));

        let mut client = bench.start().await;
        assert!(!before.iter().any(|pid| runs(*pid)));
        bench.logged(FULL).await;
        assert_eq!((warm(&bench, &mut client).await.len(), bench.warm_folders()), (2, 2));
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0", "pt0.1", "pt0.2", "pt0.3"]);
        assert_eq!(clones(&mut client, "web", 1).await[0].vmid, 2, "what was warm only was not given");
        bench.logged(FULL).await;
        // One that is stopped ends them itself.
        let warm = warm(&bench, &mut client).await;
        assert!(bench.stop(Signal::TERM).success());
        assert!(!warm.iter().any(|pid| runs(*pid)));
        assert_eq!((bench.processes().len(), bench.warm_folders()), (3, 0));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_daemon_killed_in_the_middle_of_a_clone_leaves_nothing_half_made() {
    tell(|mut bench| async move {
        bench.warm = 1;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "wait")).await;
        bench.logged(FULL).await;
        let pipe = bench.path("state/vms/web/go");
        make_pipe(&pipe);
        let mut caller = client.clone();
        let call = tokio::spawn(async move { clone(&mut caller, "web", 3).await });
        // The VM is being frozen, and two more are being made warm.
        let path = pipe.clone();
        let go = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(path).unwrap());
        let go = go.await.unwrap();
        bench.stop(Signal::KILL);
        assert!(call.await.unwrap().is_err());
        drop(go);
        fs::remove_file(&pipe).unwrap();
        bench.warm = 0;
        let mut client = bench.start().await;
        assert_eq!((bench.processes().len(), bench.warm_folders()), (1, 0));
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0"]);
        assert_eq!(bench.vm_folders(), ["web"]);
        assert!(wait(&mut client, "web", Until::Ready).await.is_ok());
        // Nor is anything held for clones that were never made.
        granted(&mut client, "web", 256, 256).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_that_has_its_record_and_never_got_its_generation_ends_with_the_reason() {
    tell(|mut bench| async move {
        bench.warm = 1;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        // Said once before the clone: what is said after it is about the next warm VM.
        bench.logged(FULL).await;
        let clone = clones(&mut client, "web", 1).await.remove(0);
        bench.logged(FULL).await;
        let pid = *warm(&bench, &mut client).await.first().unwrap();
        bench.stop(Signal::KILL);
        // As if it had been killed after it wrote the record, and the generation was lost on its
        // way.
        let folder = fs::read_dir(bench.path("state/warm")).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(bench.path("state/vms/web.1/vm.json")).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let start_ticks: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
        (record["name"], record["vmid"], record["ready_after_us"]) =
            ("web.2".into(), 2.into(), serde_json::Value::Null);
        (record["process"]["pid"], record["process"]["start_ticks"]) = (pid.into(), start_ticks.into());
        fs::write(folder.join("vm.json"), record.to_string()).unwrap();
        fs::rename(folder, bench.path("state/vms/web.2")).unwrap();

        bench.warm = 0;
        let mut client = bench.start().await;
        let ended = wait(&mut client, "web.2", Until::Ended).await.unwrap();
        assert!(ended.end_reason.contains("never got the generation"), "{}", ended.end_reason);
        assert!(!runs(pid) && runs(clone.pid));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_clone_that_runs_without_a_record_is_ended() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let pids: Vec<u32> = clones(&mut client, "web", 2).await.iter().map(|vm| vm.pid).collect();
        bench.stop(Signal::KILL);
        // As if it had been killed before the record was written, and before the folder with the
        // record was moved.
        fs::remove_file(bench.path("state/vms/web.1/vm.json")).unwrap();
        for name in ["web.1", "web.2"] {
            fs::rename(bench.path("state/vms").join(name), bench.path("state/warm").join(name)).unwrap();
        }
        let mut client = bench.start().await;
        assert!(!pids.iter().any(|pid| runs(*pid)));
        assert_eq!((bench.warm_folders(), bench.vm_folders()), (0, vec!["web".to_owned()]));
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0"]);
        assert_eq!(clones(&mut client, "web", 1).await[0].vmid, 3, "their vmids are not given again");
    });
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_that_do_not_start_leave_their_siblings_alone_and_nothing_behind() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "refuse=1 die=3")).await;
        bench.logged(FULL).await;
        let outcomes = clone(&mut client, "web", 4).await.unwrap();
        assert_eq!(outcomes.iter().map(|made| made.vmid).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(error(&outcomes[0]).contains("the vmm refused: restore the vCPU: no"), "{outcomes:?}");
        assert!(error(&outcomes[2]).contains("cannot restore, giving up"), "{outcomes:?}");
        assert!(
            error(&outcomes[2]).contains("the vmm was killed by SIGABRT (it found a fault of its own)"),
            "{outcomes:?}"
        );
        for outcome in [&outcomes[1], &outcomes[3]] {
            wait(&mut client, &made(outcome).name, Until::Ready).await.unwrap();
        }
        bench.logged(FULL).await;
        assert_eq!(sorted(bench.vm_folders()), ["web", "web.2", "web.4"]);
        assert_eq!(warm(&bench, &mut client).await.len(), 2);
        let taps = ["pt0", "pt0.0", "pt0.2", "pt0.4", "pt0.5", "pt0.6"];
        assert_eq!(sorted(interfaces().await), taps);
        assert_eq!(bench.memory_files("generation"), 0);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_that_cannot_be_frozen_keeps_its_warm_ones() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        for (name, code) in
            [("busy", Code::Aborted), ("silent", Code::Unavailable), ("hook", Code::FailedPrecondition)]
        {
            let word = match name {
                "busy" => "unprepared=16",
                "silent" => "unprepared=107",
                _ => "unprepared=125",
            };
            ready(&mut client, vm(name, word)).await;
            bench.logged(FULL).await;
            let before = warm(&bench, &mut client).await;
            let status = clone(&mut client, name, 2).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains("the pre-clone hook says no; "), "and what to do: {status}");
            assert_eq!(warm(&bench, &mut client).await, before);
            kill(&mut client, name).await;
        }
        assert!(interfaces().await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_user_may_have_a_vm_of_a_warm_ones_name() {
    tell(|mut bench| async move {
        bench.warm = 2;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        bench.logged(FULL).await;
        let own = ready(&mut client, vm("web.1", "")).await;
        let made = clones(&mut client, "web", 2).await;
        assert_eq!(made.iter().map(|vm| vm.vmid).collect::<Vec<_>>(), [2, 3], "the next ones do as well");
        assert!(runs(own.pid));
        // Its family has warm ones of its own: web.1.1 and web.1.2.
        assert_eq!(clones(&mut client, "web.1", 1).await[0].name, "web.1.1");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_a_first_clone_wrote_helps_the_next_ones_and_later_families() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        clones(&mut client, "web", 1).await;
        bench.logged("its clones' list is known").await;
        clones(&mut client, "web", 1).await;
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        clones(&mut client, "web", 1).await;
        ready(&mut client, vm("other", "")).await;
        clones(&mut client, "other", 1).await;
        ready(&mut client, v1::CreateVmRequest { memory_mib: 128, ..vm("small", "") }).await;
        clones(&mut client, "small", 1).await;
        let known = format!("prefault_list: {:?}\n", [0u64, 4096, 1].map(u64::to_le_bytes).concat());
        for (name, list) in [
            ("web.1", "prefault_list: []\n"),
            ("web.2", known.as_str()),
            ("web.3", known.as_str()),
            ("other.1", known.as_str()),
            ("small.1", "prefault_list: []\n"),
        ] {
            let console = console(&mut client, name).await;
            assert!(console.contains(list), "{name}: {console}");
        }
        for name in ["web", "web.1", "web.2", "web.3"] {
            remove(&mut client, name).await;
        }
    });
}
