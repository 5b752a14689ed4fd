//! The VMs of a host.
//!
//! - [`create`](mod@create): makes one, or leaves nothing; [`clone`](mod@clone): makes copies of one that runs, out of
//!   [`warm`] VMs, of which [`pool`] keeps some ready; [`touched`]: what helps clones to start;
//!   [`remove`](mod@remove): forgets one that has ended, and by itself the oldest clones that have.
//! - [`supervise`]: one task per VM that runs: what its vmm says, its end, the cleaning up.
//! - [`adopt`]: takes over what an earlier `vmmd` left.
//! - [`table`]: names and families in use; [`family`]: numbers, vmids and bridges of families;
//!   [`images`]: the files a VM is made of; [`guest`]: calls of guests; [`tickets`]: the way to the scheduler.

pub mod adopt;
pub mod clone;
pub mod create;
pub mod error;
pub mod family;
pub mod guest;
pub mod images;
pub mod pool;
pub mod remove;
pub mod supervise;
pub mod table;
pub mod tickets;
pub mod touched;
pub mod warm;

use crate::{
    events::{Events, Of},
    metrics::Metrics,
};
use crate::{
    net::{Net, Owner},
    plan::{address::Range, lifecycle::Phase, spec::DefaultImages},
    process::{
        generation::Touched,
        link::{self, LinkError},
        turns::Turns,
        usage::Usage,
    },
    store::{StateDir, VmDir, record::Record},
};
use error::Error;
use guest::together::Pieces;
use patina_control::messages::Open;
use patina_proto::v1::EventKind;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use table::Table;
use tickets::{Tickets, VmsOf};
use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::{Mutex, Semaphore, mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};

/// How long a vmm, and the guest's agent behind it, may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after a kill the process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How long vmmd waits at its start for the scheduler.
const REGISTER_PATIENCE: Duration = Duration::from_secs(3);

/// How many vmm processes are made at the same time. Each takes a thread meanwhile.
const MAKING_AT_ONCE: usize = 16;
/// How many records of clones are written at the same time.
const WRITING_AT_ONCE: usize = 2;

/// What a host is set up with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The vmm program.
    pub vmm: PathBuf,
    /// Images for those who name none.
    pub images: DefaultImages,
    /// Where families are numbered from.
    pub range: Range,
    /// The host's name, as guests see it.
    pub hostname: String,
    /// How many warm VMs each family has.
    pub warm: usize,
    /// How many clones that have ended are kept.
    pub keep_ended: usize,
}

/// The VMs of this host, with all that making and ending them needs.
#[derive(Debug)]
pub struct Host {
    /// What it is set up with.
    pub settings: Settings,
    /// Names and families.
    pub table: Table,
    /// The way to the scheduler: who may have how many clones.
    pub tickets: Tickets,
    /// What happens, for those who watch.
    pub events: Events,
    /// The same in numbers.
    pub metrics: Metrics,
    state: StateDir,
    net: Net,
    // Held while vmids are written down.
    numbering: Mutex<()>,
    // True when all that an earlier vmmd left is known; told at each step.
    adoption: watch::Sender<bool>,
    // Held while what could not be taken over is looked at again, or removed.
    mending: Mutex<()>,
    // Records of VMs that have ended and that could not be written, by name.
    unwritten: std::sync::Mutex<HashMap<String, Record>>,
    // None are made before all that is there is known: see `adopt`.
    making: Semaphore,
    writing: Semaphore,
    // How many clones are not ready yet.
    on_the_way: Arc<watch::Sender<usize>>,
    // Which of these go first.
    turns: Arc<Turns>,
    // For families of which nobody knows what their clones touch.
    no_list: Arc<Touched>,
}

/// Where a VM stands, as its supervisor publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How far the VM is: booting, ready or ended.
    pub phase: Phase,
    /// How long the VM took from the start of its process to its agent being ready, microseconds.
    pub ready_after_us: Option<u64>,
}

/// One VM of this host, running or ended.
#[derive(Debug)]
pub struct Vm {
    /// What it was started with. Its state is in [`Self::status`].
    pub record: Record,
    /// The folder of its files.
    pub dir: VmDir,
    status: watch::Receiver<Status>,
    kill: mpsc::Sender<ToEnd>,
    // Those who clone the VM take turns.
    cloning: Mutex<()>,
    // The guest itself has one call for clones at a time.
    asked: Arc<Semaphore>,
    // A connection on which nothing has been said, for the next freeze.
    spare: Mutex<Option<UnixStream>>,
    // What its guest leaves or reads of a join.
    pieces: std::sync::Mutex<Pieces>,
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

impl Host {
    /// Opens what a host needs; VMs come with [`Self::adopt`].
    ///
    /// # Errors
    /// Netlink cannot be opened, or there is no memory.
    pub fn new(settings: Settings, state: StateDir, tickets: Tickets) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            table: Table::default(),
            tickets,
            events: Events::default(),
            metrics: Metrics::default(),
            net: Net::open(Owner::of(state.path()))?,
            numbering: Mutex::new(()),
            adoption: watch::Sender::new(false),
            mending: Mutex::new(()),
            unwritten: std::sync::Mutex::default(),
            making: Semaphore::new(0),
            writing: Semaphore::new(WRITING_AT_ONCE),
            on_the_way: Arc::new(watch::Sender::new(0)),
            turns: Turns::new(),
            no_list: Arc::new(Touched::of(&[])?),
            settings,
            state,
        }))
    }

    /// Registers this host with its scheduler, now that all that runs is known; waits a while for that.
    pub async fn register(self: &Arc<Self>) {
        self.tickets.register(VmsOf::new(self));
        if !self.tickets.registered(REGISTER_PATIENCE).await {
            // What runs is looked after; tickets and clones come with the scheduler.
            tracing::error!(
                scheduler = self.tickets.address(),
                "the scheduler does not answer: no clones until it does"
            );
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        // No code panics under this lock; if some did, the map itself is still whole.
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// Ends a VM and returns when nothing of it runs. One that has ended stays as it is.
    ///
    /// # Errors
    /// There is none, or it cannot be ended.
    pub async fn kill(&self, name: &str, reason: &str) -> Result<Arc<Vm>, Error> {
        let vm = self.find(name).await?;
        vm.ask_to_end(reason);
        match timeout(KILL_PATIENCE, vm.wait(Until::Ended)).await {
            Ok(ended) => ended.map(|()| vm),
            Err(_) => Err(Error::Unkillable(name.to_owned())),
        }
    }

    /// What a VM takes if it runs, and whether its RAM is still all its own.
    #[must_use]
    pub fn usage(&self, vm: &Vm) -> Option<(Usage, bool)> {
        if matches!(vm.status().phase, Phase::Ended(_)) {
            return None;
        }
        // One that ends at this moment takes nothing any more.
        let usage = Usage::of(vm.record.process.as_ref()?.pid).ok()?;
        Some((usage, self.table.is_uncloned(vm.record.net.index, vm.record.family)))
    }

    /// Tells those who watch events that something has happened to a VM.
    fn tell(&self, of: &Record, kind: EventKind, text: impl Into<String>) {
        let of = Of { family: of.family, vm: Some((&of.name, of.vmid)), ticket: of.ticket };
        self.events.tell(of, kind, text, unix_ms());
    }
}

impl Vm {
    /// Asks the VM's supervisor to kill the VM, for the reason that its record will give; does not wait for its end.
    fn ask_to_end(&self, reason: &str) {
        self.end(ToEnd::Killed(reason.to_owned()));
    }

    /// Tells the VM's supervisor that the guest has left its result, so that the VM ends.
    fn say_joined(&self, reason: String) {
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
                let reason = ended.end.reason.clone();
                Err(Error::EndedFirst { name: self.record.name.clone(), reason })
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
            Open::Dial { .. } | Open::Freeze { .. } | Open::Touched => phase == Phase::Ready,
            Open::Console | Open::Control | Open::Start { .. } => !matches!(phase, Phase::Ended(_)),
        };
        if !usable {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        match link::open(&self.dir, &what, PATIENCE).await {
            Ok(stream) => Ok(stream),
            Err(source) => Err(self.unavailable(source).await),
        }
    }

    /// That the VM cannot be reached; with how it ended, where that is why.
    async fn unavailable(&self, source: LinkError) -> Error {
        const PATIENCE: Duration = Duration::from_secs(2);
        let mut source = source;
        if source.may_be_death()
            && timeout(PATIENCE, self.wait(Until::Ended)).await.is_ok()
            && let Phase::Ended(ended) = self.status().phase
        {
            source = LinkError::Ended(ended.end.reason);
        }
        Error::Unavailable { name: self.record.name.clone(), source }
    }
}

/// Runs file work where it may block, inside the runtime's context.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Now, milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{plan::lifecycle::Ended, store::record::tests::sample};
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
}
