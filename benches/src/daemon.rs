//! A `vmmd` for the benchmark alone, called over gRPC: this times the call, without the start of a
//! `vmctl`.

use crate::{smaps::SmapsError, usage::UsageError};
use patina_proto::v1::{
    CloneOutcome, CloneVmRequest, CreateVmRequest, GetHostRequest, KillVmRequest, ListImagesRequest, Prepare,
    RemoveVmRequest, Vm, WaitVmRequest, clone_outcome::Outcome, vmmd_client::VmmdClient,
    wait_vm_request::Until,
};
use patina_tests::{
    host::{Host, HostError, succeeded},
    interrupt, process,
    setup::Setup,
};
use serde_json::Value;
use std::{
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

/// How long a guest may take to boot, or clones to be ready: one of 4 GiB takes two minutes where
/// its kernel is emulated, longer on a busy machine.
const PATIENCE_MS: u64 = 600_000;
/// vmmd's own default.
const SPARE: &str = "1";
/// How long the image of a VM that is ready may take.
const IMAGE_PATIENCE: Duration = Duration::from_secs(60);
/// How often vmmd is asked whether its warm VMs or images are there; nothing is measured while it
/// is.
const LOOK: Duration = Duration::from_millis(20);

/// Lists VMs.
const LS: [&str; 3] = ["-o", "json", "ls"];
/// How often it is tried whether a `vmmd` that starts takes connections.
const KNOCK: Duration = Duration::from_millis(2);
/// How long that may take, and the list.
const KNOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why a `vmmd` did not do what is measured.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It did not start or stop as it should.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It cannot be reached.
    #[error("connect to vmmd: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// A call failed.
    #[error("{call} {name}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// The VM.
        name: String,
        /// What vmmd answered.
        source: Box<tonic::Status>,
    },
    /// A clone was not made.
    #[error("clone {parent}: clone {vmid} failed: {why}")]
    Clone {
        /// The VM that was cloned.
        parent: String,
        /// The clone.
        vmid: u32,
        /// vmmd's reason.
        why: String,
    },
    /// The pool of warm VMs does not fill.
    #[error("wait for {wanted} warm VMs: {found} after {} s", PATIENCE_MS / 1000)]
    Warm {
        /// How many there should be.
        wanted: u32,
        /// How many there are.
        found: u32,
    },
    /// A VM that booted is not kept as an image.
    #[error("wait for {wanted} images of booted VMs: {found} after {} s", IMAGE_PATIENCE.as_secs())]
    Images {
        /// How many there should be.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// A `vmmd` that was started again does not list all VMs.
    #[error("list VMs after a restart of vmmd: {found} of {wanted}")]
    List {
        /// How many there should be.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// A program or a console in a guest said something else than it should, or nothing more.
    #[error("talk to {what} in {name}: it said {said:?}")]
    Said {
        /// The program.
        what: &'static str,
        /// The VM.
        name: String,
        /// Its last words.
        said: String,
    },
    /// A vmm's memory cannot be read.
    #[error(transparent)]
    Smaps(#[from] SmapsError),
    /// The CPU time of a thread cannot be read.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A signal asked us to end.
    #[error("interrupted")]
    Interrupted,
}

/// The names of VMs that were made of `parent`, and of each the call's arrival to its first
/// instruction, microseconds.
pub fn all_made(parent: &str, outcomes: Vec<CloneOutcome>) -> Result<(Vec<String>, Vec<f64>), DaemonError> {
    let made = outcomes.into_iter().map(|CloneOutcome { vmid, outcome, executing_after_us }| {
        let why = match outcome {
            Some(Outcome::Vm(vm)) => return Ok((vm.name, executing_after_us as f64)),
            Some(Outcome::Error(error)) => error,
            None => "vmmd says neither what it is nor why".to_owned(),
        };
        Err(DaemonError::Clone { parent: parent.to_owned(), vmid, why })
    });
    made.collect()
}

/// A failed call.
pub fn call(call: &'static str, name: &str) -> impl Fn(tonic::Status) -> DaemonError {
    move |source| DaemonError::Call { call, name: name.to_owned(), source: Box::new(source) }
}

/// A running `vmmd`.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    /// Cloned for each call: they share one connection.
    pub client: VmmdClient<Channel>,
}

/// What a CloneVm call has brought.
#[derive(Debug)]
pub struct Cloned {
    /// When the call was made.
    pub called: Instant,
    /// The clones, by vmid.
    pub names: Vec<String>,
    /// Of each: the call's arrival to its first instruction.
    pub executing_us: Vec<f64>,
    /// How long the parent stood still.
    pub pause_us: f64,
    /// From asking the parent's vmm to having the generation.
    pub freeze_us: f64,
    /// RAM that was copied.
    pub copied_kib: f64,
}

impl Cloned {
    /// When the last clone ran.
    pub fn all_executing_us(&self) -> f64 {
        self.executing_us.iter().copied().fold(0.0, f64::max)
    }
}

impl Daemon {
    /// Starts a `vmmd` that keeps `warm` warm VMs for each family. Its VMs boot.
    pub async fn start(setup: &Setup, warm: u32) -> Result<Self, DaemonError> {
        Self::start_with_images(setup, warm, Path::new("none")).await
    }

    /// Starts a `vmmd` that keeps images of booted VMs in a folder.
    pub async fn start_with_images(setup: &Setup, warm: u32, images: &Path) -> Result<Self, DaemonError> {
        let (warm, images) = (warm.to_string(), images.display().to_string());
        let host = Host::start_with(setup, &["--warm", &warm, "--spare", SPARE, "--image-cache", &images])?;
        let client = VmmdClient::new(Endpoint::from_shared(host.address())?.connect().await?);
        Ok(Self { host, client })
    }

    /// One that was started elsewhere, and the way to it.
    pub fn of(host: Host, channel: Channel) -> Self {
        Self { host, client: VmmdClient::new(channel) }
    }

    /// The host that it serves.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Kills `vmmd` and starts it again, with `vms` VMs to take over: milliseconds from its start
    /// until `vmctl ls` has listed them, and how many of them were still being taken over.
    pub async fn list_after_restart(&mut self, vms: usize) -> Result<(f64, usize), DaemonError> {
        self.host.kill_vmmd()?;
        let (socket, mut ls) = (self.host.socket(), self.host.vmctl_command(&LS));
        let began = Instant::now();
        // On a thread of its own: vmmd is asked as soon as it takes connections, before it says
        // that it is ready.
        let listing = std::thread::spawn(move || {
            while UnixStream::connect(&socket).is_err() && began.elapsed() < KNOCK_PATIENCE {
                std::thread::sleep(KNOCK);
            }
            let listed = process::run(&mut ls, b"", KNOCK_PATIENCE)?;
            Ok::<_, HostError>((began.elapsed(), succeeded(&LS, &listed)?))
        });
        let is_ready = self.host.start_vmmd();
        let listed = listing.join().map_err(|_| DaemonError::List { wanted: vms, found: 0 })?;
        is_ready?;
        let (took, text) = listed?;
        self.client = VmmdClient::new(Endpoint::from_shared(self.host.address())?.connect().await?);
        let listed: Vec<Value> =
            serde_json::from_str(&text).map_err(|source| HostError::Json { source, text })?;
        if listed.len() != vms {
            return Err(DaemonError::List { wanted: vms, found: listed.len() });
        }
        let adopting = listed.iter().filter(|vm| vm["state"] == "adopting").count();
        Ok((took.as_secs_f64() * 1e3, adopting))
    }

    /// Ends all VMs and `vmmd`.
    pub fn stop(self) -> Result<(), DaemonError> {
        Ok(self.host.stop()?)
    }

    /// The pid of `vmmd`.
    pub fn pid(&self) -> Option<u32> {
        self.host.vmmd_pid()
    }

    /// Boots a VM and waits until it is ready.
    pub async fn boot(&self, name: &str, memory_mib: u32) -> Result<(), DaemonError> {
        if interrupt::requested() {
            return Err(DaemonError::Interrupted);
        }
        let request = CreateVmRequest { name: name.to_owned(), memory_mib, ..CreateVmRequest::default() };
        self.client.clone().create_vm(request).await.map_err(call("CreateVm", name))?;
        self.ready(name).await.map(drop)
    }

    /// Waits until there are so many images of booted VMs.
    pub async fn images(&self, wanted: usize) -> Result<(), DaemonError> {
        let found = async || {
            let request = ListImagesRequest::default();
            let answer = self.client.clone().list_images(request).await.map_err(call("ListImages", ""))?;
            Ok(answer.into_inner().images.len())
        };
        match fewer(wanted, IMAGE_PATIENCE, found).await? {
            None => Ok(()),
            Some(found) => Err(DaemonError::Images { wanted, found }),
        }
    }

    /// Waits until a VM is ready.
    pub async fn ready(&self, name: &str) -> Result<Vm, DaemonError> {
        let until = Until::Ready.into();
        let request = WaitVmRequest { name: name.to_owned(), until, timeout_ms: PATIENCE_MS };
        let answer = self.client.clone().wait_vm(request).await.map_err(call("WaitVm", name))?;
        Ok(answer.into_inner())
    }

    /// Waits until all are ready.
    pub async fn all_ready(&self, names: &[String]) -> Result<Vec<Vm>, DaemonError> {
        futures::future::try_join_all(names.iter().map(|name| self.ready(name))).await
    }

    /// Clones a VM; every clone must come to be.
    pub async fn clone_vm(&self, parent: &str, count: u32) -> Result<Cloned, DaemonError> {
        self.call_clone(CloneVmRequest { name: parent.to_owned(), count, ..CloneVmRequest::default() }).await
    }

    /// Clones a VM once, as it is: its agent does not prepare.
    pub async fn clone_unprepared(&self, parent: &str) -> Result<Cloned, DaemonError> {
        let name = parent.to_owned();
        self.call_clone(CloneVmRequest { name, prepare: Prepare::None.into(), ..CloneVmRequest::default() })
            .await
    }

    /// Clones a VM as a call says; every clone must come to be.
    pub async fn call_clone(&self, request: CloneVmRequest) -> Result<Cloned, DaemonError> {
        if interrupt::requested() {
            return Err(DaemonError::Interrupted);
        }
        let parent = &request.name.clone();
        let called = Instant::now();
        let made = self.client.clone().clone_vm(request).await.map_err(call("CloneVm", parent))?.into_inner();
        let (names, executing_us) = all_made(parent, made.clones)?;
        let (pause_us, freeze_us) = (made.pause_us as f64, made.freeze_us as f64);
        Ok(Cloned { called, names, executing_us, pause_us, freeze_us, copied_kib: made.copied_kib as f64 })
    }

    /// Ends VMs; they stay in vmmd's list.
    pub async fn kill(&self, names: &[String]) -> Result<(), DaemonError> {
        let kill = async |name: &String| {
            let request = KillVmRequest { name: name.clone() };
            self.client.clone().kill_vm(request).await.map(drop).map_err(call("KillVm", name))
        };
        futures::future::try_join_all(names.iter().map(kill)).await.map(drop)
    }

    /// Ends and forgets VMs.
    pub async fn remove(&self, names: &[String]) -> Result<(), DaemonError> {
        let remove = async |name: &String| {
            let request = RemoveVmRequest { name: name.clone(), force: true, ..Default::default() };
            self.client.clone().remove_vm(request).await.map(drop).map_err(call("RemoveVm", name))
        };
        futures::future::try_join_all(names.iter().map(remove)).await.map(drop)
    }

    /// Waits until so many warm VMs wait for clones.
    pub async fn warm(&self, wanted: u32) -> Result<(), DaemonError> {
        let found = async || {
            let request = GetHostRequest::default();
            let host = self.client.clone().get_host(request).await.map_err(call("GetHost", ""))?;
            Ok(host.into_inner().warm)
        };
        match fewer(wanted, Duration::from_millis(PATIENCE_MS), found).await? {
            None => Ok(()),
            Some(found) => Err(DaemonError::Warm { wanted, found }),
        }
    }
}

/// Asks again and again how many there are. None: as many as are wanted. After `patience`: how many
/// there are.
async fn fewer<T: PartialOrd>(
    wanted: T,
    patience: Duration,
    ask: impl AsyncFn() -> Result<T, DaemonError>,
) -> Result<Option<T>, DaemonError> {
    let deadline = Instant::now() + patience;
    loop {
        let found = ask().await?;
        if found >= wanted {
            return Ok(None);
        }
        if interrupt::requested() {
            return Err(DaemonError::Interrupted);
        }
        if Instant::now() > deadline {
            return Ok(Some(found));
        }
        tokio::time::sleep(LOOK).await;
    }
}
