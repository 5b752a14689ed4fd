//! Two daemons with one host id: a state folder was copied.

use crate::{
    bench::{Bench, get, ready, tell, vm},
    clones::clones,
    steps::until,
    tickets::two_clones,
};
use patina_proto::v1::{GetHostRequest, HostState, HostStatus, ListHostsRequest, VmState};
use std::{
    fs::{self, File},
    process::{Child, Command},
};

/// Starts a scheduler, has a vmmd register there, stops it and copies its state.
async fn copy_a_member(bench: &mut Bench) {
    bench.start_scheduler().await;
    drop(bench.start().await);
    bench.stop(rustix::process::Signal::TERM);
    let copied = Command::new("cp").arg("-a").args([bench.path("state"), bench.path("copy")]).status();
    assert!(copied.unwrap().success());
}

/// A vmmd on that copy, and where it logs.
async fn start_copy(bench: &Bench) -> Child {
    let mut command = bench.command("copy", "copy.sock");
    command.stderr(File::create(bench.path("copy.log")).unwrap());
    bench.spawn(&mut command).await
}

async fn copy_logs(bench: &Bench, text: &str) {
    let log = bench.path("copy.log");
    until(text, async || fs::read_to_string(&log).unwrap().contains(text)).await;
}

async fn hosts(bench: &Bench) -> Vec<HostStatus> {
    let mut scheduler = bench.scheduler().await;
    scheduler.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn of_two_daemons_with_one_id_the_second_is_refused_and_the_first_goes_on() {
    tell(|mut bench| async move {
        copy_a_member(&mut bench).await;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        two_clones(&mut client).await;
        let before = hosts(&bench).await;
        let mut second = start_copy(&bench).await;
        copy_logs(&bench, "another host has this host's id").await;
        copy_logs(&bench, "stop vmmd here, delete the file host-id in its state folder").await;
        let epoch = |hosts: &[HostStatus]| hosts.iter().map(|host| host.epoch).collect::<Vec<_>>();
        let after = hosts(&bench).await;
        assert_eq!((after.len(), epoch(&after)), (1, epoch(&before)), "it is registered as before");
        for name in ["web.1", "web.2"] {
            assert_eq!(get(&mut client, name).await.state(), VmState::Ready);
        }
        assert_eq!(clones(&mut client, "web", 1).await.len(), 1);
        second.kill().unwrap();
        second.wait().unwrap();
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_state_folder_on_another_machine_is_another_host() {
    tell(|mut bench| async move {
        copy_a_member(&mut bench).await;
        // As if it had been used on another machine so far.
        let id = fs::read_to_string(bench.path("copy/host-id")).unwrap();
        let id = id.lines().next().unwrap().to_owned();
        fs::write(bench.path("copy/host-id"), format!("{id}\nanother machine\n")).unwrap();
        fs::write(bench.path("copy/boot"), "another boot\n").unwrap();
        let mut client = bench.start().await;
        let mut second = start_copy(&bench).await;
        copy_logs(&bench, "the state folder was copied from another machine").await;
        until("both are up", async || {
            let hosts = hosts(&bench).await;
            hosts.len() == 2 && hosts.iter().all(|host| host.state() == HostState::Up)
        })
        .await;
        assert_eq!(client.get_host(GetHostRequest {}).await.unwrap().into_inner().id, id);
        second.kill().unwrap();
        second.wait().unwrap();
    });
}
