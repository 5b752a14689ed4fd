//! Kernels and root file systems that a host lacks come from another host.

use crate::{
    bench::{Bench, Client, tell},
    steps::until,
};
use patina_proto::v1::{
    FetchImagesRequest, FetchImagesResponse, GetHostRequest, ImageKind, LendLayersRequest,
    LendLayersResponse, ListHostsRequest, ListStatesRequest, ListStatesResponse, PruneImagesRequest,
    PruneImagesResponse, ReadImageRequest, ReadImageResponse, SpawnClonesRequest, SpawnClonesResponse,
    TellFamilyRequest, TellFamilyResponse, WantedImage,
    host_peer_client::HostPeerClient,
    host_peer_server::{HostPeer, HostPeerServer},
    scheduler_client::SchedulerClient,
};
use rustix::process::Signal;
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    net::UnixListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use uuid::Uuid;

type Peer = HostPeerClient<Channel>;

/// A root file system, longer than a message and no multiple of one.
const ROOTFS_BYTES: usize = 3_000 * 512;

fn rootfs(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|place| u8::try_from(place * 7 % 251).unwrap()).collect()
}

/// The command of another vmmd, which has another root file system.
fn other(bench: &Bench) -> Command {
    let plain = bench.command("other", "other.sock");
    let mut command = Command::new(plain.get_program());
    let own = bench.path("rootfs");
    for word in plain.get_args() {
        command.arg(if word == own { bench.path("other-rootfs").into_os_string() } else { word.to_owned() });
    }
    command
}

async fn host_id(client: &mut Client) -> String {
    client.get_host(GetHostRequest {}).await.unwrap().into_inner().id
}

fn wanted(content: &[u8]) -> WantedImage {
    WantedImage { kind: ImageKind::Rootfs.into(), digest: blake3::hash(content).as_bytes().to_vec() }
}

/// Has this vmmd fetch a root file system from the other one.
async fn from_other(bench: &Bench, client: &mut Client, content: &[u8]) -> FetchImagesRequest {
    FetchImagesRequest {
        images: vec![wanted(content)],
        address: format!("unix:{}", bench.path("other.sock").display()),
        host_id: host_id(&mut Client::new(bench.channel("other.sock").await)).await,
        to_host_id: host_id(client).await,
    }
}

/// All that a host says of files that it fetches.
async fn fetched(mut peer: Peer, request: FetchImagesRequest) -> Result<Vec<FetchImagesResponse>, Status> {
    let mut answers = peer.fetch_images(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

/// The files that came from other hosts.
fn shelf(bench: &Bench) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.path("state/fetched")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_root_file_system_comes_from_the_host_that_has_it_once_and_is_found_again() {
    tell(|mut bench| async move {
        let content = rootfs(ROOTFS_BYTES);
        fs::write(bench.path("other-rootfs"), &content).unwrap();
        let mut of_other = bench.spawn(&mut other(&bench)).await;
        let mut client = bench.start().await;
        let request = from_other(&bench, &mut client, &content).await;
        let (other_id, own_id) = (request.host_id.clone(), request.to_host_id.clone());
        let own = Peer::new(bench.channel("vmmd.sock").await);
        let told = fetched(own.clone(), request.clone()).await.unwrap();
        let last = told.last().unwrap();
        assert_eq!((last.done_bytes, last.total_bytes), (content.len() as u64, content.len() as u64));
        let files = shelf(&bench);
        assert_eq!(files, [bench.path("state/fetched").join(blake3::hash(&content).to_hex().as_str())]);
        assert_eq!(fs::read(&files[0]).unwrap(), content);

        // The scheduler hears of it.
        let scheduler = SchedulerClient::new(bench.channel("vmmd.sock").await);
        until("the scheduler knows that it is here", async || {
            let listed = scheduler.clone().list_hosts(ListHostsRequest::default()).await.unwrap();
            let images = listed.into_inner().hosts.remove(0).images.unwrap().digests;
            images.contains(&blake3::hash(&content).as_bytes().to_vec()) && images.len() == 3
        })
        .await;

        // It is here, also after a restart, without the other host.
        assert_eq!(fetched(own.clone(), request.clone()).await.unwrap(), []);
        bench.stop(Signal::TERM);
        bench.start().await;
        let own = Peer::new(bench.channel("vmmd.sock").await);
        assert_eq!(fetched(own.clone(), request.clone()).await.unwrap(), []);
        // A file that was changed is not believed.
        fs::write(&files[0], rootfs(ROOTFS_BYTES + 512)).unwrap();
        assert_ne!(fetched(own.clone(), request.clone()).await.unwrap(), []);
        assert_eq!(fs::read(&files[0]).unwrap(), content);
        // This host gives it on.
        let read = |content: &[u8], to: &str| ReadImageRequest {
            digest: blake3::hash(content).as_bytes().to_vec(),
            host_id: other_id.clone(),
            to_host_id: to.to_owned(),
        };
        let mut parts = own.clone().read_image(read(&content, &own_id)).await.unwrap().into_inner();
        let mut again = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            again.extend(part.bytes);
        }
        assert_eq!(again, content);

        // Other files are nobody's to read, whoever knows what is in them.
        let code = async |request| own.clone().read_image(request).await.unwrap_err().code();
        fs::write(bench.path("secret"), b"secret").unwrap();
        assert_eq!(code(read(b"secret", &own_id)).await, Code::NotFound);
        assert_eq!(code(read(&fs::read("/etc/passwd").unwrap(), &own_id)).await, Code::NotFound);
        assert_eq!(code(read(&content, &other_id)).await, Code::FailedPrecondition);
        let short = ReadImageRequest { digest: vec![1; 31], ..read(&content, &own_id) };
        assert_eq!(code(short).await, Code::InvalidArgument);
        of_other.kill().unwrap();
        of_other.wait().unwrap();
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_came_from_other_hosts_goes_with_all_images_and_can_be_fetched_again() {
    tell(|mut bench| async move {
        let content = rootfs(ROOTFS_BYTES);
        fs::write(bench.path("other-rootfs"), &content).unwrap();
        let mut of_other = bench.spawn(&mut other(&bench)).await;
        let mut client = bench.start().await;
        let request = from_other(&bench, &mut client, &content).await;
        let own = Peer::new(bench.channel("vmmd.sock").await);
        fetched(own.clone(), request.clone()).await.unwrap();

        let mut prune =
            async |all| client.prune_images(PruneImagesRequest { all }).await.unwrap().into_inner();
        assert_eq!(prune(false).await, PruneImagesResponse::default());
        assert_eq!(shelf(&bench).len(), 1);
        let freed_kib = ROOTFS_BYTES as u64 / 1024;
        assert_eq!(prune(true).await, PruneImagesResponse { freed_kib, ..PruneImagesResponse::default() });
        assert!(shelf(&bench).is_empty());
        assert_eq!(prune(true).await, PruneImagesResponse::default());

        assert_ne!(fetched(own, request).await.unwrap(), []);
        assert_eq!(fs::read(&shelf(&bench)[0]).unwrap(), content);
        of_other.kill().unwrap();
        of_other.wait().unwrap();
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_file_for_which_the_disk_has_no_room_is_refused_by_name_and_leaves_nothing() {
    tell(|mut bench| async move {
        bench.small_state();
        let content = rootfs(16 << 20);
        fs::write(bench.path("other-rootfs"), &content).unwrap();
        let mut of_other = bench.spawn(&mut other(&bench)).await;
        let mut client = bench.start().await;
        let request = FetchImagesRequest {
            images: vec![wanted(&content)],
            address: format!("unix:{}", bench.path("other.sock").display()),
            host_id: host_id(&mut Client::new(bench.channel("other.sock").await)).await,
            to_host_id: host_id(&mut client).await,
        };
        let error = fetched(Peer::new(bench.channel("vmmd.sock").await), request.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        let digest = blake3::hash(&content).to_string();
        let said = error.message();
        assert!(said.contains(&digest) && said.contains(&request.host_id), "{said}");
        assert!(shelf(&bench).is_empty());
        of_other.kill().unwrap();
        of_other.wait().unwrap();
    });
}

/// A host that sends what a test wants.
struct StandIn {
    asked: AtomicUsize,
    parts: Mutex<Option<mpsc::Receiver<Result<ReadImageResponse, Status>>>>,
}

#[tonic::async_trait]
impl HostPeer for StandIn {
    async fn spawn_clones(
        &self,
        _request: Request<Streaming<SpawnClonesRequest>>,
    ) -> Result<Response<SpawnClonesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tell_family(
        &self,
        _request: Request<TellFamilyRequest>,
    ) -> Result<Response<TellFamilyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_states(
        &self,
        _request: Request<ListStatesRequest>,
    ) -> Result<Response<ListStatesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn lend_layers(
        &self,
        _request: Request<LendLayersRequest>,
    ) -> Result<Response<LendLayersResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type FetchImagesStream = ReceiverStream<Result<FetchImagesResponse, Status>>;

    async fn fetch_images(
        &self,
        _request: Request<FetchImagesRequest>,
    ) -> Result<Response<Self::FetchImagesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type ReadImageStream = ReceiverStream<Result<ReadImageResponse, Status>>;

    async fn read_image(
        &self,
        _request: Request<ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let parts = self.parts.lock().await.take();
        Ok(Response::new(ReceiverStream::new(parts.ok_or_else(|| Status::not_found("asked again"))?)))
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn several_calls_fetch_a_file_once_and_wrong_bytes_are_nobodys_file() {
    tell(|mut bench| async move {
        let content = rootfs(ROOTFS_BYTES);
        let mut client = bench.start().await;
        let listener = UnixListener::bind(bench.path("stand-in.sock")).unwrap();
        let stand_in = Arc::new(StandIn { asked: AtomicUsize::new(0), parts: Mutex::new(None) });
        let server = tonic::transport::Server::builder()
            .add_service(HostPeerServer::from_arc(Arc::clone(&stand_in)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(server);
        let request = FetchImagesRequest {
            images: vec![wanted(&content)],
            address: format!("unix:{}", bench.path("stand-in.sock").display()),
            host_id: Uuid::new_v4().to_string(),
            to_host_id: host_id(&mut client).await,
        };
        let own = Peer::new(bench.channel("vmmd.sock").await);
        let first = |total: usize| ReadImageResponse { total_bytes: total as u64, bytes: Vec::new() };
        let part = |bytes: &[u8]| ReadImageResponse { total_bytes: 0, bytes: bytes.to_vec() };

        // Of the right length, and not what was asked for.
        let (sender, receiver) = mpsc::channel(4);
        *stand_in.parts.lock().await = Some(receiver);
        sender.send(Ok(first(4))).await.unwrap();
        sender.send(Ok(part(b"evil"))).await.unwrap();
        drop(sender);
        let error = fetched(own.clone(), request.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::DataLoss, "{error}");
        let digest = blake3::hash(&content).to_string();
        let said = error.message();
        assert!(said.contains(&digest) && said.contains(&request.host_id), "{said}");
        assert!(shelf(&bench).is_empty());

        // Three calls; the file goes on when all of them wait for it.
        stand_in.asked.store(0, Ordering::SeqCst);
        let (sender, receiver) = mpsc::channel(4);
        *stand_in.parts.lock().await = Some(receiver);
        sender.send(Ok(first(content.len()))).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut answers = own.clone().fetch_images(request.clone()).await.unwrap().into_inner();
            assert!(answers.message().await.unwrap().is_some());
            waiting.push(answers);
        }
        // One of them does not want it any more.
        drop(waiting.pop());
        for bytes in content.chunks(256 * 1024) {
            sender.send(Ok(part(bytes))).await.unwrap();
        }
        drop(sender);
        for mut answers in waiting {
            while answers.message().await.unwrap().is_some() {}
        }
        assert_eq!(stand_in.asked.load(Ordering::SeqCst), 1);
        assert_eq!(fs::read(&shelf(&bench)[0]).unwrap(), content);
        server.abort();
    });
}
