//! vmmd and vmm processes of other releases.

use crate::{
    bench::{get, kill, ready, tell, vm},
    clones::{clone, clones},
    steps::{Hold, until},
    streams::{members, run},
};
use patina_proto::v1::{EndKind, VmState};
use rustix::process::Signal;
use tonic::Code;
use tonic_types::StatusExt as _;

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_older_vmm_is_taken_over_and_runs_on_and_is_not_cloned() {
    tell(|mut bench| async move {
        bench.warm = 1;
        let mut client = bench.start().await;
        // Version 0 says no hello at all.
        let names = ["older", "version=1"].map(|words| (words.replace('=', "-"), words));
        let mut pids = Vec::new();
        for (name, words) in &names {
            pids.push(ready(&mut client, vm(name, words)).await.pid);
        }
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        for ((name, _), pid) in names.iter().zip(pids) {
            until("its version is known", async || !get(&mut client.clone(), name).await.problem.is_empty())
                .await;
            let after = get(&mut client, name).await;
            assert_eq!((after.state(), after.pid), (VmState::Ready, pid));
            for words in ["older release", "can be used and killed, but not cloned", "boot it anew"] {
                assert!(after.problem.contains(words), "{}", after.problem);
            }
            let refused = clone(&mut client, name, 1).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert_eq!(refused.get_details_error_info().unwrap().reason, "VMM_OLDER");
            assert_eq!(run(&mut client, name, &["echo", "here"]).await, ("here".into(), 0));
            assert_eq!(kill(&mut client, name).await.end_kind(), EndKind::Killed);
        }
        until("no process is left, and none was made warm for them", async || bench.processes().is_empty())
            .await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_newer_vmm_that_is_taken_over_runs_on_is_shown_and_is_not_cloned() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let before = ready(&mut client, vm("web", "version=9 strange")).await;
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        until("its version is known", async || !get(&mut client.clone(), "web").await.problem.is_empty())
            .await;
        let after = get(&mut client, "web").await;
        assert_eq!((after.state(), after.pid), (VmState::Ready, before.pid));
        let ours = format!("only version {}", patina_control::VERSION);
        for words in ["version 9", &ours, "not cloned"] {
            assert!(after.problem.contains(words), "{}", after.problem);
        }
        let refused = clone(&mut client, "web", 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("version 9"), "{refused}");
        assert_eq!(refused.get_details_error_info().unwrap().reason, "VMM_NEWER");
        // What it has in common with us works.
        assert_eq!(run(&mut client, "web", &["echo", "here"]).await, ("here".into(), 0));
        assert!(members(&mut client, "web").await.contains("100.64.0.1"));
        let ended = kill(&mut client, "web").await;
        assert_eq!((ended.end_kind(), ended.problem.as_str()), (EndKind::Killed, ""));
    });
}

/// Nothing is asked of it that it may not know; who asks for the VM itself waits for nothing.
#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmm_that_is_taken_over_is_left_alone_until_its_version_is_known() {
    tell(|mut bench| async move {
        bench.warm = 1;
        let hold = Hold::new(bench.path("hello"));
        let words = format!("version=9 hold-hello={}", bench.path("hello").display());
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &words)).await;
        // That it is ready is told before it is written down.
        let record = bench.path("state/vms/web/vm.json");
        until("its record says that it is ready", async || {
            std::fs::read_to_string(&record).unwrap().contains(r#""ready_after_us": 1234"#)
        })
        .await;
        bench.stop(Signal::KILL);
        hold.lock();
        let mut client = bench.start().await;
        assert_eq!(hold.reached(1).await, [0]);
        let web = get(&mut client, "web").await;
        assert_eq!((web.state(), web.problem.as_str()), (VmState::Ready, ""));
        let mut caller = client.clone();
        let (refused, ()) = tokio::join!(clone(&mut caller, "web", 1), async {
            // It has vmmd's answer to a call that came after that for the clone.
            assert_eq!(get(&mut client, "web").await.state(), VmState::Ready);
            hold.unlock();
        });
        assert_eq!(refused.unwrap_err().get_details_error_info().unwrap().reason, "VMM_NEWER");
        assert_eq!(bench.processes().len(), 1, "no warm VM was made for it");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_a_vmm_says_that_vmmd_does_not_know_is_passed_over() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let web = ready(&mut client, vm("web", "strange")).await;
        assert_eq!(web.problem, "");
        assert!(members(&mut client, "web").await.contains("100.64.0.1"));
        clones(&mut client, "web", 1).await;
        bench.logged("is not understood and passed over").await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmm_program_that_was_replaced_by_a_newer_one_gets_no_generation() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("replaced", "")).await;
        let made = clone(&mut client, "replaced", 1).await;
        let told = format!("{made:?}");
        assert!(told.contains("version 9") && told.contains("restart vmmd"), "{told}");
        assert_eq!(get(&mut client, "replaced").await.state(), VmState::Ready, "the parent goes on");
        assert_eq!(bench.processes().len(), 1, "the newer process is ended");
    });
}
