//! A layer: which of its runs are present, and who waits for the others.
//!
//! The state of a run is an atomic byte, so nobody who looks at it takes a lock. A run goes from
//! absent to asked by whoever gets to read it at the source, one at a time; then it becomes present
//! or failed. Of a present run each page is known to be data, which the memfd has, or zero, which
//! the memfd need not have.

use crate::lock::lock;
use crate::source::{Digests, DigestsError, PageSource};
use crate::sys::window::Window;
use crate::vm::Vm;
use patina_control::PAGE_BYTES;
use patina_control::pager::{DemandBitmap, Id, LAYER_MAX_BYTES, LayerStatus, RUN_BYTES};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Pages of a run.
pub const RUN_PAGES: usize = (RUN_BYTES / PAGE_BYTES) as usize;
/// Those who wait are kept in so many tables, by the number of the run.
const TABLES: usize = 16;

const ABSENT: u8 = 0;
const ASKED: u8 = 1;
const PRESENT: u8 = 2;
const FAILED: u8 = 3;

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The length is none that a layer can have.
    #[error("a layer has whole pages, at most {LAYER_MAX_BYTES} bytes; this one has {0} bytes")]
    Bytes(u64),
    /// The memfd has another length.
    #[error("the memfd has {found} bytes; the layer has {expected}")]
    Length {
        /// The memfd's length.
        found: u64,
        /// The layer's.
        expected: u64,
    },
    /// The memfd's length can change.
    #[error("the memfd is not sealed against a change of its length")]
    Unsealed,
    /// The memfd cannot be used.
    #[error("use the memfd: {0}")]
    Memfd(#[source] io::Error),
    /// The digests are not the layer's.
    #[error(transparent)]
    Digests(#[from] DigestsError),
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Its run is not here yet.
    Absent,
    /// Its run cannot be had.
    Failed,
    /// The memfd has it.
    Data,
    /// It is zero.
    Zero,
}

/// What became of a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The caller gets the run.
    Fetch,
    /// Somebody gets it already.
    Waits,
    /// The run is not absent any longer.
    Settled,
}

/// Those who wait for a run.
#[derive(Debug)]
pub struct Waiting {
    since: Instant,
    /// Each VM with the addresses of its faults.
    pub vms: Vec<(Arc<Vm>, Vec<u64>)>,
}

/// What a layer is made from.
pub struct Parts {
    /// Its name.
    pub id: Id,
    /// Its length, bytes.
    pub bytes: u64,
    /// Its memory.
    pub memfd: File,
    /// The digests of its runs.
    pub digests: Digests,
    /// Where the runs are read.
    pub source: Box<dyn PageSource>,
    /// What to fetch first.
    pub demand: Option<DemandBitmap>,
    /// Whether to fetch what nobody demands.
    pub fill: bool,
}

/// See the module.
pub struct Layer {
    /// Its name.
    pub id: Id,
    /// Its length, bytes.
    pub bytes: u64,
    /// Its memory.
    pub memfd: File,
    /// The digests of its runs.
    pub digests: Digests,
    /// Where the runs are read.
    pub source: Box<dyn PageSource>,
    /// Whether the memfd had something when the layer was taken over.
    pub is_inherited: bool,
    /// What to fetch although nobody demands it, in order: from the demands of others, then all.
    pub background: Background,
    /// The VMs that use it.
    pub vms: Mutex<Vec<Weak<Vm>>>,
    /// Runs that were read at the source.
    pub fetched: AtomicUsize,
    /// Runs that could not be had when a VM needed them, with the reason of the first few.
    pub failures: Mutex<Failures>,
    /// All VMs are told that it is complete.
    pub is_complete: AtomicBool,
    /// The memfd is sealed.
    pub is_sealed: AtomicBool,
    window: Mutex<Option<Arc<Window>>>,
    states: Box<[AtomicU8]>,
    data: Box<[AtomicU16]>,
    demanded: Box<[AtomicU8]>,
    present: AtomicUsize,
    waiting: [Mutex<HashMap<usize, Waiting>>; TABLES],
    /// Runs that VMs wait for, in all layers.
    all_demanded: Arc<AtomicUsize>,
}

/// What the background is to fetch.
#[derive(Debug)]
pub struct Background {
    /// What others demanded, in order.
    pub first: Vec<usize>,
    /// How far `first` is fetched.
    pub first_next: AtomicUsize,
    /// How far all runs are fetched.
    pub next: AtomicUsize,
    /// Whether to fetch all runs.
    pub fill: bool,
    /// How often the source failed.
    pub failures: AtomicUsize,
}

/// Runs that could not be had.
#[derive(Debug, Default)]
pub struct Failures {
    /// How many.
    pub count: u64,
    reasons: HashMap<usize, String>,
}

/// Most reasons that are kept.
const REASONS_MAX: usize = 1024;

impl Failures {
    /// Adds one.
    pub fn add(&mut self, run: usize, reason: &str) {
        self.count += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.insert(run, reason.to_owned());
        }
    }

    /// Why a run failed.
    #[must_use]
    pub fn reason(&self, run: usize) -> String {
        self.reasons.get(&run).cloned().unwrap_or_else(|| "it failed before".into())
    }
}

fn array<T: Default>(length: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(length).collect()
}

impl Layer {
    /// Takes a layer over.
    ///
    /// # Errors
    /// See [`LayerError`].
    pub fn new(parts: Parts, all_demanded: Arc<AtomicUsize>) -> Result<Self, LayerError> {
        let Parts { id, bytes, memfd, digests, source, demand, fill } = parts;
        if !(1..=LAYER_MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(LayerError::Bytes(bytes));
        }
        let seals = fcntl_get_seals(&memfd).map_err(|error| LayerError::Memfd(error.into()))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(LayerError::Unsealed);
        }
        let stat = rustix::fs::fstat(&memfd).map_err(|error| LayerError::Memfd(error.into()))?;
        if u64::try_from(stat.st_size) != Ok(bytes) {
            return Err(LayerError::Length { found: stat.st_size as u64, expected: bytes });
        }
        // The last thing that a pager does to a memfd, once all of it is there.
        let is_sealed = seals.contains(SealFlags::WRITE);
        let window = if is_sealed { None } else { Some(Window::new(&memfd, bytes)) };
        let window = window.transpose().map_err(|error| LayerError::Memfd(error.into()))?;
        let runs = bytes.div_ceil(RUN_BYTES) as usize;
        let layer = Self {
            id,
            bytes,
            memfd,
            source,
            is_inherited: stat.st_blocks != 0,
            background: Background {
                first: demand.map(|demand| demand.in_order().collect()).unwrap_or_default(),
                first_next: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                fill,
                failures: AtomicUsize::new(0),
            },
            vms: Mutex::default(),
            fetched: AtomicUsize::new(0),
            failures: Mutex::default(),
            is_complete: AtomicBool::new(is_sealed),
            is_sealed: AtomicBool::new(is_sealed),
            window: Mutex::new(window.map(Arc::new)),
            states: array(runs),
            data: array(runs),
            demanded: array(runs),
            present: AtomicUsize::new(0),
            waiting: Default::default(),
            all_demanded,
            digests,
        };
        layer.mark_known(is_sealed);
        Ok(layer)
    }

    /// Marks what needs no source: all of a sealed memfd, and else the runs that are known to be
    /// zero. In a sealed memfd a page that is a hole is found when it is needed.
    fn mark_known(&self, is_sealed: bool) {
        for run in 0..self.runs() {
            // What an earlier pager left of such a run is not looked at: it never wrote there.
            if is_sealed {
                self.set_present(run, u16::MAX);
            } else if self.digests.is_zero(run) {
                self.set_present(run, 0);
            }
        }
    }

    fn set_present(&self, run: usize, data: u16) -> usize {
        if let (Some(state), Some(pages)) = (self.states.get(run), self.data.get(run)) {
            pages.store(data, Ordering::Relaxed);
            state.store(PRESENT, Ordering::Release);
        }
        self.present.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// How many runs it has.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.states.len()
    }

    /// The length of a run, bytes.
    #[must_use]
    pub fn run_bytes(&self, run: usize) -> usize {
        self.bytes.saturating_sub(run as u64 * RUN_BYTES).min(RUN_BYTES) as usize
    }

    /// Whether all runs are present.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.present.load(Ordering::Acquire) == self.runs()
    }

    /// What is known of a page, by its number in the layer.
    #[must_use]
    pub fn page(&self, page: u64) -> Page {
        let run = (page / RUN_PAGES as u64) as usize;
        let state = self.states.get(run).map_or(FAILED, |state| state.load(Ordering::Acquire));
        match state {
            PRESENT => {
                let data = self.data.get(run).map_or(0, |data| data.load(Ordering::Relaxed));
                if data & (1 << (page % RUN_PAGES as u64)) == 0 { Page::Zero } else { Page::Data }
            }
            FAILED => Page::Failed,
            _ => Page::Absent,
        }
    }

    /// Whether a run is present.
    #[must_use]
    pub fn is_present(&self, run: usize) -> bool {
        self.states.get(run).is_some_and(|state| state.load(Ordering::Acquire) == PRESENT)
    }

    /// Notes that a VM needs a run, so long after it was attached.
    pub fn record(&self, run: usize, after: Duration) {
        let Some(cell) = self.demanded.get(run) else { return };
        let bucket = 1 + DemandBitmap::bucket(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let earlier = |seen: u8| (seen == 0 || bucket < seen).then_some(bucket);
        // An error says that an earlier demand is noted already.
        let _noted = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    /// What VMs have demanded.
    #[must_use]
    pub fn demand(&self) -> DemandBitmap {
        let mut demand = DemandBitmap::new(self.bytes);
        for (run, seen) in self.demanded.iter().enumerate() {
            if let Some(bucket) = seen.load(Ordering::Relaxed).checked_sub(1) {
                demand.insert(run, bucket);
            }
        }
        demand
    }

    fn table(&self, run: usize) -> &Mutex<HashMap<usize, Waiting>> {
        &self.waiting[run % TABLES]
    }

    /// Lets a VM wait for a run, because of a fault at `address`.
    pub fn ask(&self, run: usize, vm: &Arc<Vm>, address: u64) -> Asked {
        let Some(state) = self.states.get(run) else { return Asked::Settled };
        let mut table = lock(self.table(run));
        let asked = match state.compare_exchange(ABSENT, ASKED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Asked::Fetch,
            Err(ASKED) => Asked::Waits,
            Err(_) => return Asked::Settled,
        };
        let waiting = table.entry(run).or_insert_with(|| {
            self.all_demanded.fetch_add(1, Ordering::Relaxed);
            Waiting { since: Instant::now(), vms: Vec::new() }
        });
        match waiting.vms.iter_mut().find(|(other, _)| Arc::ptr_eq(other, vm)) {
            Some((_, addresses)) if addresses.contains(&address) => return asked,
            Some((_, addresses)) => addresses.push(address),
            None => waiting.vms.push((Arc::clone(vm), vec![address])),
        }
        vm.waiting.fetch_add(1, Ordering::Relaxed);
        asked
    }

    /// Lets the caller get a run that nobody waits for. False: it is not absent.
    pub fn claim(&self, run: usize) -> bool {
        let state = self.states.get(run);
        state.is_some_and(|state| {
            state.compare_exchange(ABSENT, ASKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// Makes a run present: its data pages (a bit each) are in the memfd. Those who waited, and how
    /// many runs are present now.
    pub fn settle(&self, run: usize, data: u16) -> (Option<Waiting>, usize) {
        let present = self.set_present(run, data);
        // Whoever takes the lock after this finds the run present.
        (self.take(&mut lock(self.table(run)), run), present)
    }

    /// Gives a run up. Those who waited.
    pub fn fail(&self, run: usize) -> Option<Waiting> {
        let mut table = lock(self.table(run));
        let state = self.states.get(run)?;
        state.compare_exchange(ASKED, FAILED, Ordering::AcqRel, Ordering::Acquire).ok()?;
        self.take(&mut table, run)
    }

    /// Gives a run up that was fetched for nobody. If somebody waits for it now: those. If not, it
    /// is absent again.
    pub fn release(&self, run: usize) -> Option<Waiting> {
        let mut table = lock(self.table(run));
        let next = if table.contains_key(&run) { FAILED } else { ABSENT };
        let state = self.states.get(run)?;
        state.compare_exchange(ASKED, next, Ordering::AcqRel, Ordering::Acquire).ok()?;
        self.take(&mut table, run)
    }

    fn take(&self, table: &mut HashMap<usize, Waiting>, run: usize) -> Option<Waiting> {
        let waiting = table.remove(&run)?;
        self.all_demanded.fetch_sub(1, Ordering::Relaxed);
        for (vm, addresses) in &waiting.vms {
            vm.waiting.fetch_sub(addresses.len(), Ordering::Relaxed);
        }
        Some(waiting)
    }

    /// The runs for which somebody has waited since before `since`.
    #[must_use]
    pub fn overdue(&self, since: Instant) -> Vec<usize> {
        let of_table = |table: &Mutex<HashMap<usize, Waiting>>| {
            let table = lock(table);
            table.iter().filter(|(_, waiting)| waiting.since < since).map(|(run, _)| *run).collect::<Vec<_>>()
        };
        self.waiting.iter().flat_map(of_table).collect()
    }

    /// Lets a VM wait no longer, and use the layer no longer.
    pub fn forget(&self, vm: &Arc<Vm>) {
        for table in &self.waiting {
            let mut table = lock(table);
            for waiting in table.values_mut() {
                waiting.vms.retain(|(other, _)| !Arc::ptr_eq(other, vm));
            }
            let before = table.len();
            table.retain(|_, waiting| !waiting.vms.is_empty());
            self.all_demanded.fetch_sub(before - table.len(), Ordering::Relaxed);
        }
        lock(&self.vms).retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(vm)));
    }

    /// The memfd, mapped to be written. None: the layer is full.
    #[must_use]
    pub fn window(&self) -> Option<Arc<Window>> {
        lock(&self.window).clone()
    }

    /// Unmaps the memfd. Nobody writes to it any longer.
    pub fn close_window(&self) {
        drop(lock(&self.window).take());
    }

    /// Seals the memfd, which is full and not mapped to be written.
    ///
    /// # Errors
    /// See [`patina_control::memfd::seal`].
    pub fn seal(&self) -> Result<(), Errno> {
        patina_control::memfd::seal(&self.memfd)?;
        self.is_sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// How far it is.
    #[must_use]
    pub fn status(&self) -> LayerStatus {
        LayerStatus {
            layer: self.id.clone(),
            bytes: self.bytes,
            runs: self.runs() as u64,
            present: self.present.load(Ordering::Acquire) as u64,
            fetched: self.fetched.load(Ordering::Relaxed) as u64,
            failed: lock(&self.failures).count,
            vms: lock(&self.vms).len(),
            is_complete: self.is_sealed.load(Ordering::Acquire),
        }
    }
}
