//! Clones: a family's members, their numbers, their bridge.

use crate::bench::{Client, get, interfaces, kill, ready, runs, tell, vm, wait};
use patina_proto::v1::{
    self, CloneOutcome, EndKind, VmState, clone_outcome::Outcome, logs_request::Source,
    wait_vm_request::Until,
};
use rustix::process::Signal;
use std::{collections::BTreeSet, fs};
use tonic::{Code, Status};

pub async fn clone(client: &mut Client, name: &str, count: u32) -> Result<Vec<CloneOutcome>, Status> {
    let request = v1::CloneVmRequest { name: name.into(), count, ..Default::default() };
    client.clone_vm(request).await.map(|answer| answer.into_inner().clones)
}

/// The clones, all made and ready.
pub async fn clones(client: &mut Client, name: &str, count: u32) -> Vec<v1::Vm> {
    let mut vms = Vec::new();
    for made in clone(client, name, count).await.unwrap() {
        let Some(Outcome::Vm(vm)) = made.outcome else { panic!("not made: {made:?}") };
        assert_eq!(vm.vmid, made.vmid);
        vms.push(wait(client, &vm.name, Until::Ready).await.unwrap());
    }
    vms
}

pub async fn remove(client: &mut Client, name: &str) {
    client
        .remove_vm(v1::RemoveVmRequest { name: name.into(), force: true, ..Default::default() })
        .await
        .unwrap();
}

pub async fn console(client: &mut Client, name: &str) -> String {
    let mut request = v1::LogsRequest { name: name.into(), ..Default::default() };
    request.set_source(Source::Console);
    let mut log = client.logs(request).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(part) = log.message().await.unwrap() {
        text += &String::from_utf8(part.data).unwrap();
    }
    text
}

pub fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_call_tells_what_its_freeze_took_and_copied() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let request = v1::CloneVmRequest { name: "web".into(), count: 1, ..Default::default() };
        let made = client.clone_vm(request).await.unwrap().into_inner();
        // As the stand-in says: 3 pages into the generation, 5 for the VM itself.
        assert_eq!((made.pause_us, made.copied_kib, made.copied_beside_kib), (250, 12, 20));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_call_that_is_repeated_makes_no_more_clones_not_even_after_a_restart() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let call = async |client: &mut Client, request_id: &str| -> Result<Vec<u32>, Status> {
            let request = v1::CloneVmRequest {
                name: "web".into(),
                count: 2,
                request_id: request_id.into(),
                ..Default::default()
            };
            let made = client.clone_vm(request).await?.into_inner();
            assert!(
                made.clones.iter().all(|clone| matches!(clone.outcome, Some(Outcome::Vm(_)))),
                "{made:?}"
            );
            Ok(made.clones.iter().map(|clone| clone.vmid).collect())
        };
        assert_eq!(call(&mut client, "job 7").await.unwrap(), [1, 2]);
        assert_eq!(call(&mut client, "job 7").await.unwrap(), [1, 2]);
        assert_eq!(call(&mut client, "job 8").await.unwrap(), [3, 4]);
        let long = call(&mut client, &"x".repeat(65)).await.unwrap_err();
        assert_eq!(long.code(), Code::InvalidArgument, "{long}");
        assert!(long.message().contains("request_id"), "{long}");

        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        assert_eq!(call(&mut client, "job 8").await.unwrap(), [3, 4]);
        // Of one of them nothing is known any more.
        kill(&mut client, "web.1").await;
        remove(&mut client, "web.1").await;
        assert_eq!(call(&mut client, "job 7").await.unwrap(), [2]);
        assert_eq!(call(&mut client, "job 9").await.unwrap(), [5, 6]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn three_clones_run_beside_their_parent() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let port = v1::PublishedPort { host_port: 18_080, guest_port: 80, host_address: String::new() };
        let parent = ready(&mut client, v1::CreateVmRequest { ports: vec![port], ..vm("web", "") }).await;
        let made = clones(&mut client, "web", 3).await;
        let names: Vec<_> = made.iter().map(|vm| (vm.name.as_str(), vm.vmid, vm.ip.as_str())).collect();
        let expected = [("web.1", 1, "100.64.0.2"), ("web.2", 2, "100.64.0.3"), ("web.3", 3, "100.64.0.4")];
        assert_eq!(names, expected);
        for vm in &made {
            assert_eq!((&vm.family, &vm.bridge, vm.parent_vmid), (&parent.family, &parent.bridge, Some(0)));
            assert_eq!((vm.vcpus, vm.memory_mib, vm.ports.len()), (parent.vcpus, parent.memory_mib, 0));
            assert!(runs(vm.pid));
        }
        let distinct: BTreeSet<_> =
            made.iter().chain([&parent]).flat_map(|vm| [&vm.uuid, &vm.mac, &vm.tap]).collect();
        assert_eq!(distinct.len(), 12, "each has its own: {distinct:?}");
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0", "pt0.1", "pt0.2", "pt0.3"]);
        assert_eq!(get(&mut client, "web").await, parent, "the parent goes on as it was");

        for name in ["web.1", "web.2", "web.3"] {
            kill(&mut client, name).await;
            assert!(
                console(&mut client, name).await.contains("ram: of web\n"),
                "{name} has the parent's RAM"
            );
        }
        assert!(runs(parent.pid));
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0"]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_cannot_be_cloned_is_refused_with_its_reason() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        client.create_vm(vm("slow", "slow")).await.unwrap();
        ready(&mut client, vm("mute", "mute")).await;
        ready(&mut client, vm("web", "")).await;
        let mut code = async |name, count| clone(&mut client, name, count).await.unwrap_err().code();
        assert_eq!(code("nobody", 1).await, Code::NotFound);
        assert_eq!(code("slow", 1).await, Code::FailedPrecondition);
        assert_eq!(code("web", 257).await, Code::InvalidArgument);
        assert_eq!(code("mute", 1).await, Code::Unavailable);
        // Another disk under a running guest: refused before the VM is touched.
        fs::rename(bench.path("rootfs"), bench.path("kept")).unwrap();
        fs::write(bench.path("rootfs"), b"another").unwrap();
        let status = clone(&mut client, "web", 1).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("put the old file back"), "{}", status.message());
        fs::rename(bench.path("kept"), bench.path("rootfs")).unwrap();
        assert_eq!(clones(&mut client, "web", 0).await.len(), 1);
        let grandchild = &clones(&mut client, "web.1", 1).await[0];
        assert_eq!(
            (grandchild.name.as_str(), grandchild.vmid, grandchild.parent_vmid),
            ("web.2", 2, Some(1))
        );
        assert_eq!(bench.vm_folders().len(), 5);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_clone_that_fails_leaves_its_siblings_alone_and_nothing_behind() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        // One name is another VM's, so that no clone gets its vmid; and one folder is in the way.
        let other = ready(&mut client, vm("web.1", "")).await;
        fs::create_dir(bench.path("state/vms/web.4")).unwrap();
        let outcomes = clone(&mut client, "web", 4).await.unwrap();
        assert_eq!(outcomes.iter().map(|made| made.vmid).collect::<Vec<_>>(), [2, 3, 4, 5]);
        let errors: Vec<_> = outcomes
            .iter()
            .map(|made| match made.outcome.as_ref().unwrap() {
                Outcome::Vm(_) => "",
                Outcome::Error(error) => error.as_str(),
            })
            .collect();
        assert!(errors[2].contains("move folder") && errors[2].contains("web.4"), "{errors:?}");
        assert_eq!((errors[0], errors[1], errors[3]), ("", "", ""));
        assert_eq!(get(&mut client, "web.1").await, other);
        let taps = ["pt0", "pt0.0", "pt0.2", "pt0.3", "pt0.5", "pt1", "pt1.0"];
        assert_eq!(sorted(interfaces().await), taps);

        // What failed does not hold the bridge.
        for name in ["web", "web.2", "web.3", "web.5"] {
            kill(&mut client, name).await;
        }
        assert_eq!(sorted(interfaces().await), ["pt1", "pt1.0"]);
        assert_eq!((bench.processes().len(), bench.warm_folders()), (1, 0));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_outlive_their_parent_and_the_last_of_the_family_takes_the_bridge() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let parent = ready(&mut client, vm("web", "")).await;
        clones(&mut client, "web", 2).await;
        let file = bench.path(&format!("state/families/{}.json", parent.family));
        assert!(file.exists());
        assert_eq!(bench.memory_files("generation"), 0, "the clones alone hold it");
        remove(&mut client, "web").await;
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.1", "pt0.2"]);
        // Named after a master that is gone.
        assert_eq!(clones(&mut client, "web.1", 1).await[0].name, "web.3");
        for name in ["web.1", "web.2"] {
            kill(&mut client, name).await;
        }
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.3"]);
        kill(&mut client, "web.3").await;
        assert!(interfaces().await.is_empty() && !file.exists());
        let ended = clone(&mut client, "web.1", 1).await.unwrap_err();
        assert_eq!(ended.code(), Code::FailedPrecondition);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_killed_daemon_is_followed_by_one_that_takes_the_whole_family_over() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let before = clones(&mut client, "web", 3).await;
        // The greatest vmid leaves no record, and its parent none either.
        remove(&mut client, "web.3").await;
        remove(&mut client, "web").await;
        bench.stop(Signal::KILL);
        // As of a family of which no VM is left.
        let lost = bench.path("state/families/00000000-0000-0000-0000-000000000000.json");
        fs::write(&lost, r#"{"format":1,"next_vmid":3}"#).unwrap();

        let mut client = bench.start().await;
        assert!(!lost.exists());
        for vm in &before[..2] {
            assert_eq!(&wait(&mut client, &vm.name, Until::Ready).await.unwrap(), vm);
        }
        let next = &clones(&mut client, "web.2", 1).await[0];
        assert_eq!((next.name.as_str(), next.parent_vmid), ("web.4", Some(2)), "3 is not given again");
        let ended = kill(&mut client, "web.1").await;
        assert_eq!((ended.state(), ended.end_kind()), (VmState::Ended, EndKind::Killed));
        assert!(!runs(before[0].pid) && runs(before[1].pid));
        for name in ["web.2", "web.4"] {
            kill(&mut client, name).await;
        }
        assert!(interfaces().await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn many_clones_start_side_by_side_and_all_are_members() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let made = clones(&mut client, "web", 61).await;
        assert_eq!(made.iter().map(|vm| vm.vmid).collect::<Vec<_>>(), (1..=61).collect::<Vec<_>>());
        let members = crate::streams::members(&mut client, "web.61").await;
        assert_eq!(members.matches("\"state\":\"ready\"").count(), 62, "{members}");
        for vm in &made {
            remove(&mut client, &vm.name).await;
        }
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0"]);
    });
}
