//! A state folder with a snapshot, and a vmm that is played by the test.

use crate::sys::View;
use patina_control::{
    messages::{Open, Opened},
    pager::{Mapping, PagerToVm, RUN_BYTES, VERSION, VmToPager},
    {memfd, rights},
};
use patina_jail::userfaultfd::{UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM};
use patina_snapshot::{
    directory::{Snapshot, create, unwatched},
    manifest::{Description, ImageRef},
};
use rustix::{
    net::{RecvFlags, recv},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open},
};
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::Shutdown,
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::{
            fs::FileExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{sync::oneshot, time::timeout};
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};
use uuid::Uuid;
use vmmd::{
    pager::Pager,
    process::{filling::Filling, generation::Generation},
    store::VmDir,
};

/// So much that a pager that is asked to stop has not filled all of it.
pub const MEMORY_MIB: u32 = 512;
pub const BYTES: u64 = (MEMORY_MIB as u64) << 20;
pub const RUNS: u64 = BYTES / RUN_BYTES;
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A state folder, and a snapshot beside it.
pub struct Host {
    folder: TempDir,
    pub layer: PathBuf,
}

/// What the first word of a run is.
pub fn word(run: u64) -> u64 {
    (run + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Host {
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let memory = File::from(rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(BYTES).unwrap();
        let mut run = vec![7; RUN_BYTES as usize];
        for number in 0..RUNS {
            run[..8].copy_from_slice(&word(number).to_le_bytes());
            memory.write_all_at(&run, number * RUN_BYTES).unwrap();
        }
        let state = memfd::sealed("state", b"a state").unwrap();
        let place = folder.path().join("snapshot");
        create(&place, &description(), &state, (&[&memory], &[]), &mut |_| None, &unwatched).unwrap();
        let entries = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path());
        let layer = entries.into_iter().find(|path| path.to_string_lossy().contains("/layer-")).unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        Self { folder, layer }
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::open(&self.folder.path().join("snapshot")).unwrap())
    }

    pub fn pager(&self) -> Pager {
        Pager::new(program_path(), &self.state())
    }

    pub fn vm_dir(&self, name: &str) -> VmDir {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        VmDir::at(path)
    }

    /// The pager's process.
    pub fn pid(&self) -> Option<Pid> {
        let mark = format!("PATINA_VM_DIR={}\0", self.state().join("pager/process").display());
        let pids = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&mark)
        };
        pids.into_iter().find(is_it).and_then(Pid::from_raw)
    }

    /// The sockets that the pager has open, by number.
    pub fn sockets(&self) -> Vec<RawFd> {
        let entries =
            std::fs::read_dir(format!("/proc/{}/fd", self.pid().unwrap().as_raw_nonzero())).unwrap();
        let is_socket = |path: &PathBuf| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        };
        let sockets = entries.flatten().map(|entry| entry.path()).filter(is_socket);
        sockets.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
    }

    /// Reads in the pager's place what a vmm says first. False: none has said anything.
    pub fn read_attach(&self) -> bool {
        let pager = pidfd_open(self.pid().unwrap(), PidfdFlags::empty()).unwrap();
        self.sockets().into_iter().any(|number| {
            let socket = pidfd_getfd(&pager, number, PidfdGetfdFlags::empty()).unwrap();
            let mut said = [0; 1024];
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let length = recv(&socket, said.as_mut_slice(), peek).map_or(0, |(length, _)| length);
            let is_it = matches!(serde_json::from_slice(&said[..length]), Ok(VmToPager::Attach { .. }));
            is_it && recv(&socket, said.as_mut_slice(), RecvFlags::DONTWAIT).unwrap().0 == length
        })
    }

    /// Sends the pager a signal. Which one it was.
    pub fn signal(&self, signal: Signal) -> Pid {
        let pid = self.pid().expect("a pager runs");
        kill_process(pid, signal).unwrap();
        pid
    }

    /// The descriptors of the layer's file that this process and the pager have.
    pub fn opens_of_layer(&self) -> Vec<PathBuf> {
        let pager = self.pid().map(|pid| pid.as_raw_nonzero().to_string());
        let folders = ["self".to_owned()].into_iter().chain(pager);
        let entries = folders.flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap());
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| std::fs::read_link(path).is_ok_and(|file| file == self.layer)).collect()
    }

    /// How many sockets and userfaultfds the pager has open.
    pub fn held_by_pager(&self) -> [usize; 2] {
        let folder = format!("/proc/{}/fd", self.pid().unwrap().as_raw_nonzero());
        let names = std::fs::read_dir(folder).unwrap().flatten();
        let names: Vec<_> = names.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        ["socket:", "anon_inode:[userfaultfd]"]
            .map(|of| names.iter().filter(|name| name.to_string_lossy().starts_with(of)).count())
    }

    /// How many layers the pager has open.
    pub fn open_layers(&self) -> usize {
        let Some(pid) = self.pid() else { return 0 };
        let entries = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
        let names = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        names.filter(|name| name.to_string_lossy().contains("memfd:patina-layer")).count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.pid().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

pub fn program_path() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_vmmd")).with_file_name("examples/pager")
}

fn description() -> Description {
    let image = |name: &str| ImageRef {
        digest: patina_snapshot::manifest::image_digest(&memfd::sealed("image", name.as_bytes()).unwrap())
            .unwrap(),
        path: name.into(),
    };
    Description {
        uuid: Uuid::from_bytes([7; 16]),
        created_unix_ms: 1_795_800_000_000,
        name: "web".to_owned(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        cmdline: String::new(),
        kernel: image("/images/vmlinux"),
        rootfs: image("/images/root.erofs"),
        agent_abi: 4,
        prefault_list: Vec::new(),
    }
}

/// A vmm: its view of the only layer, and its control socket.
pub struct Vmm {
    pub uuid: Uuid,
    pub dir: VmDir,
    pub view: Arc<View>,
    // As a vmm has it, to map and to send it.
    _layer: File,
    uffd: Arc<Uffd>,
    pager: Arc<Mutex<Option<UnixStream>>>,
}

impl Vmm {
    /// Starts from a generation.
    pub fn start(dir: VmDir, uuid: Uuid, generation: &Generation, filling: Filling) -> Self {
        Self::start_late(dir, uuid, generation, filling, None)
    }

    /// The same. If there is `instead`, that is called when the pager says first that it serves the
    /// VM, and the vmm goes on as if that had not come.
    pub fn start_late(
        dir: VmDir,
        uuid: Uuid,
        generation: &Generation,
        filling: Filling,
        instead: Option<Box<dyn FnOnce()>>,
    ) -> Self {
        assert_eq!(filling.layers, [0]);
        let layer = generation.open().unwrap().layers.remove(0);
        let view = Arc::new(View::map(&layer, BYTES as usize));
        let uffd = userfaultfd();
        uffd.register_with_mode(view.address(), view.bytes(), MODES).unwrap();
        let (uffd, pager) = (Arc::new(uffd), Arc::new(Mutex::new(None)));
        let vmm = Self { uuid, dir, view, _layer: layer, uffd, pager };
        vmm.listen();
        attach(filling.pager, &vmm.view, &vmm.uffd, &vmm.pager, instead).unwrap();
        vmm
    }

    /// Takes the sockets of other pagers.
    fn listen(&self) {
        let listener = UnixListener::bind(self.dir.socket()).unwrap();
        let (view, uffd, pager) = (Arc::clone(&self.view), Arc::clone(&self.uffd), Arc::clone(&self.pager));
        std::thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                let mut bytes = [0; 64];
                let (length, mut descriptors) = rights::receive(&stream, &mut bytes).unwrap();
                assert_eq!(serde_json::from_slice::<Open>(&bytes[..length]).unwrap(), Open::Pager);
                let answer = match attach(descriptors.remove(0), &view, &uffd, &pager, None) {
                    Ok(()) => Opened::Ok,
                    Err(reason) => Opened::Error(reason),
                };
                let mut line = serde_json::to_vec(&answer).unwrap();
                line.push(b'\n');
                patina_control::best_effort(
                    rights::send(&stream, &line, &[]),
                    "the pager's keeper may be gone",
                );
            }
        });
    }

    /// Whether its accesses wait for no userfaultfd: another one can have them.
    pub fn is_unregistered(&self) -> bool {
        userfaultfd().register_with_mode(self.view.address(), self.view.bytes(), MODES).is_ok()
    }

    /// The first word of a run, as the guest sees it.
    pub fn read(&self, run: u64) -> u64 {
        u64::from_le_bytes(self.view.read((run * RUN_BYTES) as usize).unwrap())
    }

    /// Reads it in a thread, which may wait for ever.
    pub fn read_beside(&self, run: u64) -> Waits {
        let (view, (sender, read)) = (Arc::clone(&self.view), oneshot::channel());
        std::thread::spawn(move || {
            sender.send(view.read((run * RUN_BYTES) as usize).map(u64::from_le_bytes))
        });
        Waits(read)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        leave(self.pager.lock().unwrap().take());
    }
}

const MODES: RegisterMode = RegisterMode::MISSING.union(RegisterMode::MINOR);

fn userfaultfd() -> Uffd {
    let features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
    let features = FeatureFlags::from_bits_retain(features);
    let mut uffd = UffdBuilder::new();
    uffd.close_on_exec(true).non_blocking(true).user_mode_only(false).require_features(features);
    uffd.create().unwrap()
}

/// A read that waits for a page.
pub struct Waits(oneshot::Receiver<std::io::Result<u64>>);

impl Waits {
    /// What it has read.
    pub async fn done(self) -> std::io::Result<u64> {
        timeout(PATIENCE, self.0).await.expect("the page is served").unwrap()
    }
}

fn attach(
    socket: OwnedFd,
    view: &View,
    uffd: &Uffd,
    pager: &Mutex<Option<UnixStream>>,
    mut instead: Option<Box<dyn FnOnce()>>,
) -> Result<(), String> {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (address, bytes) = (view.address() as u64, view.bytes() as u64);
    let mappings = Mapping::encode(&[Mapping { address, bytes, offset: 0, layer: 0 }]);
    let mappings = memfd::sealed("mappings", &mappings).unwrap();
    let attach = VmToPager::Attach { version: VERSION, tracks_writes: false };
    let mut line = serde_json::to_vec(&attach).unwrap();
    line.push(b'\n');
    let uffd = uffd.as_fd().try_clone_to_owned().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let kept = stream.try_clone().unwrap();
    let say = move || rights::send(&stream, &line, &[uffd.as_fd(), mappings.as_fd()]);
    say().map_err(|error| error.to_string())?;
    loop {
        let mut said = String::new();
        reader.read_line(&mut said).map_err(|error| error.to_string())?;
        match serde_json::from_str(&said) {
            Ok(PagerToVm::Attached) => match instead.take() {
                Some(instead) => instead(),
                None => break,
            },
            Ok(PagerToVm::AttachAgain) => say().map_err(|error| error.to_string())?,
            other => return Err(format!("{other:?}")),
        }
    }
    kept.set_read_timeout(None).unwrap();
    std::thread::spawn(move || {
        // Another pager may get the socket. The end: the vmm has ended, or has another socket.
        let mut said = String::new();
        while reader.read_line(&mut said).is_ok_and(|length| length > 0) {
            if matches!(serde_json::from_str(&said), Ok(PagerToVm::AttachAgain)) {
                patina_control::best_effort(say(), "this pager may be gone, too");
            }
            said.clear();
        }
    });
    leave(pager.lock().unwrap().replace(kept));
    Ok(())
}

fn leave(pager: Option<UnixStream>) {
    if let Some(pager) = pager {
        patina_control::best_effort(pager.shutdown(Shutdown::Both), "the pager may be gone");
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
