//! Runs from an image that are disturbed: whoever is killed at whatever step, and an image of which
//! memory is lost.

use crate::{
    bench::{Bench, Client, ready, runs, tell, vm, wait},
    clones::remove,
    images::{images, is_unused, kept, layer, list, start},
    restores::{
        Step, Victim,
        fuse::{Behaviour, Fuse},
        in_place_of, open_layers, signal,
    },
    snapshots::{lost, names, only},
    steps::{Hold, until},
    streams::run,
};
use patina_proto::v1::{CreateVmRequest, ListVmsRequest, VmState, wait_vm_request::Until};
use rustix::process::Signal;
use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};
use tonic::Code;

/// A VM whose memory has six runs that are not zero.
fn six_runs(name: &str, words: &str) -> CreateVmRequest {
    CreateVmRequest { memory_mib: 64, ..vm(name, &format!("ram=6 {words}")) }
}

/// An image whose layer is a file whose reads the test decides on, and which vmmd has found to be
/// whole. No VM has its memory any longer.
struct Image {
    id: String,
    place: PathBuf,
    fuse: Fuse,
}

impl Image {
    async fn keep(bench: &mut Bench, client: &mut Client, words: &str) -> Self {
        kept(bench, client, six_runs("web", words)).await;
        let place = images(bench).remove(0);
        let fuse = in_place_of(bench, &layer(&place));
        let checked = ready(client, six_runs("checked", words)).await;
        assert!(place.ends_with(&checked.image), "{checked:?}");
        remove(client, "checked").await;
        let image = Self { id: checked.image, place, fuse };
        image.is_left(bench).await;
        image
    }

    /// Waits until nothing of its memory is anywhere.
    async fn is_left(&self, bench: &Bench) {
        until("nothing of the image's memory is left", async || {
            let is_open = bench.pager().is_some_and(|pager| !open_layers(pager).is_empty());
            !is_open && bench.memory_files("patina-") == 0 && (!self.place.exists() || is_unused(&self.place))
        })
        .await;
        let records = names(&bench.path("state/pager"));
        assert!(!records.iter().any(|name| name.ends_with(".json")), "{records:?}");
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn whoever_is_killed_at_whatever_step_of_a_run_from_an_image_nothing_is_left() {
    tell(|mut bench| async move {
        bench.small_state();
        let holds = ["attach", "start"].map(|name| Hold::new(bench.path(name)));
        let words = ["attach", "start"].map(|name| format!("hold-{name}={}", bench.path(name).display()));
        let words = words.join(" ");
        let mut client = start(&mut bench).await;
        let image = Image::keep(&mut bench, &mut client, &words).await;
        let web = wait(&mut client, "web", Until::Ready).await.unwrap();
        let inode = fs::metadata(&image.place).unwrap().ino();
        for (step, hold) in [(Step::Sent, &holds[0]), (Step::Served, &holds[1])] {
            for victim in [Victim::Vmm, Victim::Pager, Victim::Vmmd] {
                let what = format!("{step:?}, {victim:?}");
                // What is complete needs no pager: this one is never complete.
                image.fuse.set(4, Behaviour::Fails);
                hold.lock();
                let (mut caller, request) = (client.clone(), six_runs("new", &words));
                let call = tokio::spawn(async move { caller.create_vm(request).await });
                assert_eq!(hold.reached(1).await, [0], "{what}");
                match victim {
                    Victim::Vmm => {
                        bench.processes().into_iter().filter(|pid| *pid != web.pid).for_each(|pid| {
                            signal(pid, Signal::KILL);
                        });
                    }
                    Victim::Pager => signal(bench.pager().unwrap(), Signal::KILL),
                    Victim::Vmmd => {
                        bench.stop(Signal::KILL);
                    }
                }
                hold.unlock();
                match (call.await.unwrap(), victim) {
                    (Ok(_), Victim::Vmm | Victim::Pager) => {
                        let new = wait(&mut client, "new", Until::Ready).await.unwrap();
                        // A new vmm boots; another pager serves the same one.
                        let expected = if victim == Victim::Vmm { "" } else { image.id.as_str() };
                        assert_eq!(new.image, expected, "{what}");
                    }
                    (Err(status), Victim::Vmmd) => {
                        let is_gone =
                            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
                        assert!(is_gone, "{what}: {status}");
                        client = bench.start().await;
                    }
                    (answer, _) => panic!("{what}: {answer:?}"),
                }
                let vms = client.list_vms(ListVmsRequest::default()).await.unwrap().into_inner().vms;
                for left in vms.iter().filter(|vm| vm.name != "web") {
                    // It had all that it needs. Nobody may have been told of it, but nothing is
                    // half-made either.
                    let left = wait(&mut client, &left.name, Until::Ready).await.unwrap();
                    assert_eq!((left.name.as_str(), left.state()), ("new", VmState::Ready), "{what}");
                    remove(&mut client, "new").await;
                }
                only(&bench, &mut client, &["web"]).await;
                image.is_left(&bench).await;
                assert!(runs(web.pid), "{what}");
                // The image is not blamed, and the next run is as before. A vmmd that was started
                // anew reads all of it once.
                image.fuse.set(4, Behaviour::Good);
                let next = ready(&mut client, six_runs("next", &words)).await;
                assert_eq!(next.image, image.id, "{what}");
                assert_eq!(run(&mut client, "next", &["read", "4"]).await.0, "run 4", "{what}");
                remove(&mut client, "next").await;
                image.is_left(&bench).await;
            }
        }
        assert_eq!(fs::metadata(&image.place).unwrap().ino(), inode, "it is the image that there was");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_image_of_which_a_vm_has_lost_memory_is_not_used_again() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = start(&mut bench).await;
        let image = Image::keep(&mut bench, &mut client, "").await;
        // Its files look as they did when they were checked.
        image.fuse.set(4, Behaviour::Fails);
        let layers = list(&mut client).await.remove(0).snapshot.unwrap().layers;
        assert_eq!(ready(&mut client, six_runs("loses", "")).await.image, image.id);
        let mut caller = client.clone();
        let needs = tokio::spawn(async move { run(&mut caller, "loses", &["read", "4"]).await });
        lost(&mut client, "loses", &layers[0].id, 4).await;
        needs.await.unwrap_err();
        let reads = image.fuse.reads().len();
        boots_and_is_kept(&mut bench, &mut client, &image, "").await;
        assert_eq!(image.fuse.reads().len(), reads, "nothing of the old one is read");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_image_of_which_a_vm_lacks_memory_to_start_is_not_used_again_and_the_vm_boots() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = start(&mut bench).await;
        let image = Image::keep(&mut bench, &mut client, "reads-first").await;
        image.fuse.set(0, Behaviour::Fails);
        boots_and_is_kept(&mut bench, &mut client, &image, "reads-first").await;
    });
}

/// The next VM boots and is kept as the next image.
async fn boots_and_is_kept(bench: &mut Bench, client: &mut Client, image: &Image, words: &str) {
    assert_eq!(kept(bench, client, six_runs("next", words)).await.image, "");
    image.is_left(bench).await;
    assert_eq!(ready(client, six_runs("last", words)).await.image, image.id);
    assert_eq!(run(client, "last", &["read", "4"]).await.0, "run 4");
}
