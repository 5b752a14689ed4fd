//! Why a call about VMs fails. [`crate::grpc`] turns these errors into statuses.

use super::{
    fetched_data::error::{FetchError, ShelfError},
    images::ImageError,
    members_data::error::TellError,
    remote_data::error::{ReceiveError, RemoteError},
    snapshot_data::error::SnapshotError,
};
use crate::{
    net::{NetError, ports::PortError},
    plan::{
        baseline::BaselineError,
        spec::{PORTS_MAX, Violation},
    },
    process::{control_client::ControlError, generation::GenerationError, spawn::SpawnError},
    store::StoreError,
};
use patina_abi::link::CallError;
use patina_snapshot::directory::FileError;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tonic::Status;
use uuid::Uuid;

/// Most VMs that are kept at once, ended ones included.
pub const VMS_MAX: usize = 1024;

/// Most exec, console and log streams at once.
pub const STREAMS_MAX: usize = 1024;

/// Most operations of one kind on files of callers at once. The runtime has 512 threads that may
/// block, and the host's own files need some of them: however many of these operations wait for a
/// disk that stalls, VMs are killed and written down.
pub const DISK_WORK_MAX: usize = 128;
/// How long an operation may wait for its turn.
pub const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// Why a call about VMs fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request has invalid fields.
    #[error("check the request: {}", list(.0))]
    Invalid(Vec<Violation>),
    /// There is no VM of that name.
    #[error("find VM {0:?}: there is none; `vmctl ls` lists them")]
    NotFound(String),
    /// vmmd has just started and does not know yet what became of the VM.
    #[error("use VM {0:?}: vmmd has started and is taking it over; try again in some seconds")]
    Adopting(String),
    /// The VM was taken over, and its vmm says nothing.
    #[error(
        "clone VM {name:?}: its vmm has sent nothing for {patience:?} since vmmd took it over, so its version is not known; if this lasts, end the VM: `vmctl kill {name}`"
    )]
    MuteVmm {
        /// The VM's name.
        name: String,
        /// How long vmmd waited for the vmm's first line.
        patience: std::time::Duration,
    },
    /// vmmd has just started and does not know yet which VMs there are.
    #[error("vmmd has started and is taking over what runs; try again in some seconds")]
    Starting,
    /// What an earlier vmmd left of the VM cannot be taken over.
    #[error(
        "use VM {name:?}: it cannot be taken over, which is tried again every minute: {problem}; see its folder, or `vmctl rm --broken {name}`"
    )]
    Broken {
        /// The VM's name.
        name: String,
        /// What is wrong with what was left.
        problem: String,
    },
    /// The call removes what cannot be taken over, and the VM is not broken.
    #[error("remove VM {0:?}: it is not broken; leave out --broken")]
    NotBroken(String),
    /// The name is in use.
    #[error("reserve the name {0:?}: it is in use; choose another or `vmctl rm` that VM")]
    NameTaken(String),
    /// Whoever called for a clone has gone, and nothing was frozen yet.
    #[error("clone VM {0:?}: nobody waits for the clones any more; none was made")]
    Abandoned(String),
    /// Another host does not make a clone, or several for one reason.
    #[error(transparent)]
    Remote(#[from] Arc<RemoteError>),
    /// A clone of a VM of another host cannot be made here.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// A kernel or a root file system does not come from another host.
    #[error(transparent)]
    Fetch(#[from] Arc<FetchError>),
    /// The folder of those cannot be used.
    #[error(transparent)]
    Shelf(ShelfError),
    /// What another host says of a family is not used.
    #[error(transparent)]
    Tell(#[from] TellError),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A VM may not publish so many ports.
    #[error(
        "publish ports of VM {name:?}: it would publish {all}, the most is {PORTS_MAX}; `vmctl unpublish` others"
    )]
    TooManyPorts {
        /// The VM's name.
        name: String,
        /// How many ports it would publish.
        all: usize,
    },
    /// A port is not published.
    #[error(
        "stop publishing {place} of VM {name:?}: it does not publish that; `vmctl inspect {name}` shows its ports"
    )]
    NoSuchPort {
        /// The VM's name.
        name: String,
        /// Where on the host.
        place: SocketAddr,
    },
    /// An image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A snapshot cannot be made or used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The call needs an ended VM.
    #[error("remove VM {0:?}: it runs; end it first (`vmctl kill`), or use --force")]
    Running(String),
    /// The call needs a ready VM.
    #[error("use VM {name:?}: it is {state}, not ready{}", hint(.state))]
    NotReady {
        /// The VM's name.
        name: String,
        /// The VM's state instead of ready.
        state: &'static str,
    },
    /// The folder of images cannot be used.
    #[error("open the folder of images; name another one with --image-cache, or none")]
    ImageCache(#[source] FileError),
    /// What was typed on the VM's console may have changed it.
    #[error("keep VM {0:?} as an image: input was sent to its console as it booted")]
    TypedOn(String),
    /// The VM's vmm is newer than this `vmmd`.
    #[error("clone VM {name:?}: {problem}")]
    NewerVmm {
        /// The VM's name.
        name: String,
        /// What cannot be done, why, and what helps.
        problem: String,
    },
    /// The VM's vmm is too old for its generations to be started.
    #[error("clone VM {name:?}: {problem}")]
    OlderVmm {
        /// The VM's name.
        name: String,
        /// What cannot be done, why, and what helps.
        problem: String,
    },
    /// The VM ended while it was waited for.
    #[error("wait for VM {name:?}: it ended before it was ready: {reason}")]
    EndedFirst {
        /// The VM's name.
        name: String,
        /// Why it ended.
        reason: String,
        /// Whether memory that it needed could not be had.
        is_data_loss: bool,
    },
    /// The wait took too long.
    #[error("wait for VM {name:?}: not done in {timeout_ms} ms")]
    WaitTimeout {
        /// The VM's name.
        name: String,
        /// How long the caller wanted to wait, milliseconds.
        timeout_ms: u64,
    },
    /// The host keeps as many VMs as it may.
    #[error("make a VM: this host keeps {VMS_MAX} already, the most; `vmctl rm --ended`")]
    TooMany,
    /// As many streams are open as may be.
    #[error("open a stream: {STREAMS_MAX} are open, the most; close an exec, console or log")]
    TooManyStreams,
    /// All numbers of families are taken.
    #[error("number a family: all {0} of the range are taken; give vmmd a wider --network")]
    NoFamily(u16),
    /// The family has not so many vmids left.
    #[error(
        "number {count} clones: the family of {master:?} has {left} vmids left; clone a VM of another family"
    )]
    NoVmid {
        /// The name of the family's master.
        master: String,
        /// How many clones the caller wants.
        count: u32,
        /// How many vmids the family has left.
        left: u32,
    },
    /// The vmm does not freeze the VM.
    #[error("freeze VM {name:?}: {reason}")]
    NotFrozen {
        /// The VM's name.
        name: String,
        /// The reason, in the vmm's words.
        reason: String,
    },
    /// The guest does not prepare to be frozen.
    #[error("prepare VM {name:?} for a freeze{}", prepare_hint(.source))]
    NotPrepared {
        /// The VM's name.
        name: String,
        /// The agent's error.
        #[source]
        source: CallError,
    },
    /// Another call of the same guest for clones has not been answered.
    #[error("clone VM {0:?}: a clone of it is under way; wait for its end")]
    CloneUnderWay(String),
    /// The scheduler refuses the call.
    #[error("{}", .0.message())]
    Scheduler(Box<Status>),
    /// The scheduler does not answer.
    #[error("{call}: the scheduler{} does not answer; try again when it is back: {}", at(.address), .status.message())]
    NoScheduler {
        /// What the scheduler was called for.
        call: &'static str,
        /// The scheduler's address; empty: it is in this process.
        address: String,
        /// The connection's error.
        status: Box<Status>,
    },
    /// The scheduler took what was being made for ended.
    #[error("make clones: the scheduler has not registered this host, or anew meanwhile; try again")]
    Registering,
    /// A clone was killed before it ran.
    #[error("start clone {name:?}: it was killed before it ran: {reason}")]
    Unwanted {
        /// The clone's name.
        name: String,
        /// Who killed it, and why.
        reason: String,
    },
    /// A ticket is for another number of clones.
    #[error("make {count} clones with ticket {ticket}: it is for {vms}; leave the number out")]
    TicketCount {
        /// The ticket's number.
        ticket: Uuid,
        /// How many clones the caller wants.
        count: u32,
        /// How many VMs the ticket is for.
        vms: u32,
    },
    /// There is no memory for a prefault list.
    #[error(transparent)]
    PrefaultList(#[from] GenerationError),
    /// A vmm for a clone cannot be made.
    #[error("warm up a vmm for {name:?}{}", last(.words))]
    Warm {
        /// The clone's name.
        name: String,
        /// The vmm's last words.
        words: String,
        /// Why the vmm did not start.
        #[source]
        source: ControlError,
    },
    /// A clone's vmm does not start it.
    #[error("start clone {name:?}{}", last(.words))]
    Start {
        /// The clone's name.
        name: String,
        /// The vmm's last words, when it is gone.
        words: String,
        /// Why the vmm does not start the clone.
        #[source]
        source: ControlError,
    },
    /// The VM cannot have a CPU baseline.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
    /// The disk that the VM reads cannot be had for a clone.
    #[error("clone VM {name:?}")]
    CloneRootfs {
        /// The VM's name.
        name: String,
        /// Why the disk's file cannot be used.
        #[source]
        source: ImageError,
    },
    /// The vmm or the guest's agent does not answer.
    #[error("reach VM {name:?}")]
    Unavailable {
        /// The VM's name.
        name: String,
        /// Why the vmm did not do what it was asked.
        #[source]
        source: ControlError,
    },
    /// The guest's agent does not prepare, and does not say why.
    #[error(
        "freeze VM {name:?}: the guest's agent does not answer in {patience:?}; does gc-agent run there (`vmctl console {name}`)? The VM is as it was"
    )]
    Silent {
        /// The VM's name.
        name: String,
        /// How long vmmd waited for the agent's answer.
        patience: std::time::Duration,
    },
    /// So many calls wait for disks that this one has no turn.
    #[error(
        "use files: {DISK_WORK_MAX} calls have waited for their disks for {DISK_PATIENCE:?}; look after the disks of snapshots, kernels and root file systems, or try again later"
    )]
    DisksBusy,
    /// A process got SIGKILL and does not end.
    #[error("kill VM {0:?}: its process does not go away; the host's kernel log may tell why")]
    Unkillable(String),
    /// vmmd is about to stop.
    #[error("vmmd is stopping; VMs run on, ask again when it is back")]
    Stopping,
    /// A file of the state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A network interface cannot be made or used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A vmm process cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The log of a VM cannot be read.
    #[error("read log of VM {name:?}")]
    Log {
        /// The VM's name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; ")
}

fn at(address: &str) -> String {
    if address.is_empty() { String::new() } else { format!(" at {address}") }
}

fn last(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; the vmm's last words: {words}") }
}

/// What an agent's refusal to prepare means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unprepared {
    /// It prepares for another clone.
    Busy,
    /// It does not answer.
    Silent,
    /// A process of it does not stop, or the freeze came too late.
    Late,
    /// Its pre-clone hook failed.
    Hook,
    /// It cannot, for another reason.
    Unable,
}

impl Unprepared {
    /// By the agent's error.
    #[must_use]
    pub fn of(error: &CallError) -> Self {
        match error.code {
            libc::EBUSY => Self::Busy,
            libc::ENOTCONN | libc::ETIME => Self::Silent,
            libc::ETIMEDOUT => Self::Late,
            libc::ECANCELED => Self::Hook,
            _ => Self::Unable,
        }
    }
}

fn prepare_hint(source: &CallError) -> &'static str {
    match Unprepared::of(source) {
        Unprepared::Busy => "; wait for the end of that clone and ask again",
        Unprepared::Silent => "; `vmctl logs` shows the guest's console",
        Unprepared::Hook => "; the VM goes on; mend its /etc/gridcentric/pre-clone",
        // What to do, the reason says.
        Unprepared::Late | Unprepared::Unable => "; the VM goes on",
    }
}

fn hint(state: &str) -> &'static str {
    if state == "booting" { "; wait for it, or see `vmctl logs`" } else { "" }
}
