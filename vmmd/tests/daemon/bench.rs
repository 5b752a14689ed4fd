//! Where the tests stand: a namespace, a state folder, a `vmmd` in them.
#![allow(unsafe_code, reason = "entering a network namespace")]

use futures::TryStreamExt;
use patina_proto::v1::{self, scheduler_client::SchedulerClient, vmmd_client::VmmdClient};
use rtnetlink::{LinkUnspec, packet_route::link::LinkAttribute};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tonic::transport::Channel;

/// Calls of operators.
pub type Client = VmmdClient<Channel>;

/// A place of its own for one test.
pub struct Bench {
    /// What it runs as a vmm; the stand-in unless a test says otherwise.
    pub vmm: PathBuf,
    /// How many warm VMs its vmmd keeps; none unless a test is about them, so that nothing comes
    /// and goes unasked.
    pub warm: u16,
    /// More arguments for its vmmd. Without `--image-cache` every VM boots.
    pub more: Vec<&'static str>,
    folder: TempDir,
    daemon: Option<Child>,
    /// A scheduler in a process of its own, once it was started.
    scheduler: Option<Child>,
    log: Option<UnboundedReceiver<String>>,
}

/// Runs a story in a namespace of its own.
pub fn tell<F: Future<Output = ()>>(story: impl FnOnce(Bench) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only this thread's network namespace changes; no memory or descriptor table is
        // affected.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            raise_loopback().await;
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("kernel"), b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0")
                .unwrap();
            fs::write(folder.path().join("rootfs"), [1; 512]).unwrap();
            let vmm = Path::new(env!("CARGO_BIN_EXE_vmmd")).with_file_name("examples/stand_in_vmm");
            story(Bench { vmm, warm: 0, more: Vec::new(), folder, daemon: None, scheduler: None, log: None })
                .await;
        });
    });
    thread.join().unwrap();
}

async fn raise_loopback() {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    handle.link().change(LinkUnspec::new_with_index(1).up().build()).execute().await.unwrap();
    connection.abort();
}

/// The bridges and taps of this namespace.
pub async fn interfaces() -> Vec<String> {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let links: Vec<_> = handle.link().get().execute().try_collect().await.unwrap();
    connection.abort();
    let name = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::IfName(name) if name.starts_with("pt") => Some(name.clone()),
        _ => None,
    };
    links.iter().filter_map(|link| link.attributes.iter().find_map(name)).collect()
}

/// Whether a process runs. A dead one that nobody waited for does not; one of whose threads some
/// are still dying does.
pub fn runs(pid: u32) -> bool {
    let tasks: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().collect();
    let is_dead = |task: &fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    };
    tasks.len() > 1 || tasks.iter().any(|task| !is_dead(task))
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives this thread, and what it starts, mounts of its own, with a small disk for the state.
    pub fn small_state(&self) {
        self.small("state", "8m");
    }

    /// The same for one of its folders, with a disk of this size.
    pub fn small(&self, name: &str, size: &str) {
        // SAFETY: only this thread's view of mounts changes, and its working directory is its own
        // from now on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        let run = |arguments: &[&str]| {
            assert!(Command::new("mount").args(arguments).status().unwrap().success());
        };
        fs::create_dir(self.path(name)).unwrap();
        run(&["--make-rprivate", "/"]);
        let size = format!("size={size}");
        run(&["-t", "tmpfs", "-o", &size, "tmpfs", self.path(name).to_str().unwrap()]);
    }

    /// The names under `vms/`.
    pub fn vm_folders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state/vms")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The vmms of vmmd's state, warm ones included.
    pub fn processes(&self) -> BTreeSet<u32> {
        let all = self.processes_of("state/");
        all.difference(&self.processes_of("state/pager/")).copied().collect()
    }

    /// The pager of vmmd's state.
    pub fn pager(&self) -> Option<u32> {
        self.processes_of("state/pager/").into_iter().next()
    }

    /// Those that vmmd started for a folder below this one.
    fn processes_of(&self, folder: &str) -> BTreeSet<u32> {
        let own = format!("PATINA_VM_DIR={}", self.path(folder).display());
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let is_own = |pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environ).contains(&own) && runs(*pid)
        };
        pids.filter(is_own).collect()
    }

    /// Its vmmd's process.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// The folders of warm VMs.
    pub fn warm_folders(&self) -> usize {
        fs::read_dir(self.path("state/warm")).unwrap().count()
    }

    /// Waits until vmmd logs a line that holds `text`, from after the last such wait on.
    pub async fn logged(&mut self, text: &str) -> String {
        let log = self.log.as_mut().unwrap();
        let found = async {
            loop {
                let line = log.recv().await.expect("vmmd runs");
                if line.contains(text) {
                    return line;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.expect("it is logged")
    }

    /// How many memory files whose name begins so vmmd has open.
    pub fn memory_files(&self, name: &str) -> usize {
        let folder = format!("/proc/{}/fd", self.pid());
        let files =
            fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let prefix = format!("/memfd:{name}");
        files.filter(|file| file.to_str().is_some_and(|file| file.starts_with(&prefix))).count()
    }

    pub fn command(&self, state: &str, socket: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmmd"));
        let scheduler = format!("--scheduler=unix:{}", self.path("scheduler.sock").display());
        command
            .arg(if self.scheduler.is_some() { scheduler.as_str() } else { "--standalone" })
            .arg("--state-dir")
            .arg(self.path(state))
            .arg("--listen")
            .arg(format!("unix:{}", self.path(socket).display()))
            .arg("--kernel")
            .arg(self.path("kernel"))
            .arg("--rootfs")
            .arg(self.path("rootfs"))
            .arg("--vmm")
            .arg(&self.vmm)
            .arg("--pager")
            .arg(Path::new(env!("CARGO_BIN_EXE_vmmd")).with_file_name("examples/pager"))
            .arg("--warm")
            .arg(self.warm.to_string())
            .args((!self.more.contains(&"--spare")).then_some("--spare=0"))
            .args((!self.more.contains(&"--image-cache")).then_some("--image-cache=none"))
            .args(&self.more)
            .stdin(Stdio::null());
        command
    }

    /// Starts vmmd and waits until it says that it is ready.
    pub async fn start(&mut self) -> Client {
        let (mut child, client) = self.start_another("state", "vmmd.sock").await;
        let (sender, log) = unbounded_channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
                // A test need not listen.
                sender.send(line).ok();
            }
        });
        (self.daemon, self.log) = (Some(child), Some(log));
        client
    }

    /// Starts a scheduler for its vmmd, or starts it again, and waits until it is ready.
    pub async fn start_scheduler(&mut self) {
        let listen = format!("--listen=unix:{}", self.path("scheduler.sock").display());
        self.start_scheduler_as(&[&listen]).await;
    }

    /// The same, with these options.
    pub async fn start_scheduler_as(&mut self, options: &[&str]) {
        let program = Path::new(env!("CARGO_BIN_EXE_vmmd")).with_file_name("examples/scheduler_process");
        let mut command = Command::new(program);
        command.args(options);
        command.arg(format!("--state-dir={}", self.path("scheduler").display())).arg("--lease=60s");
        self.scheduler = Some(self.spawn(&mut command).await);
    }

    /// Sends the scheduler a signal; one that ends it is waited for.
    pub fn signal_scheduler(&mut self, signal: Signal) {
        let child = self.scheduler.as_mut().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
        if signal == Signal::KILL {
            child.wait().unwrap();
        }
    }

    /// A channel to the scheduler in a process of its own.
    pub async fn scheduler(&self) -> SchedulerClient<Channel> {
        SchedulerClient::new(self.channel("scheduler.sock").await)
    }

    /// Starts a program and waits until it says that it is ready.
    pub async fn spawn(&self, command: &mut Command) -> Child {
        let manager_path = self.path("notify");
        if manager_path.exists() {
            fs::remove_file(&manager_path).unwrap();
        }
        let manager = tokio::net::UnixDatagram::bind(&manager_path).unwrap();
        let child = command.env("NOTIFY_SOCKET", &manager_path).spawn().unwrap();
        let mut bytes = [0; 32];
        let told = tokio::time::timeout(Duration::from_secs(20), manager.recv(&mut bytes)).await;
        assert_eq!(&bytes[..told.unwrap().unwrap()], b"READY=1");
        child
    }

    /// Starts vmmd with a log of the caller's and waits until it says that it is ready.
    pub async fn start_with_log(&mut self, log: Stdio) -> Client {
        let mut command = self.command("state", "vmmd.sock");
        self.daemon = Some(self.spawn(command.env("PATINA_LOG", "info,vmmd=debug").stderr(log)).await);
        self.connect("vmmd.sock").await
    }

    /// Starts this vmmd, and waits until it says that it is ready.
    pub async fn start_as(&mut self, command: &mut Command) {
        self.daemon = Some(self.spawn(command).await);
    }

    /// Starts one more vmmd, with another state.
    pub async fn start_another(&self, state: &str, socket: &str) -> (Child, Client) {
        let mut command = self.command(state, socket);
        command.env("PATINA_LOG", "info,vmmd=debug");
        if state == "state" {
            command.stderr(Stdio::piped());
        }
        let child = self.spawn(&mut command).await;
        (child, self.connect(socket).await)
    }

    async fn connect(&self, socket: &str) -> Client {
        VmmdClient::new(self.channel(socket).await)
    }

    pub async fn channel(&self, socket: &str) -> Channel {
        let path = self.path(socket);
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Channel::from_static("http://vmmd");
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    /// Ends vmmd by a signal; how it went.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended()
    }

    /// Sends vmmd a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.daemon.as_ref().unwrap()), signal).unwrap();
    }

    /// Waits until vmmd is gone; how it went.
    pub fn ended(&mut self) -> ExitStatus {
        self.daemon.take().unwrap().wait().unwrap()
    }
}

impl Drop for Bench {
    /// Whatever a failed test leaves goes: the daemon, then every stand-in of its state.
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.stop(Signal::KILL);
        }
        if self.scheduler.is_some() {
            self.signal_scheduler(Signal::KILL);
        }
        let own = self.folder.path().to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let has = |file: &str, text: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(text)
            };
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            // A stand-in that vmmd was just starting as it was killed is still like vmmd, whose
            // command line has the folder. Its environment is read last: from its start on that has
            // the folder.
            if let Some(pid) = pid
                && (has("cmdline", own) || has("environ", &format!("PATINA_VM_DIR={own}/")))
            {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}

/// A request for a VM whose stand-in does as `words` say.
pub fn vm(name: &str, words: &str) -> v1::CreateVmRequest {
    v1::CreateVmRequest { name: name.into(), cmdline: words.into(), ..Default::default() }
}

pub async fn get(client: &mut Client, name: &str) -> v1::Vm {
    client.get_vm(v1::GetVmRequest { name: name.into() }).await.unwrap().into_inner()
}

pub async fn kill(client: &mut Client, name: &str) -> v1::Vm {
    client.kill_vm(v1::KillVmRequest { name: name.into() }).await.unwrap().into_inner()
}

pub async fn wait(
    client: &mut Client,
    name: &str,
    until: v1::wait_vm_request::Until,
) -> Result<v1::Vm, tonic::Status> {
    let mut request = v1::WaitVmRequest { name: name.into(), timeout_ms: 20_000, ..Default::default() };
    request.set_until(until);
    client.wait_vm(request).await.map(tonic::Response::into_inner)
}

/// Makes a VM and waits until it is ready.
pub async fn ready(client: &mut Client, request: v1::CreateVmRequest) -> v1::Vm {
    let made = client.create_vm(request).await.unwrap().into_inner();
    wait(client, &made.name, v1::wait_vm_request::Until::Ready).await.unwrap()
}
