//! Snapshots: what is made of them, what is refused, and that nothing is left of what fails.

use crate::{
    bench::{Bench, Client, get, interfaces, kill, ready, runs, tell, vm, wait},
    clones::{clones, console, remove, sorted},
    steps::{Hold, until},
    streams::run as run_in,
};
use patina_proto::v1::{
    self, EndKind, RestoreSnapshotRequest, Snapshot, VmState, clone_outcome::Outcome, wait_vm_request::Until,
};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

pub async fn create(
    client: &mut Client,
    name: &str,
    path: &str,
) -> Result<v1::CreateSnapshotResponse, Status> {
    let request = v1::CreateSnapshotRequest { name: name.into(), path: path.into() };
    client.create_snapshot(request).await.map(tonic::Response::into_inner)
}

pub async fn restore(client: &mut Client, request: RestoreSnapshotRequest) -> Result<Vec<v1::Vm>, Status> {
    let made = client.restore_snapshot(request).await?.into_inner().vms;
    let mut vms = Vec::new();
    for made in made {
        let Some(Outcome::Vm(vm)) = made.outcome else { panic!("not made: {made:?}") };
        assert_eq!(vm.vmid, made.vmid);
        vms.push(wait(client, &vm.name, Until::Ready).await.unwrap());
    }
    Ok(vms)
}

/// Restores three VMs `new` from `base`. The master has come to where it is held.
pub async fn restore_held(client: &Client, hold: &Hold) -> JoinHandle<Result<Vec<v1::Vm>, Status>> {
    hold.lock();
    let mut caller = client.clone();
    let call = tokio::spawn(async move {
        restore(&mut caller, RestoreSnapshotRequest { name: "new".into(), count: 3, ..from("base") }).await
    });
    assert_eq!(hold.reached(1).await, [0], "the master goes first");
    call
}

pub fn from(path: &str) -> RestoreSnapshotRequest {
    RestoreSnapshotRequest { path: path.into(), ..Default::default() }
}

async fn show(client: &mut Client, path: &str) -> Result<Snapshot, Status> {
    let request = v1::GetSnapshotRequest { path: path.into() };
    client.get_snapshot(request).await.map(tonic::Response::into_inner)
}

pub async fn list(client: &mut Client, directory: &str) -> Vec<Snapshot> {
    let request = v1::ListSnapshotsRequest { directory: directory.into(), ..Default::default() };
    client.list_snapshots(request).await.unwrap().into_inner().snapshots
}

async fn verify(client: &mut Client, path: &str) -> Result<v1::VerifySnapshotResponse, Status> {
    let request = v1::VerifySnapshotRequest { path: path.into() };
    client.verify_snapshot(request).await.map(tonic::Response::into_inner)
}

async fn delete(client: &mut Client, path: &str) -> Result<(), Status> {
    client.remove_snapshot(v1::RemoveSnapshotRequest { path: path.into() }).await.map(drop)
}

/// What stands in a folder, hidden files included.
pub fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    sorted(names.collect())
}

/// The file of a snapshot's layer.
pub fn layer_file(place: &Path) -> PathBuf {
    let is_layer = |name: &String| name.starts_with("layer-");
    place.join(names(place).into_iter().find(is_layer).unwrap())
}

/// That nothing but these VMs is there: neither processes nor folders nor interfaces.
pub async fn only(bench: &Bench, client: &mut Client, vms: &[&str]) {
    let all = client.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
    assert_eq!(all.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), vms);
    let mut expected = Vec::new();
    for vm in &all {
        expected.extend([vm.bridge.clone(), vm.tap.clone()]);
    }
    expected.sort();
    expected.dedup();
    until("processes that are no VM's go", async || bench.processes().len() == vms.len()).await;
    until("interfaces that are no VM's go", async || sorted(interfaces().await) == expected).await;
    assert_eq!(
        (sorted(bench.vm_folders()), bench.warm_folders()),
        (vms.iter().map(|&vm| vm.into()).collect(), 0)
    );
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_a_vmm_says_is_free_is_left_out_unless_the_kernel_checks_it() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        for (name, words, written_kib) in
            [("lean", "free", 4), ("old", "", 64), ("checks", "free page_poison=1", 64)]
        {
            ready(&mut client, vm(name, words)).await;
            let made = create(&mut client, name, name).await.unwrap();
            assert_eq!((made.written_kib, made.free_kib), (written_kib, 64 - written_kib), "{name}");
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_is_kept_and_a_new_family_is_made_of_it() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let parent = ready(&mut client, vm("web", "")).await;
        let made = create(&mut client, "web", "base").await.unwrap();
        assert_eq!((made.pause_us, made.written_layers, made.written_kib), (250, 1, 64));
        let kept = made.snapshot.unwrap();
        let place = bench.path("state/snapshots/base");
        assert_eq!((kept.path.as_str(), kept.vm.as_str()), (place.to_str().unwrap(), "web"));
        assert_eq!((kept.vcpus, kept.memory_mib, kept.agent_abi), (1, 256, 4));
        let digest = |name: &str| blake3::hash(&fs::read(bench.path(name)).unwrap()).to_string();
        assert_eq!(kept.kernel.as_ref().unwrap().digest, digest("kernel"));
        assert_eq!(kept.rootfs.as_ref().unwrap().digest, digest("rootfs"));
        assert_eq!(get(&mut client, "web").await, parent, "it goes on as it was");
        assert_eq!(bench.memory_files("generation"), 0, "vmmd has none of it any more");
        assert_eq!(show(&mut client, "base").await.unwrap(), kept);
        let listed = Snapshot { host: None, ..kept.clone() };
        assert_eq!(list(&mut client, "").await, [listed]);
        assert!(verify(&mut client, "base").await.unwrap().checked_kib >= 64);

        let port = v1::PublishedPort { host_port: 18_081, guest_port: 80, host_address: String::new() };
        let request =
            RestoreSnapshotRequest { name: "new".into(), count: 3, ports: vec![port], ..from("base") };
        let vms = restore(&mut client, request).await.unwrap();
        let who: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.vmid, vm.ip.as_str())).collect();
        assert_eq!(
            who,
            [("new", 0, "100.64.16.1"), ("new.1", 1, "100.64.16.2"), ("new.2", 2, "100.64.16.3")]
        );
        for vm in &vms {
            assert_eq!((vm.family == vms[0].family, vm.family == parent.family), (true, false));
            assert_eq!((&vm.snapshot, vm.memory_mib), (&kept.path, 256));
            assert_eq!(vm.parent_vmid, (vm.vmid > 0).then_some(0));
            assert_eq!((vm.ticket.is_empty(), vm.ports.len()), (vm.vmid == 0, usize::from(vm.vmid == 0)));
        }
        assert_eq!(bench.memory_files("patina-layer"), 1, "one for all of its VMs, until they have ended");
        assert!(bench.pager().is_some_and(runs), "the pager fills it");
        // It is cloned as any other, by the next free vmid.
        assert_eq!(clones(&mut client, "new", 1).await[0].name, "new.3");
        for name in ["new", "new.1", "new.2"] {
            kill(&mut client, name).await;
            let told = console(&mut client, name).await;
            assert!(told.contains("ram: of web\n"), "{name} has the RAM of the VM that was kept: {told}");
        }
        remove(&mut client, "new.3").await;
        until("nobody holds its memory", async || bench.memory_files("patina-") == 0).await;
        assert_eq!(
            sorted(interfaces().await),
            ["pt0", "pt0.0"],
            "the family's network goes with its last VM"
        );
        delete(&mut client, "base").await.unwrap();
        assert!(list(&mut client, "").await.is_empty() && !place.exists());
        assert!(runs(parent.pid));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_restored_family_outlives_vmmd_its_snapshot_and_the_vm_that_was_kept() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let place = bench.path("kept").to_str().unwrap().to_owned();
        create(&mut client, "web", &place).await.unwrap();
        remove(&mut client, "web").await;
        bench.stop(Signal::KILL);

        let mut client = bench.start().await;
        let request = RestoreSnapshotRequest { name: "new".into(), count: 2, ..from(&place) };
        let vms = restore(&mut client, request).await.unwrap();
        assert_eq!(vms[0].ip, "100.64.0.1", "the numbers of the VM that is gone are free again");
        delete(&mut client, &place).await.unwrap();
        bench.stop(Signal::KILL);

        let mut client = bench.start().await;
        for vm in &vms {
            assert_eq!(&wait(&mut client, &vm.name, Until::Ready).await.unwrap(), vm);
        }
        assert_eq!(clones(&mut client, "new.1", 1).await[0].name, "new.2");
        // What a master and its clones are of is known: they are kept in their turn.
        let again = create(&mut client, "new.2", &place).await.unwrap();
        assert_eq!((again.snapshot.unwrap().vm.as_str(), again.written_layers), ("new.2", 2));
        for name in ["new", "new.1", "new.2"] {
            kill(&mut client, name).await;
        }
        assert!(interfaces().await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_cannot_be_kept_is_refused_and_nothing_is_at_the_place() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let hold = Hold::new(bench.path("freeze"));
        let words = format!("abi=3 hold-freeze={}", bench.path("freeze").display());
        ready(&mut client, vm("old", &words)).await;
        ready(&mut client, vm("older", "abi=0")).await;
        ready(&mut client, vm("hook", "unprepared=125")).await;
        client.create_vm(vm("slow", "slow")).await.unwrap();
        fs::create_dir(bench.path("shelf")).unwrap();
        fs::write(bench.path("shelf/file"), b"mine").unwrap();
        let at = |name: &str| bench.path(&format!("shelf/{name}")).to_str().unwrap().to_owned();
        for (name, path, code, words) in [
            ("nobody", at("new"), Code::NotFound, "there is none"),
            ("slow", at("new"), Code::FailedPrecondition, "booting, not ready"),
            ("old", at("new"), Code::FailedPrecondition, "speaks ABI 3"),
            ("older", at("new"), Code::FailedPrecondition, "boot the VM anew"),
            ("hook", at("new"), Code::FailedPrecondition, "the pre-clone hook says no"),
            ("web", at("file"), Code::AlreadyExists, "it exists already"),
            ("web", at("file/new"), Code::InvalidArgument, "Not a directory"),
            ("web", at("none/new"), Code::InvalidArgument, "No such file or directory"),
            ("web", "a/b".into(), Code::InvalidArgument, "neither an absolute path nor a name"),
            ("web", "..".into(), Code::InvalidArgument, "neither an absolute path nor a name"),
            ("web", String::new(), Code::InvalidArgument, "neither an absolute path nor a name"),
        ] {
            let status = create(&mut client, name, &path).await.unwrap_err();
            assert_eq!(status.code(), code, "{name} at {path}: {status}");
            assert!(status.message().contains(words), "{name} at {path}: {status}");
        }
        assert!(!hold.is_reached(), "a VM whose agent is too old is not paused");
        // Another disk or kernel under a running guest.
        for (image, words) in [("rootfs", "rootfs"), ("kernel", "kernel")] {
            fs::rename(bench.path(image), bench.path("aside")).unwrap();
            fs::copy(bench.path("aside"), bench.path(image)).unwrap();
            let status = create(&mut client, "web", &at("new")).await.unwrap_err();
            let told = status.message();
            assert!(told.contains("put the old file back") && told.contains(words), "{told}");
            assert_eq!(status.code(), Code::FailedPrecondition);
            fs::rename(bench.path("aside"), bench.path(image)).unwrap();
        }
        // The request is right: what is wrong is a file of the VM's.
        fs::rename(bench.path("kernel"), bench.path("aside")).unwrap();
        let status = create(&mut client, "web", &at("new")).await.unwrap_err();
        let reason = status.get_details_error_info().unwrap().reason;
        assert_eq!((status.code(), reason.as_str()), (Code::FailedPrecondition, "OTHER_IMAGE"), "{status}");
        fs::rename(bench.path("aside"), bench.path("kernel")).unwrap();
        assert_eq!(names(&bench.path("shelf")), ["file"]);
        assert!(create(&mut client, "web", &at("new")).await.is_ok());
        let status = create(&mut client, "web", &at("new")).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        assert_eq!(names(&bench.path("shelf")), ["file", "new"]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_full_disk_leaves_nothing_at_the_place_and_the_vm_goes_on() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let free = rustix::fs::statvfs(bench.path("state")).unwrap();
        let fill = fs::File::create(bench.path("state/fill")).unwrap();
        // All of it: the VM's record may still be written anew, which frees a page. The snapshot
        // needs three.
        let bytes = free.f_bavail * free.f_bsize;
        rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        let status = create(&mut client, "web", "base").await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("No space left on device"), "{status}");
        assert!(names(&bench.path("state/snapshots")).is_empty());
        drop(fill);
        fs::remove_file(bench.path("state/fill")).unwrap();
        create(&mut client, "web", "base").await.unwrap();
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_cannot_be_restored_is_refused_and_nothing_is_left() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "refuse=0")).await;
        create(&mut client, "web", "base").await.unwrap();
        fs::create_dir(bench.path("empty")).unwrap();
        let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
        let cases = [
            (from("none"), Code::NotFound, "it does not exist"),
            (from(&path("empty")), Code::InvalidArgument, "no file \"manifest\""),
            (from(&path("kernel")), Code::InvalidArgument, "it is not a directory"),
            (from("a/b"), Code::InvalidArgument, "neither an absolute path nor a name"),
            (RestoreSnapshotRequest { name: "web".into(), ..from("base") }, Code::AlreadyExists, "in use"),
            (RestoreSnapshotRequest { count: 257, ..from("base") }, Code::InvalidArgument, "257"),
            (
                RestoreSnapshotRequest { rootfs: path("kernel"), ..from("base") },
                Code::FailedPrecondition,
                "has other content",
            ),
            (
                RestoreSnapshotRequest { kernel: path("rootfs"), ..from("base") },
                Code::FailedPrecondition,
                "no kernel with the content",
            ),
            // Its master refuses the generation, and so would its clones have been made for
            // nothing.
            (
                RestoreSnapshotRequest { name: "new".into(), count: 3, ..from("base") },
                Code::Internal,
                "restore the vCPU: no",
            ),
        ];
        for (request, code, words) in cases {
            let status = restore(&mut client, request.clone()).await.unwrap_err();
            assert_eq!(status.code(), code, "{request:?}: {status}");
            assert!(status.message().contains(words), "{request:?}: {status}");
            only(&bench, &mut client, &["web"]).await;
        }
        assert!(names(&bench.path("state/families")).is_empty(), "no family is left");
        assert_eq!(bench.memory_files("patina-"), 0);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_snapshot_that_does_not_fit_this_host_is_refused_before_anything_is_made() {
    const UNFIT: (Code, &str) = (Code::FailedPrecondition, "SNAPSHOT_UNFIT");
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        for (name, words, said, refused) in [
            ("kvm", "other-kvm", "; use a host with", UNFIT),
            ("release", "other-release", "its format is version 2", UNFIT),
            ("section", "other-section", "section VCPU has version 2", UNFIT),
            ("damage", "damaged-section", "the state is damaged", (Code::DataLoss, "SNAPSHOT_DAMAGED")),
        ] {
            ready(&mut client, vm(name, words)).await;
            let kept = create(&mut client, name, name).await.unwrap().snapshot.unwrap();
            let problem = kept.host.unwrap().problem;
            assert!(problem.contains(said), "{problem}");
            let request = RestoreSnapshotRequest { count: 2, ..from(name) };
            let status = restore(&mut client, request).await.unwrap_err();
            let reason = status.get_details_error_info().unwrap().reason;
            assert_eq!((status.code(), reason.as_str()), refused, "{status}");
            assert_eq!(status.message(), problem);
            assert!(bench.pager().is_none(), "no layer was looked at");
            only(&bench, &mut client, &[name]).await;
            remove(&mut client, name).await;
        }
        ready(&mut client, vm("web", "")).await;
        create(&mut client, "web", "base").await.unwrap();
        let host = show(&mut client, "base").await.unwrap().host.unwrap();
        assert_eq!((host.problem.as_str(), host.kernel.as_str(), host.tsc_khz), ("", "6.18.1", 2_600_000));
        assert!(host.kvm.contains("KVM") || host.kvm.contains('V'), "{host:?}");
        assert!(list(&mut client, "").await.iter().all(|snapshot| snapshot.host.is_none()));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_clone_that_fails_leaves_the_restored_master_and_the_others() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "die=2")).await;
        create(&mut client, "web", "base").await.unwrap();
        let request = RestoreSnapshotRequest { name: "new".into(), count: 4, ..from("base") };
        let made = client.restore_snapshot(request).await.unwrap().into_inner().vms;
        let made: Vec<_> =
            made.iter().map(|made| (made.vmid, matches!(made.outcome, Some(Outcome::Vm(_))))).collect();
        assert_eq!(made, [(0, true), (1, true), (2, false), (3, true)]);
        only(&bench, &mut client, &["new", "new.1", "new.3", "web"]).await;
    });
}

/// Changes a byte of a run, or puts the right one back.
pub fn flip(place: &Path, run: u64) {
    let file = fs::File::options().read(true).write(true).open(layer_file(place)).unwrap();
    let at = run * 65536 + 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// That a VM has ended because it needed a run that is damaged, and that the reason names it.
pub async fn lost(client: &mut Client, vm: &str, layer: &str, run: u64) {
    let ended = wait(client, vm, Until::Ended).await.unwrap();
    assert_eq!(ended.end_kind(), EndKind::DataLoss, "{ended:?}");
    let names = ended.end_reason.contains(&format!("run {run} ")) && ended.end_reason.contains(layer);
    assert!(names, "{}", ended.end_reason);
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_flipped_byte_ends_the_vm_that_needs_its_run_and_no_other() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        let parent = ready(&mut client, vm("web", "ram=4")).await;
        let kept = create(&mut client, "web", "base").await.unwrap().snapshot.unwrap();
        let place = bench.path("state/snapshots/base");
        let layer = &kept.layers[0].id;
        flip(&place, 2);
        let status = verify(&mut client, "base").await.unwrap_err();
        assert_eq!(status.code(), Code::DataLoss, "{status}");
        assert!(status.message().contains(&format!("run 2 of layer {layer}")), "{status}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), &info.metadata["layer"]), ("SNAPSHOT_DAMAGED", layer));
        assert_eq!(info.metadata["run"], "2");

        let request = RestoreSnapshotRequest { name: "new".into(), count: 2, ..from("base") };
        let vms = restore(&mut client, request).await.unwrap();
        for run in [1, 3] {
            let read = run_in(&mut client, "new", &["read", &run.to_string()]).await;
            assert_eq!(read, (format!("run {run}"), 0), "the other runs are as they were");
        }
        let mut caller = client.clone();
        let call = tokio::spawn(async move { run_in(&mut caller, "new", &["read", "2"]).await });
        lost(&mut client, "new", layer, 2).await;
        // What it was asked for is not answered.
        call.await.unwrap_err();
        assert_eq!(run_in(&mut client, "new.1", &["read", "3"]).await.0, "run 3", "it does not need it");
        assert_eq!(get(&mut client, "new.1").await.pid, vms[1].pid);
        assert!(runs(parent.pid));
        remove(&mut client, "new").await;
        remove(&mut client, "new.1").await;
        only(&bench, &mut client, &["web"]).await;

        // The first run is needed before the guest is ready.
        flip(&place, 2);
        flip(&place, 0);
        let request = RestoreSnapshotRequest { name: "new".into(), ..from("base") };
        // It may be told before the VM counts as started.
        let status = match client.restore_snapshot(request).await {
            Ok(_) => {
                let status = wait(&mut client, "new", Until::Ready).await.unwrap_err();
                lost(&mut client, "new", layer, 0).await;
                remove(&mut client, "new").await;
                status
            }
            Err(status) => status,
        };
        assert_eq!(status.code(), Code::DataLoss, "{status}");
        let names = status.message().contains("run 0 ") && status.message().contains(layer.as_str());
        assert!(names, "{status}");
        only(&bench, &mut client, &["web"]).await;
        until("no memory of it is left", async || bench.memory_files("patina-") == 0).await;
        flip(&place, 0);
        assert_eq!(restore(&mut client, from("base")).await.unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_damaged_state_or_manifest_is_refused_before_a_vm_runs() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        create(&mut client, "web", "base").await.unwrap();
        let place = bench.path("state/snapshots/base");
        for name in ["state", "manifest"] {
            let path = place.join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            let status = restore(&mut client, from("base")).await.unwrap_err();
            assert_eq!(status.code(), Code::DataLoss, "{name}: {status}");
            assert!(list(&mut client, "").await[0].problem.contains(name), "{name}");
            fs::write(&path, &whole).unwrap();
        }
        only(&bench, &mut client, &["web"]).await;
        assert_eq!(restore(&mut client, from("base")).await.unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_second_snapshot_writes_only_what_is_new() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        create(&mut client, "web", "first").await.unwrap();
        // A restored VM has the layers of its snapshot.
        let restored = restore(&mut client, from("first")).await.unwrap().remove(0);
        let clone = clones(&mut client, &restored.name, 1).await.remove(0);
        let made = create(&mut client, &clone.name, "second").await.unwrap();
        assert_eq!(made.written_layers, 2, "the stand-in makes new memfds at each freeze");
        delete(&mut client, "first").await.unwrap();
        assert!(verify(&mut client, "second").await.is_ok(), "it stays whole without the other");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn vmmd_killed_while_it_restores_leaves_nothing() {
    tell(|mut bench| async move {
        let hold = Hold::new(bench.path("start"));
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &format!("hold-start={}", bench.path("start").display()))).await;
        create(&mut client, "web", "base").await.unwrap();
        let call = restore_held(&client, &hold).await;
        // Its record stands among the others' before it runs: the next vmmd waits for it, or ends
        // it.
        bench.stop(Signal::KILL);
        assert!(call.await.unwrap().is_err());
        hold.unlock();
        let mut client = bench.start().await;
        let left = client.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
        for vm in left.iter().filter(|vm| vm.name != "web") {
            // It had all that it needs. Nobody was told of it, but nothing is half-made either.
            assert_eq!((vm.name.as_str(), vm.vmid, vm.state()), ("new", 0, VmState::Ready));
            remove(&mut client, &vm.name).await;
        }
        only(&bench, &mut client, &["web"]).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_caller_who_leaves_while_a_vm_is_kept_leaves_nothing() {
    tell(|mut bench| async move {
        let hold = Hold::new(bench.path("freeze"));
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &format!("hold-freeze={}", bench.path("freeze").display()))).await;
        hold.lock();
        let mut caller = client.clone();
        let call = tokio::spawn(async move { create(&mut caller, "web", "base").await });
        hold.reached(1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        hold.unlock();
        // The next freeze has its turn when this one is over.
        assert!(create(&mut client, "web", "next").await.is_ok());
        assert_eq!(names(&bench.path("state/snapshots")), ["next"]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_restored_vm_ends_as_any_other() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        create(&mut client, "web", "base").await.unwrap();
        let vms = restore(&mut client, RestoreSnapshotRequest { count: 2, ..from("base") }).await.unwrap();
        let ended = kill(&mut client, &vms[0].name).await;
        assert_eq!((ended.state(), ended.end_kind()), (VmState::Ended, EndKind::Killed));
        assert!(runs(vms[1].pid), "its clone goes on");
        assert_eq!(fs::metadata(&ended.snapshot).unwrap().mode() & 0o777, 0o700, "for its owner only");
        kill(&mut client, &vms[1].name).await;
        assert_eq!(sorted(interfaces().await), ["pt0", "pt0.0"]);
    });
}
