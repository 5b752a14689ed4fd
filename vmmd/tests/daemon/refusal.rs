//! What cannot be is refused with its reason, and leaves nothing.

use crate::bench::{Bench, Client, interfaces, ready, tell, vm};
use patina_proto::v1;
use std::{fs, process::Stdio};
use tonic::{Code, Status};
use tonic_types::StatusExt;

async fn refused(client: &mut Client, request: v1::CreateVmRequest) -> Status {
    client.create_vm(request).await.unwrap_err()
}

async fn assert_nothing_left(bench: &Bench) {
    assert!(bench.vm_folders().is_empty(), "{:?}", bench.vm_folders());
    assert!(interfaces().await.is_empty());
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn images_that_cannot_be_used_are_named() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        fs::write(bench.path("text"), "not a kernel").unwrap();
        for (kernel, says) in
            [("missing", "No such file"), ("text", "neither an x86-64 ELF"), (".", "not a regular")]
        {
            let kernel = bench.path(kernel).display().to_string();
            // A path that leads somewhere is named as what it leads to.
            let named = fs::canonicalize(&kernel).map_or(kernel.clone(), |path| path.display().to_string());
            let status =
                refused(&mut client, v1::CreateVmRequest { kernel: kernel.clone(), ..vm("a", "") }).await;
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(says) && status.message().contains(&named), "{status:?}");
            assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "kernel");
        }
        let status =
            refused(&mut client, v1::CreateVmRequest { vcpus: 17, memory_mib: 1, ..vm("a", "") }).await;
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 2);
        assert_nothing_left(&bench).await;
        ready(&mut client, vm("a", "")).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_taken_port_undoes_the_vm() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host_port = taken.local_addr().unwrap().port().into();
        let port = v1::PublishedPort { host_port, guest_port: 80, host_address: String::new() };
        let request = v1::CreateVmRequest { ports: vec![port], ..vm("a", "") };
        let status = refused(&mut client, request.clone()).await;
        assert_eq!(status.code(), Code::AlreadyExists);
        assert!(status.message().contains(&format!("127.0.0.1:{host_port}")), "{}", status.message());
        assert_nothing_left(&bench).await;
        drop(taken);
        ready(&mut client, request).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmm_that_does_not_start_undoes_the_vm() {
    tell(|mut bench| async move {
        let program = bench.path("kernel");
        bench.vmm = program.clone();
        let mut client = bench.start().await;
        let status = refused(&mut client, vm("a", "")).await;
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains(program.to_str().unwrap()), "{}", status.message());
        assert_nothing_left(&bench).await;
        // A folder where the VM's own is to be: a step after the bridge fails.
        fs::create_dir(bench.path("state/vms/a")).unwrap();
        let status = refused(&mut client, vm("a", "")).await;
        assert_eq!(status.code(), Code::Internal);
        fs::remove_dir(bench.path("state/vms/a")).unwrap();
        assert_nothing_left(&bench).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn of_many_who_want_one_name_one_gets_it() {
    tell(|mut bench| async move {
        let client = bench.start().await;
        let ask = || {
            let mut client = client.clone();
            async move { client.create_vm(vm("one", "")).await.map_err(|status| status.code()) }
        };
        let answers = futures::future::join_all((0..8).map(|_| ask())).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert_eq!(answers.iter().filter(|a| matches!(a, Err(Code::AlreadyExists))).count(), 7);
        assert_eq!(interfaces().await.len(), 2, "one bridge, one tap");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn two_daemons_share_a_machine_but_neither_a_socket_nor_a_state() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let says = |state: &str, socket: &str| {
            let output = bench.command(state, socket).stderr(Stdio::piped()).output().unwrap();
            assert!(!output.status.success());
            String::from_utf8(output.stderr).unwrap()
        };
        let text = says("other", "vmmd.sock");
        assert!(text.contains("another process (pid") && text.contains("--listen"), "{text}");
        let text = says("state", "other.sock");
        assert!(text.contains("another vmmd (pid") && text.contains("--state-dir"), "{text}");

        let (mut other, mut theirs) = bench.start_another("other", "other.sock").await;
        let ours = ready(&mut client, vm("a", "")).await;
        let made = ready(&mut theirs, vm("a", "")).await;
        assert_ne!((&ours.bridge, &ours.ip), (&made.bridge, &made.ip));
        theirs
            .remove_vm(v1::RemoveVmRequest { name: "a".into(), force: true, ..Default::default() })
            .await
            .unwrap();
        assert_eq!(interfaces().await, [ours.bridge, ours.tap]);
        other.kill().unwrap();
        other.wait().unwrap();
    });
}
