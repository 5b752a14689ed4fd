//! A VM's life, and its ends.

use crate::{
    bench::{get, interfaces, kill, ready, runs, tell, vm, wait},
    clones::{clone, clones, sorted},
    steps::until,
};
use patina_proto::v1::{self, EndKind, VmState, clone_outcome::Outcome, wait_vm_request::Until};
use rustix::process::Signal;
use std::{
    fs::{self, File},
    process::Stdio,
    time::{Duration, Instant},
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_is_made_used_killed_and_removed_and_nothing_is_left() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let made = ready(&mut client, vm("web", "")).await;
        assert_eq!(
            (made.ip.as_str(), made.gateway.as_str(), made.prefix),
            ("100.64.0.1", "100.64.15.254", 20)
        );
        assert_eq!((made.bridge.as_str(), made.tap.as_str(), made.vmid), ("pt0", "pt0.0", 0));
        assert_eq!((made.vcpus, made.memory_mib, made.ready_after_us), (1, 256, 1234));
        assert!(runs(made.pid));
        assert_eq!(interfaces().await, ["pt0", "pt0.0"]);
        let error = client
            .remove_vm(v1::RemoveVmRequest { name: "web".into(), force: false, ..Default::default() })
            .await;
        assert_eq!(error.unwrap_err().code(), Code::FailedPrecondition);

        let ended = kill(&mut client, "web").await;
        assert_eq!((ended.state(), ended.end_kind(), ended.pid), (VmState::Ended, EndKind::Killed, 0));
        assert_eq!(ended.end_reason, "killed by an operator");
        assert!(!runs(made.pid));
        assert!(interfaces().await.is_empty());
        assert!(!bench.path("state/vms/web/vmm.sock").exists());
        assert_eq!(kill(&mut client, "web").await, ended, "a second kill changes nothing");

        client
            .remove_vm(v1::RemoveVmRequest { name: "web".into(), force: false, ..Default::default() })
            .await
            .unwrap();
        assert!(bench.vm_folders().is_empty());
        let error = client.get_vm(v1::GetVmRequest { name: "web".into() }).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn every_end_is_recorded_with_its_reason() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        client.create_vm(vm("off", "off")).await.unwrap();
        client.create_vm(vm("crash", "crash")).await.unwrap();
        let off = wait(&mut client, "off", Until::Ended).await.unwrap();
        assert_eq!((off.end_kind(), off.end_reason.as_str()), (EndKind::PoweredOff, "the guest powered off"));
        let crash = wait(&mut client, "crash", Until::Ended).await.unwrap();
        assert_eq!(crash.end_kind(), EndKind::VmmDied);
        assert!(crash.end_reason.contains("the vmm was killed by SIGABRT (it found"), "{}", crash.end_reason);
        assert!(crash.end_reason.contains("about to abort"), "{}", crash.end_reason);
        let error = wait(&mut client, "crash", Until::Ready).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(interfaces().await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmm_that_does_not_listen_is_killed_all_the_same() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let made = ready(&mut client, vm("deaf", "deaf")).await;
        let before = Instant::now();
        let ended = kill(&mut client, "deaf").await;
        assert_eq!(ended.end_kind(), EndKind::Killed);
        assert!(before.elapsed() < Duration::from_secs(10) && !runs(made.pid));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn families_have_networks_of_their_own_and_numbers_are_used_again() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let first = ready(&mut client, vm("a", "")).await;
        let second = ready(&mut client, vm("", "")).await;
        assert!(second.name.contains('-'), "a name was chosen: {}", second.name);
        assert_ne!(first.family, second.family);
        assert_eq!((second.bridge.as_str(), second.ip.as_str()), ("pt1", "100.64.16.1"));
        client
            .remove_vm(v1::RemoveVmRequest { name: "a".into(), force: true, ..Default::default() })
            .await
            .unwrap();
        assert_eq!(ready(&mut client, vm("c", "")).await.bridge, "pt0");

        let page = |page_token: &str| v1::ListVmsRequest { page_size: 1, page_token: page_token.into() };
        let one = client.list_vms(page("")).await.unwrap().into_inner();
        assert_eq!((one.vms.len(), one.next_page_token.is_empty()), (1, false));
        let two = client.list_vms(page(&one.next_page_token)).await.unwrap().into_inner();
        assert_ne!(one.vms[0].name, two.vms[0].name);
        assert!(two.next_page_token.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_wait_ends_when_its_time_is_over() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        client.create_vm(vm("slow", "slow")).await.unwrap();
        let mut request = v1::WaitVmRequest { name: "slow".into(), timeout_ms: 50, ..Default::default() };
        request.set_until(Until::Ready);
        let error = client.wait_vm(request).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert_eq!(get(&mut client, "slow").await.state(), VmState::Booting);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_daemon_says_what_it_is() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let host = client.get_host(v1::GetHostRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (host.network.as_str(), host.state_dir.clone()),
            ("100.64.0.0/10", bench.path("state").display().to_string())
        );
        assert!(host.kvm() != v1::KvmKind::None && host.cpus > 0 && host.memory_mib > 0);

        let channel = bench.channel("vmmd.sock").await;
        for service in ["", "patina.v1.Vmmd", "patina.v1.Scheduler"] {
            let request = HealthCheckRequest { service: service.into() };
            let health = HealthClient::new(channel.clone()).check(request).await.expect(service).into_inner();
            assert_eq!(health.status(), ServingStatus::Serving);
        }

        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { message_request, ..Default::default() };
        let mut reflection = ServerReflectionClient::new(channel);
        let mut answers =
            reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        let Some(MessageResponse::ListServicesResponse(list)) =
            answers.message().await.unwrap().unwrap().message_response
        else {
            panic!("no list of services")
        };
        assert!(list.service.iter().any(|service| service.name == "patina.v1.Vmmd"));
    });
}

fn oom_score(pid: u32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

/// Started with a score of its own: what is found is what vmmd has set, and not what it had from
/// its parent.
#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_are_taken_first_when_memory_is_short_and_the_daemon_last() {
    const GIVEN: i32 = 300;
    tell(|mut bench| async move {
        let own = "/proc/self/oom_score_adj";
        let before = fs::read_to_string(own).unwrap();
        // Whoever may set the daemon's score: not every container may.
        let may = fs::write(own, "-900").is_ok();
        fs::write(own, GIVEN.to_string()).unwrap();
        bench.warm = 1;
        let mut client = bench.start().await;
        fs::write(own, before.trim()).unwrap();
        match may {
            true => assert_eq!(oom_score(bench.pid()), -900),
            false => {
                bench.logged("OOM killer may take vmmd first: run it as root, or set OOMScoreAdjust").await;
                assert_eq!(oom_score(bench.pid()), GIVEN, "it goes on as it was");
            }
        }
        let master = ready(&mut client, vm("web", "")).await;
        let clone = clones(&mut client, "web", 1).await.remove(0);
        bench.logged("the pool is as it should be").await;
        let warm = || -> Vec<u32> {
            bench.processes().into_iter().filter(|pid| ![master.pid, clone.pid].contains(pid)).collect()
        };
        // That line of the log may be the one of before the clone.
        until("the pool is full again", async || warm().len() == 1).await;
        let warm = warm();
        assert_eq!((oom_score(master.pid), oom_score(clone.pid)), (0, 500));
        assert_eq!(warm.iter().map(|pid| oom_score(*pid)).collect::<Vec<_>>(), [500]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_removal_goes_on_and_holds_its_name_when_nobody_waits_for_it_any_more() {
    tell(|mut bench| async move {
        const MANY: usize = 20_000;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        kill(&mut client, "web").await;
        // So much is to be deleted that a call can be given up while it is.
        let folder = bench.path("state/vms/web");
        fs::create_dir(folder.join("many")).unwrap();
        (0..MANY).for_each(|number| drop(File::create(folder.join(format!("many/{number}"))).unwrap()));
        let mut caller = client.clone();
        let call = tokio::spawn(async move {
            caller.remove_vm(v1::RemoveVmRequest { name: "web".into(), ..Default::default() }).await
        });
        while client.get_vm(v1::GetVmRequest { name: "web".into() }).await.is_ok() {}
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled(), "it is given up before it is answered");
        let mut refused = 0;
        let made = loop {
            match client.create_vm(vm("web", "")).await {
                Ok(made) => break made.into_inner(),
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "the name is held: {status}");
                    refused += 1;
                }
            }
        };
        assert!(refused > 0 && !folder.join("many").exists(), "{refused}");
        assert!(runs(made.pid));
        bench.logged("removed").await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_whose_files_cannot_be_deleted_stays_and_can_be_removed_later() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let ended = kill(&mut client, "web").await;
        let busy = bench.path("state/vms/web/busy");
        fs::create_dir(&busy).unwrap();
        let mount = |program: &str, words: &[&str]| {
            let done = std::process::Command::new(program).args(words).arg(&busy).status().unwrap();
            assert!(done.success());
        };
        mount("mount", &["-t", "tmpfs", "tmpfs"]);
        let remove = v1::RemoveVmRequest { name: "web".into(), ..Default::default() };
        let status = client.remove_vm(remove.clone()).await.unwrap_err();
        assert!(status.message().contains("state/vms/web/busy"), "{status}");
        assert_eq!(get(&mut client, "web").await, ended);

        // The next vmmd knows it, too.
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        assert_eq!(get(&mut client, "web").await, ended);
        assert_eq!(client.remove_vm(remove.clone()).await.unwrap_err().code(), status.code());
        mount("umount", &[]);
        client.remove_vm(remove).await.unwrap();
        assert!(bench.vm_folders().is_empty());
        ready(&mut client, vm("web", "")).await;
    });
}

/// What a jailed vmm is killed by when a library of its does something for the first time.
#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmm_that_its_system_call_filter_kills_is_told_by_name_and_takes_its_vm_only() {
    const HOW: &str = "was killed by SIGSYS (a system call that its jail does not allow)";
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        // The vmm of one clone: its parent and its sibling go on.
        let parent = ready(&mut client, vm("web", "forbidden=1")).await;
        let outcomes = clone(&mut client, "web", 2).await.unwrap();
        let Some(Outcome::Error(error)) = &outcomes[0].outcome else { panic!("{outcomes:?}") };
        assert!(error.contains(HOW), "{error}");
        let Some(Outcome::Vm(sibling)) = &outcomes[1].outcome else { panic!("{outcomes:?}") };
        wait(&mut client, &sibling.name, Until::Ready).await.unwrap();
        assert_eq!(get(&mut client, "web").await, parent);
        assert_eq!(clones(&mut client, "web", 1).await[0].vmid, 3, "it can be cloned as before");
        assert_eq!(sorted(bench.vm_folders()), ["web", "web.2", "web.3"], "nothing is left of it");

        // One that runs.
        client.create_vm(vm("late", "forbidden")).await.unwrap();
        let late = wait(&mut client, "late", Until::Ended).await.unwrap();
        assert_eq!(late.end_kind(), EndKind::VmmDied);
        assert!(late.end_reason.contains(HOW), "{}", late.end_reason);

        // That of the parent itself, as it freezes its VM.
        ready(&mut client, vm("own", "forbidden-freeze")).await;
        let status = clone(&mut client, "own", 1).await.unwrap_err();
        assert_eq!(wait(&mut client, "own", Until::Ended).await.unwrap().end_kind(), EndKind::VmmDied);
        let own = get(&mut client, "own").await;
        assert!(own.end_reason.contains(HOW), "{}", own.end_reason);
        assert!(status.message().contains(HOW), "{status}");
        assert!(runs(parent.pid) && runs(sibling.pid));
    });
}

/// A full disk, and a pipe whose reader has ended: what is logged is lost, and vmmd and its VMs go
/// on.
#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_log_that_cannot_be_written_ends_neither_vmmd_nor_a_vm() {
    tell(|mut bench| async move {
        for closed in [false, true] {
            let log = match closed {
                true => Stdio::from(std::io::pipe().unwrap().1),
                false => Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
            };
            let mut client = bench.start_with_log(log).await;
            let made = ready(&mut client, vm("web", "")).await;
            assert!(runs(made.pid));
            kill(&mut client, "web").await;
            let removed =
                client.remove_vm(v1::RemoveVmRequest { name: "web".into(), ..Default::default() }).await;
            removed.unwrap();
            assert!(bench.stop(Signal::TERM).success());
        }
    });
}
