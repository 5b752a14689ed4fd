//! A VM of a host, running or ended.

mod pieces;
mod ports;

pub(super) use pieces::{EndsWhenLeft, Pieces};
pub(super) use ports::{PortsChange, PortsOrder};

use super::error::Error;
use crate::{
    plan::{
        lifecycle::{Ended, Phase},
        spec::Port,
    },
    process::control_client::{self, ControlError, PATIENCE},
    store::{VmDir, record::Record},
};
use patina_control::{CLONABLE_OLDEST, VERSION, end::EndKind, messages::Open};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::{Mutex, Semaphore, mpsc, watch},
    time::timeout,
};

/// Where a VM stands, as its supervisor publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How far the VM is: booting, ready or ended.
    pub phase: Phase,
    /// How long the VM took from the start of its process to its agent being ready, microseconds.
    pub ready_after_us: Option<u64>,
    /// The version of the VM's vmm ([`patina_control::VERSION`]); None: it has not said anything
    /// yet.
    pub vmm_version: Option<u32>,
    /// The ports that the host publishes for it, or published until it ended.
    pub ports: Vec<Port>,
}

impl Status {
    /// What this `vmmd` cannot do with the VM, in words.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self.vmm_version? {
            version if version > VERSION => Some(format!(
                "its vmm speaks version {version} of the control protocol, this vmmd only version {VERSION}: the VM runs \
                 on and can be killed, but not cloned; start vmmd of the release that the vmm is of"
            )),
            version if self.is_too_old() => Some(format!(
                "its vmm is of an older release (version {version} of the control protocol), whose generations this \
                 release cannot start: the VM runs on and can be used and killed, but not cloned; boot it anew"
            )),
            _ => None,
        }
    }

    /// Whether the VM's vmm is so old that a vmm of this release cannot start its generations.
    #[must_use]
    pub fn is_too_old(&self) -> bool {
        self.vmm_version.is_some_and(|version| version < CLONABLE_OLDEST)
    }
}

/// One VM of this host, running or ended.
#[derive(Debug)]
pub struct Vm {
    /// What it was started with. Its state is in [`Self::status`].
    pub record: Record,
    /// The folder of its files.
    pub dir: VmDir,
    pub(super) status: watch::Receiver<Status>,
    pub(super) kill: mpsc::Sender<ToEnd>,
    // Changes what is published of it.
    change_ports: mpsc::Sender<PortsOrder>,
    // Those who clone the VM take turns.
    pub(super) cloning: Mutex<()>,
    // The guest itself has one call for clones at a time.
    pub(super) asked: Arc<Semaphore>,
    // A connection on which nothing has been said, for the next freeze.
    pub(super) spare: Mutex<Option<UnixStream>>,
    // What its guest leaves or reads of a join.
    pub(super) pieces: std::sync::Mutex<Pieces>,
    // Somebody has sent input to its console.
    is_typed_on: AtomicBool,
}

/// Why a VM is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToEnd {
    /// By whom and why.
    Killed(String),
    /// Its guest has left its result.
    Joined(String),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The agent answers.
    Ready,
    /// The process is gone.
    Ended,
}
impl Vm {
    /// A VM that ended before this `vmmd` looked.
    #[must_use]
    pub fn ended(record: Record, dir: VmDir, ended: Ended) -> Self {
        let (phase, ready_after_us) = (Phase::Ended(ended), record.ready_after_us);
        let status = Status { phase, ready_after_us, vmm_version: None, ports: record.ports.clone() };
        Self::new(record, dir, watch::channel(status).1, mpsc::channel(1).0, mpsc::channel(1).0)
    }

    pub(super) fn new(
        record: Record,
        dir: VmDir,
        status: watch::Receiver<Status>,
        kill: mpsc::Sender<ToEnd>,
        change_ports: mpsc::Sender<PortsOrder>,
    ) -> Self {
        Self {
            record,
            dir,
            status,
            kill,
            change_ports,
            cloning: Mutex::new(()),
            asked: Arc::new(Semaphore::new(1)),
            spare: Mutex::new(None),
            pieces: std::sync::Mutex::default(),
            is_typed_on: AtomicBool::new(false),
        }
    }

    /// Input is about to be sent to its console.
    pub fn note_typed(&self) {
        self.is_typed_on.store(true, Ordering::Release);
    }

    /// Whether input was sent to its console, as far as this `vmmd` knows.
    #[must_use]
    pub fn is_typed_on(&self) -> bool {
        self.is_typed_on.load(Ordering::Acquire)
    }

    /// Asks the VM's supervisor to kill the VM, for the reason that its record will give; does not
    /// wait for its end.
    pub(super) fn ask_to_end(&self, reason: &str) {
        self.end(ToEnd::Killed(reason.to_owned()));
    }

    /// Tells the VM's supervisor that the guest has left its result, so that the VM ends.
    pub(super) fn say_joined(&self, reason: String) {
        self.end(ToEnd::Joined(reason));
    }

    fn end(&self, why: ToEnd) {
        // A full channel holds a reason already, a closed one is of a VM that ends now.
        if self.kill.try_send(why).is_err() {
            tracing::debug!(vm = self.record.name, "it is being ended already");
        }
    }

    /// The VM's state now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The VM's state now and each time that it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits until the VM is ready, or until it has ended.
    ///
    /// # Errors
    /// It ended before it was ready, or vmmd stops.
    pub async fn wait(&self, until: Until) -> Result<(), Error> {
        let done = |status: &Status| match (&status.phase, until) {
            (Phase::Ended(_), _) | (Phase::Ready, Until::Ready) => true,
            (Phase::Ready, Until::Ended) | (Phase::Booting, _) => false,
        };
        let mut status = self.status.clone();
        let reached = status.wait_for(done).await.map_err(|_| Error::Stopping)?;
        match (&reached.phase, until) {
            (Phase::Ended(ended), Until::Ready) => {
                let (name, reason) = (self.record.name.clone(), ended.end.reason.clone());
                let is_data_loss = ended.end.kind == EndKind::DataLoss;
                Err(Error::EndedFirst { name, reason, is_data_loss })
            }
            _ => Ok(()),
        }
    }

    /// Connects to the VM; a dial needs a ready one, the console a running one.
    ///
    /// # Errors
    /// It is not that far, or nothing answers.
    pub async fn open(&self, what: Open) -> Result<BufReader<UnixStream>, Error> {
        let name = || self.record.name.clone();
        let phase = self.status().phase;
        let usable = match what {
            Open::Dial { .. } | Open::Freeze { .. } | Open::PrefaultList | Open::FreePages { .. } => {
                phase == Phase::Ready
            }
            Open::Console | Open::Control | Open::Pager | Open::Start { .. } => {
                !matches!(phase, Phase::Ended(_))
            }
        };
        if !usable {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        match control_client::open(&self.dir, &what, PATIENCE).await {
            Ok(stream) => Ok(stream),
            Err(source) => Err(self.unavailable(source).await),
        }
    }

    /// Connects to the vmm for the next freeze, which then starts sooner.
    pub(super) fn connect_ahead(self: &Arc<Self>) {
        let vm = Arc::clone(self);
        tokio::spawn(async move {
            let mut spare = vm.spare.lock().await;
            if spare.is_none() {
                // The freeze will say what is wrong, if that is not the VM's end.
                *spare = control_client::connect(&vm.dir).await.ok();
            }
        });
    }

    /// That the VM cannot be reached; with how it ended, where that is why.
    pub(super) async fn unavailable(&self, source: ControlError) -> Error {
        const END_PATIENCE: Duration = Duration::from_secs(2);
        let mut source = source;
        if source.may_be_death()
            && timeout(END_PATIENCE, self.wait(Until::Ended)).await.is_ok()
            && let Phase::Ended(ended) = self.status().phase
        {
            source = ControlError::Ended(ended.end.reason);
        }
        Error::Unavailable { name: self.record.name.clone(), source }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::record::tests::sample;
    use patina_abi::EXEC_PORT;
    use patina_control::end::{End, EndKind};

    /// A VM that has ended, without files.
    pub(crate) fn ended_vm(name: &str) -> Arc<Vm> {
        let ended = Ended { end: End { kind: EndKind::PoweredOff, reason: "off".into() }, unix_ms: 9 };
        Arc::new(Vm::ended(
            Record { ended: Some(ended.clone()), ..sample(name) },
            VmDir::at("/nowhere"),
            ended,
        ))
    }

    #[tokio::test]
    async fn an_ended_vm_does_not_get_ready() {
        let vm = ended_vm("a");
        assert!(vm.wait(Until::Ended).await.is_ok());
        let error = vm.wait(Until::Ready).await.unwrap_err();
        assert!(matches!(error, Error::EndedFirst { reason, .. } if reason == "off"));
        let error = vm.open(Open::Dial { port: 1 }).await.unwrap_err();
        assert!(matches!(error, Error::NotReady { state: "ended", .. }));
    }

    /// Its vCPU waits for a page, for example: the vmm takes the call and has nothing to say.
    #[tokio::test(start_paused = true)]
    async fn a_guest_that_takes_no_connection_is_given_up_in_time_and_its_vmm_hears_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = VmDir::at(folder.path());
        let vmm = tokio::net::UnixListener::bind(dir.socket()).unwrap();
        let status = Status {
            phase: Phase::Ready,
            ready_after_us: None,
            vmm_version: Some(VERSION),
            ports: Vec::new(),
        };
        let (_publish, watched) = watch::channel(status);
        let vm = Vm::new(sample("web"), dir, watched, mpsc::channel(1).0, mpsc::channel(1).0);
        let begun = tokio::time::Instant::now();
        let hears = async {
            let (mut stream, _) = vmm.accept().await.unwrap();
            let mut said = Vec::new();
            // Up to the end of the connection.
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said).await.unwrap();
            serde_json::from_slice::<Open>(&said).unwrap()
        };
        let (opened, said) = tokio::join!(vm.open(Open::Dial { port: EXEC_PORT }), hears);
        assert_eq!(said, Open::Dial { port: EXEC_PORT });
        let error = opened.unwrap_err();
        let given_up = matches!(&error, Error::Unavailable { source: ControlError::Timeout(PATIENCE), .. });
        assert!(given_up, "{error}");
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
        // A client is told.
        let status = tonic::Status::from(error);
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
