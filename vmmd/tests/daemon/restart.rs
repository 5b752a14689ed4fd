//! VMs outlive their daemon.

use crate::bench::{get, interfaces, kill, ready, runs, tell, vm, wait};
use patina_proto::v1::{self, EndKind, VmState, wait_vm_request::Until};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, net::TcpStream};

fn port() -> v1::PublishedPort {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = probe.local_addr().unwrap().port().into();
    v1::PublishedPort { host_port, guest_port: 80, host_address: "127.0.0.1".into() }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_killed_daemon_is_followed_by_one_that_takes_over() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let port = port();
        let request = v1::CreateVmRequest { ports: vec![port.clone()], ..vm("web", "") };
        let before = ready(&mut client, request).await;
        assert!(!bench.stop(Signal::KILL).success());
        assert!(runs(before.pid));
        let published = format!("127.0.0.1:{}", port.host_port);
        assert!(TcpStream::connect(&published).is_err());

        let mut client = bench.start().await;
        assert_eq!(wait(&mut client, "web", Until::Ready).await.unwrap(), before);
        TcpStream::connect(&published).unwrap();
        let ended = kill(&mut client, "web").await;
        assert_eq!(ended.end_kind(), EndKind::Killed);
        assert!(!runs(before.pid));
        assert!(interfaces().await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_stopped_daemon_leaves_vms_running_and_its_socket_gone() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let before = ready(&mut client, vm("web", "")).await;
        assert!(bench.stop(Signal::TERM).success());
        assert!(runs(before.pid));
        assert!(!bench.path("vmmd.sock").exists());
        let mut client = bench.start().await;
        assert_eq!(get(&mut client, "web").await.pid, before.pid);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_end_that_nobody_saw_is_recorded() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let first = ready(&mut client, vm("first", "")).await;
        let second = ready(&mut client, vm("second", "")).await;
        bench.stop(Signal::KILL);
        for pid in [first.pid, second.pid] {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        // As a vmm would have left it.
        fs::write(bench.path("state/vms/second/end.json"), r#"{"kind":"panicked","reason":"oops"}"#).unwrap();
        while runs(first.pid) || runs(second.pid) {
            tokio::task::yield_now().await;
        }
        let mut client = bench.start().await;
        let first = get(&mut client, "first").await;
        assert_eq!((first.state(), first.end_kind()), (VmState::Ended, EndKind::VmmDied));
        let second = get(&mut client, "second").await;
        assert_eq!((second.end_kind(), second.end_reason.as_str()), (EndKind::Panicked, "oops"));
        assert!(interfaces().await.is_empty(), "the bridges of both are reaped");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_is_half_made_is_reaped() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let lost = ready(&mut client, vm("lost", "")).await;
        let kept = ready(&mut client, vm("kept", "")).await;
        bench.stop(Signal::KILL);
        fs::remove_file(bench.path("state/vms/lost/vm.json")).unwrap();
        fs::create_dir(bench.path("state/vms/empty")).unwrap();
        fs::create_dir(bench.path("state/vms/torn")).unwrap();
        fs::write(bench.path("state/vms/torn/vm.json"), "{").unwrap();
        let mut client = bench.start().await;
        assert!(!runs(lost.pid) && runs(kept.pid));
        let mut folders = bench.vm_folders();
        folders.sort();
        assert_eq!(folders, ["kept", "torn"], "what does not read is left for a person");
        assert_eq!(interfaces().await, [kept.bridge, kept.tap]);
        assert!(client.create_vm(vm("torn", "")).await.is_err());
    });
}
