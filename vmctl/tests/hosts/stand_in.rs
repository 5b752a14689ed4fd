//! vmmds without VMs of their own: each says what it is told to, on a Unix socket. They are known
//! to a real scheduler.

use patina_proto::v1::{
    self, ExecExit, ExecRequest, ExecResponse, HostIdentity, HostInfo, HostMessage, KillVmRequest,
    ListVmsRequest, ListVmsResponse, LogsRequest, LogsResponse, Register, Vm, VmState, exec_request,
    exec_response,
    host_message::Message,
    host_scheduler_client::HostSchedulerClient,
    vmmd_server::{Vmmd, VmmdServer},
};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server},
};

/// For whatever should happen soon.
pub const SOON: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;
type Parts<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a vmmd says.
#[derive(Debug, Default)]
pub struct StandIn {
    pub id: String,
    /// Where it says that the scheduler is.
    pub scheduler: String,
    pub vms: Mutex<Vec<Vm>>,
}

impl StandIn {
    fn find(&self, name: &str) -> Result<Vm, Status> {
        let vms = self.vms.lock().unwrap();
        let found = vms.iter().find(|vm| vm.name == name).cloned();
        found.ok_or_else(|| Status::not_found(format!("find VM {name}: there is none")))
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vm)) -> Answer<Vm> {
        self.find(name)?;
        let mut vms = self.vms.lock().unwrap();
        let vm = vms.iter_mut().find(|vm| vm.name == name).unwrap();
        change(vm);
        Ok(Response::new(vm.clone()))
    }
}

/// Implements the service: these calls, and the rest is refused.
macro_rules! vmmd {
    ({ $($written:item)* } $($name:ident: $request:ident => $answer:ident,)*) => {
        #[tonic::async_trait]
        impl Vmmd for StandIn {
            $($written)*
            $(async fn $name(&self, _: Request<v1::$request>) -> Answer<v1::$answer> {
                Err(Status::unimplemented(""))
            })*
        }
    };
}

vmmd! {
    {
        type ExecStream = Parts<ExecResponse>;
        type ConsoleStream = Parts<v1::ConsoleResponse>;
        type LogsStream = Parts<LogsResponse>;
        type WatchEventsStream = Parts<v1::Event>;

        async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Answer<v1::Host> {
            let (id, scheduler) = (self.id.clone(), self.scheduler.clone());
            Ok(Response::new(v1::Host { id, scheduler, ..v1::Host::default() }))
        }

        async fn list_vms(&self, _: Request<ListVmsRequest>) -> Answer<ListVmsResponse> {
            let vms = self.vms.lock().unwrap().clone();
            Ok(Response::new(ListVmsResponse { vms, next_page_token: String::new() }))
        }

        async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer<Vm> {
            self.find(&request.into_inner().name).map(Response::new)
        }

        async fn kill_vm(&self, request: Request<KillVmRequest>) -> Answer<Vm> {
            let vm = self.find(&request.into_inner().name)?;
            let mut vms = self.vms.lock().unwrap();
            vms.iter_mut().filter(|other| other.name == vm.name).for_each(|vm| vm.set_state(VmState::Ended));
            Ok(Response::new(vm))
        }

        async fn remove_vm(&self, request: Request<v1::RemoveVmRequest>) -> Answer<v1::RemoveVmResponse> {
            let vm = self.find(&request.into_inner().name)?;
            self.vms.lock().unwrap().retain(|other| other.name != vm.name);
            Ok(Response::new(v1::RemoveVmResponse::default()))
        }

        async fn publish_ports(&self, request: Request<v1::PublishPortsRequest>) -> Answer<Vm> {
            let v1::PublishPortsRequest { name, ports } = request.into_inner();
            self.change(&name, |vm| vm.ports.extend(ports))
        }

        async fn unpublish_ports(&self, request: Request<v1::UnpublishPortsRequest>) -> Answer<Vm> {
            let v1::UnpublishPortsRequest { name, ports } = request.into_inner();
            let is_closed = |port: &v1::PublishedPort| ports.iter().any(|other| other.host_port == port.host_port);
            self.change(&name, |vm| vm.ports.retain(|port| !is_closed(port)))
        }

        /// One part, and with --follow another one for each call that comes meanwhile.
        async fn logs(&self, request: Request<LogsRequest>) -> Answer<Parts<LogsResponse>> {
            let LogsRequest { name, follow, .. } = request.into_inner();
            self.find(&name)?;
            let part = LogsResponse { data: format!("{name} on {}\n", self.id).into_bytes() };
            let parts = tokio_stream::once(Ok(part));
            if follow {
                return Ok(Response::new(Box::pin(parts.chain(tokio_stream::pending()))));
            }
            Ok(Response::new(Box::pin(parts)))
        }

        /// Its input is its output, and its exit code 7, or that of a signal.
        async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Parts<ExecResponse>> {
            let mut input = request.into_inner();
            let first = input.message().await?.and_then(|first| first.message);
            let Some(exec_request::Message::Start(start)) = first else { return Err(Status::internal("start")) };
            self.find(&start.name)?;
            let output = input.filter_map(|part| {
                let message = match part.ok()?.message? {
                    exec_request::Message::Stdin(bytes) => exec_response::Message::Stdout(bytes),
                    exec_request::Message::Signal(number) =>
                        exec_response::Message::Exit(ExecExit { code: 128 + number, ..ExecExit::default() }),
                    exec_request::Message::StdinEnd(_) => exec_response::Message::Exit(ExecExit { code: 7, ..ExecExit::default() }),
                    _ => return None,
                };
                Some(Ok(ExecResponse { message: Some(message) }))
            });
            Ok(Response::new(Box::pin(output)))
        }

        async fn console(&self, _: Request<Streaming<v1::ConsoleRequest>>) -> Answer<Parts<v1::ConsoleResponse>> {
            Err(Status::unimplemented(""))
        }

        async fn watch_events(&self, _: Request<v1::WatchEventsRequest>) -> Answer<Parts<v1::Event>> {
            Err(Status::unimplemented(""))
        }
    }
    create_vm: CreateVmRequest => Vm,
    clone_vm: CloneVmRequest => CloneVmResponse,
    wait_vm: WaitVmRequest => Vm,
    list_usage: ListUsageRequest => ListUsageResponse,
    create_snapshot: CreateSnapshotRequest => CreateSnapshotResponse,
    restore_snapshot: RestoreSnapshotRequest => RestoreSnapshotResponse,
    list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse,
    get_snapshot: GetSnapshotRequest => Snapshot,
    verify_snapshot: VerifySnapshotRequest => VerifySnapshotResponse,
    remove_snapshot: RemoveSnapshotRequest => RemoveSnapshotResponse,
    list_images: ListImagesRequest => ListImagesResponse,
    prune_images: PruneImagesRequest => PruneImagesResponse,
}

/// A VM that runs.
pub fn vm(name: &str, family: &str, vmid: u32) -> Vm {
    let (name, family) = (name.to_owned(), family.to_owned());
    let parent_vmid = (vmid > 0).then_some(0);
    let uuid = format!("0f8e7d6c-0000-4000-8000-{vmid:012}");
    Vm { name, family, vmid, parent_vmid, uuid, state: VmState::Ready.into(), vcpus: 1, ..Vm::default() }
}

/// The UUID of a host.
pub fn id(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Serves a vmmd on a socket.
pub fn serve(socket: &Path, vmmd: Arc<StandIn>) {
    let listener = UnixListener::bind(socket).unwrap();
    let served = Server::builder().add_service(VmmdServer::from_arc(vmmd));
    tokio::spawn(served.serve_with_incoming(UnixListenerStream::new(listener)));
}

/// A scheduler, and the hosts that it knows.
pub struct Cluster {
    folder: TempDir,
    scheduler: Child,
    registered: Vec<JoinHandle<()>>,
    pub hosts: Vec<Arc<StandIn>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.scheduler.kill().unwrap();
        self.scheduler.wait().unwrap();
    }
}

impl Cluster {
    /// Starts the scheduler, and waits until it is ready.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_vmctl")).with_file_name("examples/scheduler_for_vmctl");
        let manager = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(SOON)).unwrap();
        let scheduler = Command::new(program)
            .current_dir(folder.path())
            .arg(format!("--listen=unix:{}/s.sock", folder.path().display()))
            .args(["--state-dir=state", "--lost-after=1h"])
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .spawn()
            .unwrap();
        manager.recv(&mut [0; 16]).unwrap();
        Self { folder, scheduler, registered: Vec::new(), hosts: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn scheduler_address(&self) -> String {
        format!("unix:{}", self.path("s.sock").display())
    }

    /// The address of the host of this number.
    pub fn address(&self, number: u32) -> String {
        format!("unix:{}", self.path(&format!("{number}.sock")).display())
    }

    /// Starts the next host, with these VMs.
    pub async fn add(&mut self, name: &str, vms: Vec<Vm>) {
        let number = self.hosts.len() as u32;
        let scheduler = self.scheduler_address();
        let host = Arc::new(StandIn { id: id(number), scheduler, vms: Mutex::new(vms) });
        serve(&self.path(&format!("{number}.sock")), Arc::clone(&host));
        self.hosts.push(host);
        self.register(name, &id(number), &self.address(number)).await;
    }

    /// Has a host known to the scheduler, whether there is one or not.
    pub async fn register(&mut self, name: &str, id: &str, address: &str) {
        let channel = Endpoint::from_shared(self.scheduler_address()).unwrap().connect().await.unwrap();
        let identity = HostIdentity { instance: id.into(), ..HostIdentity::default() };
        let info = HostInfo {
            id: id.into(),
            name: name.into(),
            address: address.into(),
            cpus: 1,
            memory_mib: 1024,
            identity: Some(identity),
            ..HostInfo::default()
        };
        let register = Register { info: Some(info), ..Register::default() };
        let (messages, outgoing) = mpsc::channel(1);
        messages.send(HostMessage { message: Some(Message::Register(register)) }).await.unwrap();
        let mut client = HostSchedulerClient::new(channel);
        let mut orders = client.register_host(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        orders.message().await.unwrap().unwrap();
        self.registered.push(tokio::spawn(async move {
            while let Ok(Some(_)) = orders.message().await {}
            drop(messages);
        }));
    }

    /// Ends the registration of the host that was registered last.
    pub async fn leave(&mut self) {
        let registered = self.registered.pop().unwrap();
        registered.abort();
        drop(registered.await);
    }

    /// A vmctl that calls host 0.
    pub fn command(&self, words: &str) -> Command {
        self.command_at(&self.address(0), words)
    }

    pub fn command_at(&self, host: &str, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        for name in ["PATINA_HOST", "PATINA_SCHEDULER", "PATINA_TLS_DIR"] {
            command.env_remove(name);
        }
        command.args(["--host", host]).args(words.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs vmctl on host 0: its exit code, and what it prints.
    pub async fn vmctl(&self, words: &str) -> (i32, String, String) {
        ran(self.command(words)).await
    }
}

/// Runs a command: its exit code, and what it prints.
pub async fn ran(mut command: Command) -> (i32, String, String) {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stdout, stderr } = run.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}
