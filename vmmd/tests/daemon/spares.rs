//! Spare vmms: a restore uses one, another takes its place, and none is left behind.

use crate::{
    bench::{Bench, Client, interfaces, ready, runs, tell, vm},
    clones::{console, remove},
    snapshots::{create, from, restore},
    steps::{Hold, until},
};
use patina_proto::v1::{ListVmsRequest, RestoreSnapshotRequest, Vm};
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, fs};

/// The vmms that are no VM's, once there are so many.
async fn spares(bench: &Bench, vms: &[u32], count: usize) -> Vec<u32> {
    let known: BTreeSet<u32> = vms.iter().copied().collect();
    let now = || bench.processes().difference(&known).copied().collect::<Vec<_>>();
    until("there are so many spares", async || now().len() == count).await;
    now()
}

fn named(name: &str) -> RestoreSnapshotRequest {
    RestoreSnapshotRequest { name: name.into(), ..from("base") }
}

/// Starts a vmmd with so many spares of each kind, a VM, and one that is restored from it.
async fn begin(bench: &mut Bench, spares: &'static str) -> (Client, Vm, Vm) {
    bench.more = vec!["--spare", spares];
    let mut client = bench.start().await;
    let web = ready(&mut client, vm("web", "")).await;
    create(&mut client, "web", "base").await.unwrap();
    let first = restore(&mut client, named("first")).await.unwrap().remove(0);
    (client, web, first)
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_restore_uses_a_spare_and_another_takes_its_place() {
    tell(|mut bench| async move {
        let (mut client, web, first) = begin(&mut bench, "1").await;
        bench.logged("a spare vmm waits").await;
        let spare = spares(&bench, &[web.pid, first.pid], 1).await[0];
        let listed = client.list_vms(ListVmsRequest::default()).await.unwrap().into_inner().vms;
        assert_eq!(listed.len(), 2, "a spare is no VM");
        let second = restore(&mut client, named("second")).await.unwrap().remove(0);
        assert_eq!(second.pid, spare, "it was restored into the spare");
        let score = fs::read_to_string(format!("/proc/{spare}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), "0", "a master is taken as any program");
        assert!(interfaces().await.contains(&"pt2.0".to_owned()), "{:?}", interfaces().await);

        // One that is killed is replaced.
        bench.logged("a spare vmm waits").await;
        let vms = [web.pid, first.pid, second.pid];
        let victim = spares(&bench, &vms, 1).await[0];
        kill_process(Pid::from_raw(victim.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let third = restore(&mut client, named("third")).await.unwrap().remove(0);
        assert_ne!(third.pid, victim);
        bench.logged("a spare vmm waits").await;
        let vms = [web.pid, first.pid, second.pid, third.pid];
        let last = spares(&bench, &vms, 1).await[0];

        // A crash leaves it, and the next vmmd ends it.
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        until("the stray is gone", async || !runs(last)).await;
        restore(&mut client, named("fourth")).await.unwrap();
        bench.logged("a spare vmm waits").await;
        // A vmmd that stops ends its spares.
        remove(&mut client, "fourth").await;
        bench.stop(Signal::TERM);
        spares(&bench, &vms, 0).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_restore_whose_spares_die_as_they_start_goes_on_with_new_vmms() {
    tell(|mut bench| async move {
        bench.more = vec!["--spare", "2"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "spare-dies")).await;
        create(&mut client, "web", "base").await.unwrap();
        restore(&mut client, named("first")).await.unwrap();
        for _ in 0..2 {
            bench.logged("a spare vmm waits").await;
        }
        let second = RestoreSnapshotRequest { count: 2, ..named("second") };
        let second = restore(&mut client, second).await.unwrap();
        for vm in &second {
            assert!(!console(&mut client, &vm.name).await.contains("a spare becomes"), "{vm:?}");
        }
        for _ in &second {
            bench.logged("a spare vmm did not start").await;
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_restored_family_uses_as_many_spares_as_there_are_each_as_who_it_becomes() {
    tell(|mut bench| async move {
        let (mut client, web, first) = begin(&mut bench, "2").await;
        let waiting = spares(&bench, &[web.pid, first.pid], 2).await;
        for _ in &waiting {
            bench.logged("a spare vmm waits").await;
        }
        let family = restore(&mut client, RestoreSnapshotRequest { count: 3, ..named("three") }).await;
        let family = family.unwrap();
        let were_spares: Vec<_> = family.iter().map(|vm| waiting.contains(&vm.pid)).collect();
        assert_eq!(were_spares.iter().filter(|was| **was).count(), 2, "{were_spares:?}");
        assert!(were_spares[0], "the master comes first");
        for vm in &family {
            let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", vm.pid)).unwrap();
            assert_eq!(score.trim() == "0", vm.vmid == 0, "only a master is taken as any program: {vm:?}");
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_image_is_not_blamed_for_a_spare_that_dies_as_it_starts() {
    tell(|mut bench| async move {
        let folder: &'static str = bench.path("images").to_str().unwrap().to_owned().leak();
        bench.more = vec!["--spare", "1", "--image-cache", folder];
        let mut client = bench.start().await;
        ready(&mut client, vm("first", "spare-dies")).await;
        bench.logged("a spare vmm waits").await;
        let second = ready(&mut client, vm("second", "spare-dies")).await;
        bench.logged("a spare vmm did not start").await;
        assert_ne!(second.image, "", "it starts from the image all the same");
        bench.logged("a spare vmm waits").await;
        let third = ready(&mut client, vm("third", "spare-dies")).await;
        assert_eq!(third.image, second.image, "the image is still there");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmmd_that_stops_ends_the_vmms_that_are_being_made_too() {
    tell(|mut bench| async move {
        let hold = Hold::new(bench.path("hold-warm"));
        hold.lock();
        bench.warm = 1;
        let folder: &'static str = bench.path("images").to_str().unwrap().to_owned().leak();
        bench.more = vec!["--spare", "1", "--image-cache", folder];
        let mut client = bench.start().await;
        let web = ready(&mut client, vm("web", "")).await;
        // One for the next clone, and one for the next VM of this kind: neither gets warm.
        spares(&bench, &[web.pid], 2).await;
        assert!(bench.stop(Signal::TERM).success());
        assert_eq!(bench.processes(), BTreeSet::from([web.pid]));
    });
}
