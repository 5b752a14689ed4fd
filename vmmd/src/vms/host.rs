//! A host: its VMs, and what creating and ending them needs.

use super::{
    blocking::Disks,
    error::Error,
    fetched_data::{known::KnownImages, offered::Offered, shelf::Shelf, under_way::UnderWay},
    image_cache::cache::ImageCache,
    making::Making,
    masters::ComingMasters,
    members_data::members::Members,
    remote_data::{described::Described, holders::KnownHolders, leases::Leases, peers::Peers},
    snapshot_data::{digests::Digests, known::KnownLayers, room::Room},
    spares::Spares,
    table::Table,
    tickets::Tickets,
    vm::{Until, Vm},
};
use crate::{
    clock::unix_ms,
    events::{Events, Of},
    metrics::Metrics,
    net::{Net, Owner},
    options::{CacheSettings, TicketHosts},
    pager::Pager,
    plan::{address::Range, lifecycle::Phase, spec::DefaultImages},
    process::{control_client::PATIENCE, generation::PrefaultList, turns::Turns, usage::Usage},
    store::{StateDir, record::Record},
};
use futures::future::BoxFuture;
use patina_abi::{args::Args, link::Answer};
use patina_daemon::lock;
use patina_proto::v1::EventKind;
use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long after a kill the process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How many records of clones are written at the same time.
const WRITING_AT_ONCE: usize = 2;
/// How many kernels and root file systems other hosts read at the same time.
const GIVEN_AT_ONCE: usize = 32;

/// What a host is set up with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The vmm program.
    pub vmm: PathBuf,
    /// The pager program.
    pub pager: PathBuf,
    /// Images for those who name none.
    pub images: DefaultImages,
    /// Where families are numbered from.
    pub range: Range,
    /// The host's name, as guests see it.
    pub hostname: String,
    /// How many warm VMs each family has.
    pub warm: usize,
    /// How many spare vmms there are for each kind of machine that is restored.
    pub spares: usize,
    /// How many clones that have ended are kept.
    pub keep_ended: usize,
    /// Where images of booted VMs are kept. None: every VM boots.
    pub image_cache: Option<CacheSettings>,
    /// Most bytes of kernels and root file systems that came from other hosts.
    pub fetched_bytes_max: u64,
    /// What a guest adapts itself to when it boots: the CPU, the kind of KVM and the host's kernel,
    /// in words. A VM starts from an image only where it is the same.
    pub host_kind: String,
    /// How other hosts are called.
    pub peers: Peers,
    /// Where this host receives what VMs of other hosts send to its own. None: nowhere.
    pub overlay: Option<SocketAddr>,
    /// Whether memory is sent to other hosts compressed.
    pub compress_pages: bool,
    /// On which hosts guests get tickets.
    pub ticket_hosts: TicketHosts,
}

/// A call of a guest.
#[derive(Debug)]
pub struct GuestCall {
    /// What is asked for.
    pub verb: String,
    /// Its arguments.
    pub args: Args,
    /// When the call came: [`patina_control::monotonic_ns`].
    pub arrived_ns: u64,
    /// Cancelled when the guest gives the call up. A `clone` is told so and answered all the same;
    /// any other call is dropped.
    pub abandoned: CancellationToken,
}

/// What answers the calls of guests. The supervisors of VMs have it from their host: it clones,
/// which starts supervisors.
pub trait Calls: fmt::Debug + Send + Sync {
    /// Answers one call of a VM.
    fn answer<'a>(&'a self, host: &'a Arc<Host>, vm: &'a Arc<Vm>, call: GuestCall) -> BoxFuture<'a, Answer>;
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
    /// Fills the memory of VMs while they run.
    pub pager: Pager,
    pub(super) calls: Box<dyn Calls>,
    pub(super) state: StateDir,
    pub(super) net: Net,
    // Held while vmids are written down.
    pub(super) numbering: Mutex<()>,
    // True when all that an earlier vmmd left is known; told at each step.
    pub(super) adoption: watch::Sender<bool>,
    // Held while what could not be taken over is looked at again, or removed.
    pub(super) mending: Mutex<()>,
    // Records of VMs that have ended and that could not be written, by name.
    pub(super) unwritten: std::sync::Mutex<HashMap<String, Record>>,
    // None are made before all that is there is known: see `adopt`.
    pub(super) making: Making,
    pub(super) writing: Semaphore,
    // vmms for the next VMs that begin a family.
    pub(super) spares: Arc<Spares>,
    // How many clones are not ready yet.
    pub(super) on_the_way: Arc<watch::Sender<usize>>,
    // Which of these go first.
    pub(super) turns: Arc<Turns>,
    // For families of which nobody knows what their clones touch.
    pub(super) no_list: Arc<PrefaultList>,
    // Of which the scheduler must not hear that they have ended.
    pub(super) coming_masters: ComingMasters,
    // What other hosts read of this one.
    pub(super) leases: Leases,
    // Which hosts may have the memory of families.
    pub(super) holders: KnownHolders,
    // The digests of layers that other hosts were told of.
    pub(super) described: Described,
    // Kernels and root file systems that came from other hosts.
    pub(super) shelf: Shelf,
    // Those that are coming.
    pub(super) under_way: UnderWay,
    // Those that other hosts may read.
    pub(super) offered: Offered,
    // So many are read at a time.
    pub(super) giving: Arc<Semaphore>,
    // What the scheduler is told of them.
    pub(super) known_images: KnownImages,
    // Held while vmids are reserved and taken.
    pub(super) reserving: Mutex<()>,
    // Held while a family of another host comes to this one.
    pub(super) joining: Mutex<()>,
    // Which VMs other hosts have. None: without --overlay.
    pub(super) members: Option<Members>,
    // Kernels and root file systems by their content.
    pub(super) digests: Digests,
    // What the memory of restores under way will take.
    pub(super) room: Room,
    // Images of booted VMs.
    pub(super) image_cache: Option<ImageCache>,
    // Where snapshots are read and written.
    pub(super) snapshot_disks: Disks,
    // Where kernels and root file systems are read.
    pub(super) image_disks: Disks,
    // What of the memory is in snapshots already.
    pub(super) known_layers: KnownLayers,
}
impl Host {
    /// Opens what a host needs; VMs come with [`Self::adopt`].
    ///
    /// # Errors
    /// Netlink cannot be opened, or there is no memory.
    pub fn new(
        settings: Settings,
        state: StateDir,
        tickets: Tickets,
        calls: Box<dyn Calls>,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            table: Table::default(),
            events: Events::default(),
            metrics: Metrics::default(),
            pager: Pager::new(settings.pager.clone(), state.path()),
            net: Net::open(Owner::of(state.path()))?,
            numbering: Mutex::new(()),
            adoption: watch::Sender::new(false),
            mending: Mutex::new(()),
            unwritten: std::sync::Mutex::default(),
            making: Making::default(),
            writing: Semaphore::new(WRITING_AT_ONCE),
            spares: Arc::new(Spares::new(settings.spares, settings.vmm.clone())),
            on_the_way: Arc::new(watch::Sender::new(0)),
            turns: Turns::new(),
            no_list: Arc::new(PrefaultList::of(&[])?),
            coming_masters: ComingMasters::default(),
            leases: Leases::default(),
            holders: KnownHolders::default(),
            described: Described::default(),
            shelf: Shelf::open(&state.fetched(), settings.fetched_bytes_max).map_err(Error::Shelf)?,
            under_way: UnderWay::default(),
            offered: Offered::default(),
            giving: Arc::new(Semaphore::new(GIVEN_AT_ONCE)),
            known_images: KnownImages::default(),
            joining: Mutex::new(()),
            members: members(&settings, &state, &tickets)?,
            reserving: Mutex::new(()),
            digests: Digests::default(),
            room: Room::default(),
            snapshot_disks: Disks::default(),
            image_disks: Disks::default(),
            known_layers: KnownLayers::default(),
            image_cache: settings
                .image_cache
                .clone()
                .map(ImageCache::open)
                .transpose()
                .map_err(Error::ImageCache)?,
            settings,
            tickets,
            calls,
            state,
        }))
    }

    pub(super) fn unwritten(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        // No code panics under this lock; if some did, the map itself is still whole.
        lock(&self.unwritten)
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// Waits until all that an earlier `vmmd` left is known.
    ///
    /// # Errors
    /// That takes too long: another try may help.
    pub async fn adopted(&self, patience: Duration) -> Result<(), Error> {
        let mut adoption = self.adoption.subscribe();
        let done = timeout(patience, adoption.wait_for(|is_done| *is_done)).await;
        done.map(drop).map_err(|_| Error::Starting)
    }

    /// Finds a VM; one that is being taken over is waited for.
    ///
    /// # Errors
    /// There is none of that name, or it is not taken over.
    pub async fn find(&self, name: &str) -> Result<Arc<Vm>, Error> {
        let mut adoption = self.adoption.subscribe();
        let found = async {
            loop {
                adoption.mark_unchanged();
                match self.table.find(name) {
                    Err(Error::Adopting(_)) if adoption.changed().await.is_ok() => {}
                    other => return other,
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| Err(Error::Adopting(name.to_owned())))
    }

    /// Ends a VM and returns when nothing of it runs. A VM that has ended stays as it is.
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
        // A VM that ends at this moment uses nothing any more.
        let usage = Usage::of(vm.record.process.as_ref()?.pid).ok()?;
        let of = &vm.record;
        let is_booted = of.image.is_none() && of.snapshot.is_none();
        Some((usage, is_booted && self.table.is_uncloned(of.net.index, of.family)))
    }

    /// Tells those who watch events that something has happened to a VM.
    pub(super) fn tell(&self, of: &Record, kind: EventKind, text: impl Into<String>) {
        let of = Of { family: of.family, vm: Some((&of.name, of.vmid)), ticket: of.ticket };
        self.events.tell(of, kind, text, unix_ms());
    }
}

fn members(settings: &Settings, state: &StateDir, tickets: &Tickets) -> Result<Option<Members>, Error> {
    let Some(overlay) = settings.overlay else { return Ok(None) };
    let own = tickets.host_id().parse().unwrap_or_default();
    let address = settings.peers.own_address().to_owned();
    Ok(Some(Members::new(own, address, overlay, state.count_start()?)))
}
