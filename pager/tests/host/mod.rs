//! What `vmmd` and vmms are to a pager, played by a test.

pub mod fuse;
pub mod sys;

use patina_control::pager::{
    DemandBitmap, FromPager, Id, LayerStatus, Mapping, PagerToVm, RUN_BYTES, ToPager, VERSION, VmToPager,
    layer_memfd,
};
use patina_control::{memfd, rights};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use sys::View;
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// Why there can be no userfaultfd here, or no file system that stalls.
pub fn missing() -> Option<String> {
    let node = File::options().read(true).write(true).open("/dev/userfaultfd").err();
    node.map(|error| format!("open /dev/userfaultfd: {error}"))
}

/// Why no file system that stalls can be mounted.
pub fn missing_fuse() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting a file system needs root".into());
    }
    let device = File::options().read(true).write(true).open("/dev/fuse").err();
    device.map(|error| format!("open /dev/fuse: {error}"))
}

/// How long anything may take, on however busy a machine. The pager's own limits are shorter; how
/// long it takes is for the benchmarks.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn id(name: &str) -> Id {
    Id::try_from(name.to_owned()).expect("a name")
}

/// A connection with lines and descriptors.
#[derive(Debug)]
pub struct Peer {
    pub stream: UnixStream,
    input: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Peer {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, input: Vec::new(), descriptors: VecDeque::new() }
    }

    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) {
        let mut line = serde_json::to_vec(message).expect("JSON");
        line.push(b'\n');
        rights::send(&self.stream, &line, descriptors).expect("sent");
    }

    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line).expect("a message"));
            }
            let mut chunk = [0; 4096];
            let (length, descriptors) = rights::receive(&self.stream, &mut chunk)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.input.extend(&chunk[..length]);
            self.descriptors.extend(descriptors);
        }
    }

    pub fn descriptor(&mut self) -> OwnedFd {
        self.descriptors.pop_front().expect("a descriptor")
    }
}

/// A real pager, and `vmmd`'s connection to it. It is killed when dropped.
#[derive(Debug)]
pub struct Pager {
    pub child: Child,
    pub peer: Peer,
    path: tempfile::TempDir,
    seen: Vec<FromPager>,
}

impl Pager {
    pub fn start() -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_pager")))
    }

    /// One that may have so many descriptors.
    pub fn start_with_descriptors(most: usize) -> Self {
        let mut command = Command::new("/bin/sh");
        let script = r#"ulimit -n "$1"; shift; exec "$@""#;
        command.args(["-c", script, "sh", &most.to_string(), env!("CARGO_BIN_EXE_pager")]);
        Self::start_as(command)
    }

    fn start_as(mut command: Command) -> Self {
        let path = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(path.path().join("pager.sock")).expect("a socket");
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).expect("inheritable");
        let child = command
            .arg("--control-fd")
            .arg(listener.as_raw_fd().to_string())
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .expect("a pager");
        let stream = UnixStream::connect(path.path().join("pager.sock")).expect("a connection");
        let mut pager = Self { child, peer: Peer::new(stream), path, seen: Vec::new() };
        let hello: FromPager = pager.peer.receive().expect("a hello");
        assert_eq!(hello, FromPager::Hello { version: VERSION });
        pager
    }

    /// As a `vmmd` that was restarted.
    pub fn reconnect(&mut self) {
        self.peer = Peer::new(self.connect());
    }

    /// One more connection.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path.path().join("pager.sock")).expect("a connection")
    }

    /// The first message, of those that came or the next, that `select` takes.
    pub fn wait<T>(&mut self, select: impl Fn(&FromPager) -> Option<T>) -> T {
        if let Some((at, found)) = self.seen.iter().enumerate().find_map(|(at, m)| Some((at, select(m)?))) {
            self.seen.remove(at);
            return found;
        }
        loop {
            let message =
                self.peer.receive().unwrap_or_else(|error| panic!("{error}; seen: {:?}", self.seen));
            match select(&message) {
                Some(found) => return found,
                None => self.seen.push(message),
            }
        }
    }

    pub fn add(&mut self, layer: &Layer) -> Result<LayerStatus, String> {
        let mut descriptors = vec![layer.memfd.as_fd(), layer.digests.as_fd(), layer.source.as_fd()];
        descriptors.extend(layer.demand.as_ref().map(AsFd::as_fd));
        let message = ToPager::AddLayer {
            layer: layer.id.clone(),
            bytes: layer.content.len() as u64,
            has_demand: layer.demand.is_some(),
            fill: layer.fill,
            source: None,
        };
        self.peer.send(&message, &descriptors);
        let ours = |id: &Id| *id == layer.id;
        self.wait(|message| match message {
            FromPager::Layer(status) if ours(&status.layer) => Some(Ok(status.clone())),
            FromPager::LayerRefused { layer, reason } if ours(layer) => Some(Err(reason.clone())),
            _ => None,
        })
    }

    pub fn status(&mut self, layer: &Layer) -> LayerStatus {
        self.peer.send(&ToPager::Layer { layer: layer.id.clone() }, &[]);
        self.wait(|message| match message {
            FromPager::Layer(status) if status.layer == layer.id => Some(status.clone()),
            _ => None,
        })
    }

    /// What VMs have demanded of a layer: buckets and runs.
    pub fn demand(&mut self, layer: &Layer) -> Vec<(u8, usize)> {
        self.peer.send(&ToPager::Demand { layer: layer.id.clone() }, &[]);
        self.wait(|message| matches!(message, FromPager::Demand { .. }).then_some(()));
        let memfd = File::from(self.peer.descriptor());
        let bytes = patina_control::pager::read_sealed(&memfd, 1 << 20).expect("a sealed memfd");
        let demand = DemandBitmap::decode(&bytes, layer.content.len() as u64).expect("a bitmap");
        demand.in_order().collect()
    }

    /// Waits until a run of a layer has failed: the reason, and each VM with whether it notices by
    /// itself.
    pub fn wait_for_failure(&mut self, layer: &Layer, run: u64) -> (String, Vec<(String, bool)>) {
        self.wait(|message| match message {
            FromPager::RunFailed { layer: id, run: at, reason, vms } if *id == layer.id && *at == run => {
                let vms = vms.iter().map(|vm| (vm.vm.to_string(), vm.is_poisoned)).collect();
                Some((reason.clone(), vms))
            }
            _ => None,
        })
    }

    /// Waits until so many faults wait for runs.
    pub fn wait_for_waiting(&mut self, faults: usize) {
        loop {
            self.peer.send(&ToPager::Status, &[]);
            let waiting = self.wait(|message| match message {
                FromPager::Status(status) => Some(status.waiting),
                _ => None,
            });
            if waiting >= faults {
                return;
            }
        }
    }

    pub fn wait_for_completion(&mut self, layer: &Layer) {
        self.wait(|message| match message {
            FromPager::LayerComplete { layer: id } if *id == layer.id => Some(()),
            _ => None,
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("an end");
    }

    /// Gives it a VM's socket; the VM's end.
    pub fn connect_vm(&mut self, name: &str, layers: &[&Layer]) -> Peer {
        self.connect_vm_of_age(name, layers, 0)
    }

    /// As [`Self::connect_vm`], for a VM that has run so long.
    pub fn connect_vm_of_age(&mut self, name: &str, layers: &[&Layer], age_ms: u64) -> Peer {
        self.give_socket(name, layers, (age_ms, false))
    }

    /// As [`Self::connect_vm`], with a socket that another pager has had before.
    pub fn connect_vm_again(&mut self, name: &str, layers: &[&Layer]) -> Peer {
        self.give_socket(name, layers, (0, true))
    }

    fn give_socket(&mut self, name: &str, layers: &[&Layer], (age_ms, is_again): (u64, bool)) -> Peer {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let layers = layers.iter().map(|layer| layer.id.clone()).collect();
        self.peer.send(&ToPager::AttachVm { vm: id(name), layers, age_ms, is_again }, &[theirs.as_fd()]);
        Peer::new(ours)
    }

    /// Why a VM is not served, or not any longer.
    pub fn wait_for_gone(&mut self, name: &str) -> String {
        self.wait(|message| match message {
            FromPager::VmGone { vm, reason } if *vm == id(name) => Some(reason.clone()),
            _ => None,
        })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A layer: what it should hold, and what a pager is given for it.
#[derive(Debug)]
pub struct Layer {
    pub id: Id,
    pub content: Vec<u8>,
    pub memfd: File,
    pub digests: File,
    pub source: File,
    pub demand: Option<File>,
    pub fill: bool,
}

/// Bytes that tell their place, without a page of zeros; runs that `is_zero` takes are zero.
pub fn pattern(runs: usize, is_zero: impl Fn(usize) -> bool) -> Vec<u8> {
    let word =
        |at: usize| (at as u64 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
    let run_bytes = RUN_BYTES as usize;
    let run = |run: usize| {
        let words = (0..run_bytes / 8).flat_map(move |at| word(run * run_bytes + at * 8));
        let zero = is_zero(run);
        words.map(move |byte| if zero { 0 } else { byte })
    };
    (0..runs).flat_map(run).collect()
}

pub fn digests(content: &[u8]) -> Vec<u8> {
    let digest = |run: &[u8]| match run.iter().all(|byte| *byte == 0) {
        true => [0; 32],
        false => *blake3::hash(run).as_bytes(),
    };
    content.chunks(RUN_BYTES as usize).flat_map(digest).collect()
}

impl Layer {
    /// A layer of this content, whose file is `source`.
    pub fn with(name: &str, content: Vec<u8>, source: File) -> Self {
        Self {
            id: id(name),
            memfd: layer_memfd(name, content.len() as u64).expect("a memfd"),
            digests: memfd::sealed("digests", &digests(&content)).expect("a memfd"),
            source,
            content,
            demand: None,
            fill: false,
        }
    }

    /// A layer of this content, in a file of a temporary folder.
    pub fn new(name: &str, content: Vec<u8>) -> Self {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, &content).expect("written");
        Self::with(name, content, file)
    }

    /// How many bytes of the memfd have memory.
    pub fn used(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&self.memfd.metadata().expect("a file")) * 512
    }

    /// The memfd as vmms get it: for reading only.
    pub fn read_only(&self) -> File {
        File::open(format!("/proc/self/fd/{}", self.memfd.as_raw_fd())).expect("opened again")
    }
}

/// A vmm with one view of a layer.
#[derive(Debug)]
pub struct Vm {
    pub view: Arc<View>,
    pub uffd: Uffd,
    pub peer: Peer,
    pub tracks_writes: bool,
}

pub const MODES: RegisterMode = RegisterMode::MISSING.union(RegisterMode::MINOR);

/// A userfaultfd as a vmm makes it.
pub fn userfaultfd() -> Uffd {
    use patina_jail::userfaultfd::{
        UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_WP_ASYNC,
    };
    let features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
    UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::from_bits_retain(features))
        .create()
        .expect("a userfaultfd")
}

impl Vm {
    /// Maps and registers all of a layer, and tells the pager.
    pub fn attach(pager: &mut Pager, name: &str, layer: &Layer) -> Self {
        Self::attach_with(pager, name, layer, MODES, false)
    }

    /// As [`Self::attach`], for a VM that has run so long.
    pub fn attach_of_age(pager: &mut Pager, name: &str, layer: &Layer, age_ms: u64) -> Self {
        Self::make(|| pager.connect_vm_of_age(name, &[layer], age_ms), layer, MODES, false)
    }

    pub fn attach_with(
        pager: &mut Pager,
        name: &str,
        layer: &Layer,
        modes: RegisterMode,
        tracks_writes: bool,
    ) -> Self {
        Self::make(|| pager.connect_vm(name, &[layer]), layer, modes, tracks_writes)
    }

    fn make(connect: impl FnOnce() -> Peer, layer: &Layer, modes: RegisterMode, tracks_writes: bool) -> Self {
        let view = Arc::new(View::map(&layer.read_only(), layer.content.len(), 0).expect("a view"));
        let uffd = userfaultfd();
        uffd.register_with_mode(view.address(), view.bytes, modes).expect("registered");
        let peer = connect();
        let mut vm = Self { view, uffd, peer, tracks_writes };
        vm.introduce();
        assert_eq!(vm.hear(), PagerToVm::Attached);
        vm
    }

    /// Attaches to another pager.
    pub fn attach_again(&mut self, pager: &mut Pager, name: &str, layer: &Layer) {
        self.peer = pager.connect_vm(name, &[layer]);
        self.introduce();
        assert_eq!(self.hear(), PagerToVm::Attached);
    }

    fn introduce(&self) {
        let (address, bytes) = (self.view.address() as u64, self.view.bytes as u64);
        let mappings = Mapping::encode(&[Mapping { address, bytes, offset: 0, layer: 0 }]);
        attach(&self.peer, self.uffd.as_fd(), &mappings, self.tracks_writes);
    }

    pub fn hear(&mut self) -> PagerToVm {
        self.peer.receive().expect("an answer")
    }

    /// Reads all of it, run by run, and compares it with what it should be.
    pub fn check(&self, content: &[u8]) {
        for (run, expected) in content.chunks(RUN_BYTES as usize).enumerate() {
            let read = self.view.read(run * RUN_BYTES as usize, expected.len()).expect("the run");
            assert!(read == expected, "run {run} is not what it should be");
        }
    }
}

/// Names what this program does when it is started again, as a VM's process.
pub const CHILD: &str = "PATINA_TEST_CHILD";

/// Starts this program again, as a process of a VM with the name `child`.
pub fn start_child(task: &str, pager: &mut Pager, layer: &Layer) -> Child {
    let peer = pager.connect_vm("child", &[layer]);
    let memfd = layer.read_only();
    for fd in [peer.stream.as_fd(), memfd.as_fd()] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).expect("inheritable");
    }
    Command::new(std::env::current_exe().expect("this program"))
        .env(CHILD, format!("{task} {} {}", peer.stream.as_raw_fd(), memfd.as_raw_fd()))
        .spawn()
        .expect("a child")
}

/// The child: maps the layer, attaches, and has a fault.
pub fn child(task: &str) -> ExitCode {
    let mut words = task.split(' ');
    let (task, socket, memfd) = (words.next(), words.next(), words.next());
    let open = |fd: Option<&str>| sys::inherited(fd.and_then(|fd| fd.parse().ok()).expect("a descriptor"));
    let (mut peer, memfd) = (Peer::new(UnixStream::from(open(socket))), File::from(open(memfd)));
    let bytes = memfd.metadata().expect("a length").len() as usize;
    let view = View::map(&memfd, bytes, 0).expect("a view");
    let uffd = userfaultfd();
    uffd.register_with_mode(view.address(), view.bytes, MODES).expect("registered");
    let known = if task == Some("outside") { RUN_BYTES } else { bytes as u64 };
    let at = Mapping { address: view.address() as u64, bytes: known, offset: 0, layer: 0 };
    attach(&peer, uffd.as_fd(), &Mapping::encode(&[at]), false);
    assert_eq!(peer.receive::<PagerToVm>().expect("an answer"), PagerToVm::Attached);
    // Never returns, in these tests.
    let read = view.read(bytes - 4096, 1);
    panic!("it has read {read:?}");
}

pub fn attach(peer: &Peer, uffd: BorrowedFd<'_>, mappings: &[u8], tracks_writes: bool) {
    let mappings = memfd::sealed("mappings", mappings).expect("a memfd");
    peer.send(&VmToPager::Attach { version: VERSION, tracks_writes }, &[uffd, mappings.as_fd()]);
}
