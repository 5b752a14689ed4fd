//! The layers and the VMs of a host, and the threads that serve them.

use crate::layer::{Layer, LayerError, Parts};
use crate::parked::Parked;
use crate::pool::{Pool, Readers};
use crate::sys::faults::Faults;
use crate::vm::{Named, Vm, VmError};
use crate::waiting::{Arrivals, Waiters};
use crossbeam_channel::{Receiver, Sender};
use patina_control::best_effort;
use patina_control::pager::{FailedVm, LayerStatus, Status};
use patina_control::pager::{Id, Mapping, MappingsError, PAGER_LAYERS_MAX, PAGER_VMS_MAX};
use patina_daemon::lock;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most runs that wait for a source for VMs: to be read there, or for its answer.
pub(crate) const DEMANDS_MAX: usize = 16_384;
/// Most faults of a VM that wait for runs. While there are more, its faults are not read.
pub const VM_WAITING_MAX: usize = 256;

/// What happened, for who controls the pager.
#[derive(Debug)]
pub enum Happened {
    /// A VM cannot be served any longer.
    VmGone(u64, VmError),
    /// A layer is full; the VM need not have its faults there answered any longer, or not yet.
    Complete {
        /// The VM's serial number.
        vm: u64,
        /// The layer's number in the VM.
        layer: u32,
        /// Whether its mappings are unregistered.
        is_unregistered: bool,
    },
    /// A layer is full, and its memfd is sealed.
    Sealed(Id),
    /// VMs need a run that cannot be had.
    RunFailed {
        /// The layer.
        layer: Id,
        /// The run.
        run: usize,
        /// Why it cannot be had.
        reason: String,
        /// The VMs that need it.
        vms: Vec<FailedVm>,
    },
    /// What nobody demands is not fetched any longer.
    FillStopped {
        /// The layer.
        layer: Id,
        /// The last run that failed.
        run: usize,
        /// Why that run could not be had.
        reason: String,
    },
    /// A connection to another host's pager has broken.
    PeerLost {
        /// The peer.
        peer: Id,
        /// What broke it.
        reason: String,
    },
    /// Another host's pager does not answer, or has other bytes than it should.
    PeerFailing {
        /// The peer.
        peer: Id,
        /// What is wrong.
        reason: String,
    },
    /// A connection over which layers were served has ended.
    ServiceEnded {
        /// The connection.
        connection: Id,
        /// Which one of that name.
        number: u64,
        /// What ended it.
        reason: String,
        /// Whether the other side has ended it as one does that needs no more.
        is_done: bool,
    },
}

/// A VM or a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There are too many.
    #[error("the pager has {0} of them; that is the limit")]
    Full(usize),
    /// There is one of this name.
    #[error("there is one of this name")]
    Exists,
    /// There is none of this name.
    #[error("there is none of this name")]
    Unknown,
    /// VMs use it.
    #[error("{0} VMs use it")]
    InUse(usize),
    /// The layer is invalid.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The mappings are invalid.
    #[error(transparent)]
    Mappings(#[from] MappingsError),
    /// The descriptor is no userfaultfd that can be used.
    #[error("use the userfaultfd")]
    Userfaultfd(#[source] Errno),
}

/// A run to read at its source.
#[derive(Clone)]
pub(crate) struct Job {
    pub layer: Arc<Layer>,
    pub run: usize,
}

/// See the module.
pub struct Engine {
    /// The VMs, each at its serial number modulo the length. Each has a lock of its own, so that
    /// those who look for a VM on the path of a fault wait for nobody.
    slots: Box<[Mutex<Option<Arc<Vm>>>]>,
    layers: Mutex<BTreeMap<Id, Arc<Layer>>>,
    serial: AtomicU64,
    pub(crate) epoll: OwnedFd,
    pub(crate) waiters: Waiters,
    pub(crate) arrivals: Arrivals,
    pub(crate) parked: Parked,
    pub(crate) jobs: (Sender<Job>, Receiver<Job>),
    happened: Sender<Happened>,
    /// Readable when something has happened: an eventfd.
    pub(crate) bell: OwnedFd,
    pub(crate) pool: Pool,
    pub(crate) readers: Readers,
    /// Layers that are full and not sealed yet.
    pub(crate) unsealed: Mutex<Vec<Arc<Layer>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Engine")
    }
}

impl Engine {
    /// An engine without threads: see [`Self::start`]. What happens can be received from the
    /// channel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<(Arc<Self>, Receiver<Happened>)> {
        // What happens is bounded by the VMs and the runs that they wait for.
        let (happened, inbox) = crossbeam_channel::unbounded();
        let engine = Self {
            slots: std::iter::repeat_with(Mutex::default).take(PAGER_VMS_MAX).collect(),
            layers: Mutex::default(),
            serial: AtomicU64::new(0),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            waiters: Waiters::default(),
            arrivals: Arrivals::default(),
            parked: Parked::default(),
            jobs: crossbeam_channel::bounded(DEMANDS_MAX),
            happened,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            pool: Pool::default(),
            readers: Readers::default(),
            unsealed: Mutex::default(),
        };
        Ok((Arc::new(engine), inbox))
    }

    /// Takes a layer over.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn add_layer(&self, parts: Parts) -> Result<Arc<Layer>, EngineError> {
        // A layer of a known name is refused before it is made: that takes a while.
        let check = |layers: &BTreeMap<Id, Arc<Layer>>| match layers.len() {
            PAGER_LAYERS_MAX => Err(EngineError::Full(PAGER_LAYERS_MAX)),
            _ if layers.contains_key(&parts.id) => Err(EngineError::Exists),
            _ => Ok(()),
        };
        check(&lock(&self.layers))?;
        let layer = Arc::new(Layer::new(self.serial.fetch_add(1, Ordering::Relaxed), parts)?);
        lock(&self.layers).insert(layer.id.clone(), Arc::clone(&layer));
        if layer.is_full() {
            self.complete(&layer);
        }
        self.pool.wake_background();
        Ok(layer)
    }

    /// Forgets a layer that no VM uses.
    ///
    /// # Errors
    /// There is none, or a VM uses it.
    pub fn drop_layer(&self, id: &Id) -> Result<(), EngineError> {
        let mut layers = lock(&self.layers);
        let layer = layers.get(id).ok_or(EngineError::Unknown)?;
        match self.users(layer) {
            0 => {}
            vms => return Err(EngineError::InUse(vms)),
        }
        layers.remove(id);
        Ok(())
    }

    /// A layer.
    #[must_use]
    pub fn layer(&self, id: &Id) -> Option<Arc<Layer>> {
        lock(&self.layers).get(id).cloned()
    }

    fn vms(&self) -> impl Iterator<Item = Arc<Vm>> + '_ {
        self.slots.iter().filter_map(|slot| lock(slot).clone())
    }

    fn users(&self, layer: &Arc<Layer>) -> usize {
        self.vms().filter(|vm| vm.uses(layer)).count()
    }

    /// How far a layer is.
    #[must_use]
    pub fn layer_status(&self, layer: &Arc<Layer>) -> LayerStatus {
        layer.status(self.users(layer))
    }

    /// All layers.
    #[must_use]
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        lock(&self.layers).values().cloned().collect()
    }

    /// The next VM's serial number.
    ///
    /// # Errors
    /// There are too many VMs.
    pub fn next_serial(&self) -> Result<u64, EngineError> {
        // One after the other, as far as its place is free.
        for _ in 0..self.slots.len() {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            if lock(self.slot(serial)).is_none() {
                return Ok(serial);
            }
        }
        Err(EngineError::Full(self.slots.len()))
    }

    fn slot(&self, serial: u64) -> &Mutex<Option<Arc<Vm>>> {
        &self.slots[serial as usize % self.slots.len()]
    }

    /// A VM, by its serial number.
    #[must_use]
    pub fn vm(&self, serial: u64) -> Option<Arc<Vm>> {
        lock(self.slot(serial)).as_ref().filter(|vm| vm.serial == serial).cloned()
    }

    /// Serves a VM from now on. `mappings` is what its process says; nothing of it is trusted.
    ///
    /// # Errors
    /// See [`EngineError`]. The VM is not served then.
    pub fn attach(
        &self,
        name: Named,
        faults: OwnedFd,
        mappings: &[u8],
        layers: Vec<Arc<Layer>>,
        tracks_writes: bool,
    ) -> Result<Arc<Vm>, EngineError> {
        let lengths: Vec<u64> = layers.iter().map(|layer| layer.bytes).collect();
        let mappings = Mapping::decode(mappings, &lengths)?;
        let vm = Arc::new(Vm::new(name, Faults::from(faults), &mappings, layers, tracks_writes));
        // Nothing but a userfaultfd takes this. Those who wait since before have their fault again,
        // and so it is seen.
        vm.wake_all().map_err(EngineError::Userfaultfd)?;
        self.place(&vm)?;
        for layer in vm.distinct_layers() {
            // After the VM has its place: who completes a layer from here on finds the VM there.
            if layer.is_complete.load(Ordering::Acquire) {
                self.release(&vm, layer);
            }
        }
        let data = epoll::EventData::new_u64(vm.serial);
        let watched = epoll::add(&self.epoll, &vm.faults, data, Self::watch_flags());
        if let Err(error) = watched {
            self.forget(&vm);
            return Err(EngineError::Userfaultfd(error));
        }
        Ok(vm)
    }

    fn place(&self, vm: &Arc<Vm>) -> Result<(), EngineError> {
        let mut slot = lock(self.slot(vm.serial));
        if slot.is_some() {
            return Err(EngineError::Full(self.slots.len()));
        }
        *slot = Some(Arc::clone(vm));
        Ok(())
    }

    /// One reader at a time serves a VM: it watches anew when it is done.
    const fn watch_flags() -> epoll::EventFlags {
        epoll::EventFlags::IN.union(epoll::EventFlags::ONESHOT)
    }

    /// Lets readers see the next faults of a VM.
    pub(crate) fn watch(&self, vm: &Vm) {
        let data = epoll::EventData::new_u64(vm.serial);
        best_effort(
            epoll::modify(&self.epoll, &vm.faults, data, Self::watch_flags()),
            "the one error is a VM that is gone, and was taken out by another thread",
        );
    }

    /// Serves a VM no longer. False: it is not served.
    pub fn detach(&self, serial: u64) -> bool {
        let vm = lock(self.slot(serial)).take_if(|vm| vm.serial == serial);
        if let Some(vm) = &vm {
            self.forget(vm);
        }
        vm.is_some()
    }

    /// As [`Self::detach`], for a VM that cannot be served any longer. Who controls the pager is
    /// told.
    pub(crate) fn give_up(&self, vm: &Arc<Vm>, error: VmError) {
        if self.detach(vm.serial) {
            self.tell(Happened::VmGone(vm.serial, error));
        }
    }

    fn forget(&self, vm: &Arc<Vm>) {
        lock(self.slot(vm.serial)).take_if(|other| other.serial == vm.serial);
        best_effort(epoll::delete(&self.epoll, &vm.faults), "it may never have been added");
        self.waiters.forget(vm);
    }

    pub(crate) fn tell(&self, what: Happened) {
        best_effort(self.happened.send(what), "nobody listens any longer when the process ends");
        best_effort(rustix::io::write(&self.bell, &1_u64.to_ne_bytes()), "if it is full, it rings already");
    }

    /// All of a layer is there: unregisters it in its VMs, and lets it be sealed.
    pub(crate) fn complete(&self, layer: &Arc<Layer>) {
        layer.close();
        layer.is_complete.store(true, Ordering::Release);
        self.vms().filter(|vm| vm.uses(layer)).for_each(|vm| self.release(&vm, layer));
        if layer.is_sealed.load(Ordering::Acquire) {
            self.tell(Happened::Sealed(layer.id.clone()));
        } else {
            lock(&self.unsealed).push(Arc::clone(layer));
            self.pool.wake_background();
        }
    }

    fn release(&self, vm: &Arc<Vm>, layer: &Arc<Layer>) {
        let is_unregistered = vm.unregister(layer);
        for number in vm.numbers(layer) {
            self.tell(Happened::Complete { vm: vm.serial, layer: number, is_unregistered });
        }
    }

    /// Seals a layer that is full. One that cannot be sealed yet is kept for later.
    pub(crate) fn seal(&self, layer: Arc<Layer>) {
        match layer.seal() {
            Ok(()) => self.tell(Happened::Sealed(layer.id.clone())),
            // Somebody holds one of its pages for a while.
            Err(_) => lock(&self.unsealed).push(layer),
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let (workers, stuck_workers) = self.pool.count();
        let waiting: Vec<usize> = self.vms().map(|vm| vm.waiting.load(Ordering::Relaxed)).collect();
        Status {
            layers: lock(&self.layers).len(),
            vms: waiting.len(),
            demanded: self.waiters.runs() as u64,
            waiting: waiting.iter().sum(),
            workers,
            stuck_workers,
        }
    }
}
