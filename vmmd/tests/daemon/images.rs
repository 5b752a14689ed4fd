//! Images of booted VMs: what is kept, what starts from it, and that nothing that is wrong with one
//! makes a run fail.

use crate::{
    bench::{Bench, Client, get, kill, ready, tell, vm, wait},
    clones::{clones, console},
    snapshots::only,
    steps::{Hold, until},
};
use patina_proto::v1::{self, CreateVmRequest, VmState, wait_vm_request::Until};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs,
    net::TcpStream,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};
use tonic::Status;

pub async fn start(bench: &mut Bench) -> Client {
    let folder: &'static str = bench.path("images").to_str().unwrap().to_owned().leak();
    bench.more = vec!["--image-cache", folder];
    bench.start().await
}

pub async fn list(client: &mut Client) -> Vec<v1::Image> {
    client.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images
}

async fn prune(client: &mut Client, all: bool) -> v1::PruneImagesResponse {
    client.prune_images(v1::PruneImagesRequest { all }).await.unwrap().into_inner()
}

/// Makes a VM and waits until it is ready and its image, if it is kept as one, is complete.
pub async fn kept(bench: &mut Bench, client: &mut Client, request: CreateVmRequest) -> v1::Vm {
    let vm = ready(client, request).await;
    bench.logged("start from an image now").await;
    vm
}

pub fn images(bench: &Bench) -> Vec<PathBuf> {
    fs::read_dir(bench.path("images")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

pub fn layer(place: &Path) -> PathBuf {
    let mut files = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("layer-")).unwrap()
}

/// Whether no VM reads its memory from an image. One that is in use cannot be replaced.
pub fn is_unused(place: &Path) -> bool {
    let folder = fs::File::open(place).unwrap();
    flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn the_first_vm_boots_and_the_next_ones_of_its_kind_start_from_its_image() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        let first = kept(&mut bench, &mut client, vm("first", "a")).await;
        assert!(first.image.is_empty() && first.ready_after_us == 1234, "{first:?}");
        let image = list(&mut client).await.remove(0);
        assert_eq!((image.vms, image.snapshot.unwrap().vm.as_str()), (0, "first"));

        let port = v1::PublishedPort { host_port: 18_082, guest_port: 80, host_address: String::new() };
        let request = CreateVmRequest { ports: vec![port], ..vm("second", "a") };
        let second = ready(&mut client, request).await;
        assert_eq!((&second.image, second.vmid, second.parent_vmid), (&image.id, 0, None));
        assert_ne!((&second.family, &second.uuid), (&first.family, &first.uuid));
        assert_ne!((&second.ip, &second.mac), (&first.ip, &first.mac));
        assert_eq!(second.ports.len(), 1);
        TcpStream::connect("127.0.0.1:18082").unwrap();
        let clone = &clones(&mut client, "second", 1).await[0];
        assert_eq!((clone.name.as_str(), &clone.image), ("second.1", &image.id));
        assert_eq!(list(&mut client).await[0].vms, 2);

        // Other kinds, and one that is to boot.
        for other in [
            vm("other", "b"),
            CreateVmRequest { memory_mib: 128, ..vm("smaller", "a") },
            CreateVmRequest { vcpus: 2, ..vm("wider", "a") },
        ] {
            assert!(kept(&mut bench, &mut client, other).await.image.is_empty());
        }
        let cold = ready(&mut client, CreateVmRequest { cold: true, ..vm("cold", "a") }).await;
        assert!(cold.image.is_empty());
        assert_eq!(list(&mut client).await.len(), 4);

        kill(&mut client, "second").await;
        let told = console(&mut client, "second").await;
        assert!(told.contains("ram: of first\n"), "{told}");
        // A vmmd that starts anew knows the image and what was started from it.
        bench.stop(Signal::KILL);
        let mut client = bench.start().await;
        assert_eq!(wait(&mut client, "second.1", Until::Ready).await.unwrap().image, image.id);
        assert_eq!(ready(&mut client, vm("third", "a")).await.image, image.id);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn nobody_hears_that_the_first_vm_is_ready_before_it_is_frozen() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        let hold = Hold::new(bench.path("hold"));
        hold.lock();
        let port = v1::PublishedPort { host_port: 18_083, guest_port: 80, host_address: String::new() };
        let words = format!("hold-freeze={}", bench.path("hold").display());
        client.create_vm(CreateVmRequest { ports: vec![port], ..vm("first", &words) }).await.unwrap();
        hold.reached(1).await;
        assert_eq!(get(&mut client, "first").await.state(), VmState::Booting);
        let early = exec(&mut client, "first").await.unwrap_err();
        assert!(early.message().contains("booting, not ready"), "{early}");
        // Two runs at once of one new image: the other one is not kept, and does not wait.
        assert!(ready(&mut client, vm("second", &words)).await.image.is_empty());
        hold.unlock();
        wait(&mut client, "first", Until::Ready).await.unwrap();
        bench.logged("start from an image now").await;
        assert_eq!(list(&mut client).await.len(), 1);
        assert!(!ready(&mut client, vm("third", &words)).await.image.is_empty());
    });
}

/// Tries to run a program.
async fn exec(client: &mut Client, name: &str) -> Result<(), Status> {
    let start = v1::ExecStart { name: name.into(), argv: vec!["echo".into()], ..Default::default() };
    let start = v1::ExecRequest { message: Some(v1::exec_request::Message::Start(start)) };
    client.exec(tokio_stream::once(start)).await.map(drop)
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_on_whose_console_somebody_typed_as_it_booted_is_no_image() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        let hold = Hold::new(bench.path("hold"));
        hold.lock();
        let words = format!("hold-hello={}", bench.path("hold").display());
        client.create_vm(vm("first", &words)).await.unwrap();
        hold.reached(1).await;
        let attach = v1::ConsoleAttach { name: "first".into() };
        let messages = [
            v1::console_request::Message::Attach(attach),
            v1::console_request::Message::Input(b"x".to_vec()),
        ];
        let requests = messages.map(|message| v1::ConsoleRequest { message: Some(message) });
        let mut output = client.console(tokio_stream::iter(requests)).await.unwrap().into_inner();
        assert_eq!(output.message().await.unwrap().unwrap().output, b"X");
        hold.unlock();
        wait(&mut client, "first", Until::Ready).await.unwrap();
        bench.logged("input was sent to its console").await;
        assert!(images(&bench).is_empty());
        assert!(kept(&mut bench, &mut client, vm("second", &words)).await.image.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_image_that_is_wrong_is_removed_and_the_vm_boots_and_is_the_next_image() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        kept(&mut bench, &mut client, vm("first", "a")).await;
        let place = images(&bench).remove(0);
        let flip = |place: &Path| {
            let file = fs::File::options().write(true).open(layer(place)).unwrap();
            file.write_all_at(b"x", 1).unwrap();
        };
        let cut = |place: &Path| {
            fs::File::options().write(true).open(layer(place)).unwrap().set_len(4096).unwrap();
        };
        let lose = |place: &Path| fs::remove_file(place.join("manifest")).unwrap();
        let swap = |place: &Path| fs::write(place.join("state"), b"another").unwrap();
        let damages: [&dyn Fn(&Path); 4] = [&flip, &cut, &lose, &swap];
        for (number, damage) in damages.into_iter().enumerate() {
            damage(&place);
            let boots = kept(&mut bench, &mut client, vm(&format!("boots-{number}"), "a")).await;
            assert!(boots.image.is_empty(), "{number}");
            let starts = ready(&mut client, vm(&format!("starts-{number}"), "a")).await;
            assert!(place.ends_with(&starts.image), "{number}");
            until("none of its memory is still to arrive", async || is_unused(&place)).await;
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_that_does_not_start_from_its_image_boots_and_nothing_of_the_first_try_is_left() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        for (number, words) in ["refuse=0", "die=0"].into_iter().enumerate() {
            let [first, second, third] = ["first", "second", "third"].map(|name| format!("{name}-{number}"));
            kept(&mut bench, &mut client, vm(&first, words)).await;
            let made = kept(&mut bench, &mut client, vm(&second, words)).await;
            assert!(made.image.is_empty(), "{made:?}");
            assert_eq!(
                ready(&mut client, CreateVmRequest { cold: true, ..vm(&third, words) }).await.image,
                ""
            );
        }
        only(&bench, &mut client, &["first-0", "first-1", "second-0", "second-1", "third-0", "third-1"])
            .await;
        assert_eq!(list(&mut client).await.len(), 2);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn an_image_is_not_blamed_for_a_vmm_that_somebody_kills_as_it_starts() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        let hold = Hold::new(bench.path("hold"));
        let words = format!("hold-start={}", bench.path("hold").display());
        let image = kept(&mut bench, &mut client, vm("first", &words)).await;
        kill(&mut client, &image.name).await;
        until("only the next VM has a process", async || bench.processes().is_empty()).await;
        hold.lock();
        let mut caller = client.clone();
        let request = vm("second", &words);
        let call = tokio::spawn(async move { ready(&mut caller, request).await });
        hold.reached(1).await;
        for pid in bench.processes() {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        hold.unlock();
        assert_eq!(call.await.unwrap().image, "", "it boots instead");
        let kept = list(&mut client).await.remove(0).id;
        assert_eq!(ready(&mut client, vm("third", &words)).await.image, kept);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_that_cannot_be_kept_runs_all_the_same() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        for (name, words, reason) in [
            ("hook", "unprepared=125", "the pre-clone hook says no"),
            ("mute", "mute", "closed the connection"),
            ("old", "abi=3", "speaks ABI 3"),
            ("newer", "version=9", "version 9"),
        ] {
            ready(&mut client, vm(name, words)).await;
            let told = bench.logged("it is not kept as an image").await;
            assert!(told.contains(reason), "{told}");
        }
        assert!(images(&bench).is_empty() && list(&mut client).await.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn on_a_full_disk_no_image_is_made_and_nothing_is_left() {
    tell(|mut bench| async move {
        // Two pages: not enough for state, layer and manifest.
        bench.small("images", "8k");
        let mut client = start(&mut bench).await;
        ready(&mut client, vm("first", "a")).await;
        let told = bench.logged("it is not kept as an image").await;
        assert!(told.contains("No space left on device"), "{told}");
        assert!(images(&bench).is_empty(), "{:?}", images(&bench));
        ready(&mut client, vm("second", "a")).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vmmd_that_is_killed_as_it_freezes_the_first_vm_leaves_no_image_and_the_vm() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        let hold = Hold::new(bench.path("hold"));
        hold.lock();
        let words = format!("hold-freeze={}", bench.path("hold").display());
        client.create_vm(vm("first", &words)).await.unwrap();
        hold.reached(1).await;
        bench.stop(Signal::KILL);
        hold.unlock();
        fs::create_dir(bench.path("images/.patina-snapshot-unfinished-1")).unwrap();
        let mut client = bench.start().await;
        assert!(wait(&mut client, "first", Until::Ready).await.unwrap().image.is_empty());
        assert!(images(&bench).is_empty(), "{:?}", images(&bench));
        assert!(kept(&mut bench, &mut client, vm("second", &words)).await.image.is_empty());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn images_are_listed_page_by_page_and_pruned() {
    tell(|mut bench| async move {
        let mut client = start(&mut bench).await;
        for name in ["a", "b", "c"] {
            kept(&mut bench, &mut client, vm(name, name)).await;
        }
        let all = list(&mut client).await;
        let ids: Vec<_> = all.iter().map(|image| image.id.clone()).collect();
        assert!(ids.is_sorted() && ids.len() == 3);
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListImagesRequest { page_size: 2, page_token };
            let page = client.list_images(request).await.unwrap().into_inner();
            found.extend(page.images);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            assert_eq!(found.len(), 2);
        }
        assert_eq!(found, all);

        // All of them can still be started from.
        assert_eq!(prune(&mut client, false).await, v1::PruneImagesResponse::default());
        let of = |name: &str| {
            let mut all = all.iter();
            all.find(|image| image.snapshot.as_ref().unwrap().vm == name).unwrap().id.clone()
        };
        // One is not what it was.
        fs::write(bench.path("images").join(of("b")).join("manifest"), b"x").unwrap();
        assert_eq!(prune(&mut client, false).await.removed, [of("b")]);
        // The root file system is built anew: no VM starts from an image of the old one.
        fs::write(bench.path("rootfs"), [2; 512]).unwrap();
        assert!(kept(&mut bench, &mut client, vm("d", "a")).await.image.is_empty());
        let pruned = prune(&mut client, false).await;
        let mut stale = [of("a"), of("c")];
        stale.sort();
        assert_eq!((pruned.removed.as_slice(), pruned.in_use.len()), (stale.as_slice(), 0));
        // A page of memory, the state and the manifest, twice.
        assert!(pruned.freed_kib >= 24, "{pruned:?}");
        assert_eq!(prune(&mut client, true).await.removed.len(), 1);
        assert!(list(&mut client).await.is_empty() && images(&bench).is_empty());
        assert_eq!(get(&mut client, "d").await.state(), VmState::Ready);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn without_a_folder_of_images_every_vm_boots() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        for name in ["a", "b"] {
            assert!(ready(&mut client, vm(name, "a")).await.image.is_empty());
        }
        assert!(list(&mut client).await.is_empty());
        assert_eq!(prune(&mut client, true).await, v1::PruneImagesResponse::default());
        assert!(!bench.path("state/images").exists());
    });
}
