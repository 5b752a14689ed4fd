//! Images of which memory is lost.

use crate::{
    bench::{Bench, Client, ready, tell, vm},
    clones::remove,
    images::{images, is_unused, kept, layer, list, start},
    restores::{
        fuse::{Behaviour, Fuse},
        in_place_of, open_layers,
    },
    snapshots::{lost, names},
    steps::until,
    streams::run,
};
use patina_proto::v1::CreateVmRequest;
use std::path::PathBuf;

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
