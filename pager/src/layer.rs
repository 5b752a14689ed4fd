//! A layer: which of its runs are present, and who waits for the others.
//!
//! The state of a run is an atomic byte, so nobody who looks at it takes a lock. A run goes from
//! absent to asked by whoever gets to read it at the source, one at a time; then it becomes present
//! or failed. Of a present run each page is known to be data, which the memfd has, or zero, which
//! the memfd need not have.

use crate::source::{Digests, DigestsError, PageSource};
use patina_control::PAGE_BYTES;
use patina_control::pager::{DemandBitmap, Id, LAYER_MAX_BYTES, LayerStatus, RUN_BYTES};
use patina_daemon::lock;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Pages of a run.
pub const RUN_PAGES: usize = (RUN_BYTES / PAGE_BYTES) as usize;
/// What is known of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody has asked for it.
    Absent = ABSENT,
    /// Somebody gets it.
    Asked = ASKED,
    /// All of it is in the memfd.
    Present = PRESENT,
    /// It cannot be had.
    Failed = FAILED,
}

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
    #[error("use the memfd")]
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
    pub source: Arc<dyn PageSource>,
    /// What to fetch first.
    pub demand: Option<DemandBitmap>,
    /// Whether to fetch what nobody demands.
    pub fill: bool,
}

/// See the module.
pub struct Layer {
    /// Its number, unique in the pager's life.
    pub number: u64,
    /// Its name.
    pub id: Id,
    /// Its length, bytes.
    pub bytes: u64,
    /// Its memory.
    pub memfd: File,
    /// The digests of its runs.
    pub digests: Digests,
    /// Where the runs are read. None: all of it is there.
    pub(crate) source: Mutex<Option<Arc<dyn PageSource>>>,
    /// Whether the memfd had something when the layer was taken over.
    pub is_inherited: bool,
    /// What to fetch although nobody demands it, in order: from the demands of others, then all.
    pub background: Background,
    /// Runs that were read at the source.
    pub fetched: AtomicUsize,
    /// Runs that could not be had when a VM needed them, with the reason of the first few.
    pub failures: Mutex<Failures>,
    /// All VMs are told that it is complete.
    pub is_complete: AtomicBool,
    /// The memfd is sealed.
    pub is_sealed: AtomicBool,
    states: Box<[AtomicU8]>,
    data: Box<[AtomicU16]>,
    demanded: Box<[AtomicU8]>,
    present: AtomicUsize,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Layer({})", self.id)
    }
}

/// What the background is to fetch.
#[derive(Debug)]
pub struct Background {
    /// What others demanded, in order: each with its bucket.
    pub first: Vec<(u8, usize)>,
    /// How far `first` is fetched.
    pub first_next: AtomicUsize,
    /// How far all runs are fetched.
    pub next: AtomicUsize,
    /// Whether to fetch all runs.
    pub fill: bool,
    /// How often the source failed.
    pub failures: AtomicUsize,
}

impl Background {
    /// The bucket that is to be fetched next. None: all that others demanded is fetched.
    #[must_use]
    pub fn next_bucket(&self) -> Option<u8> {
        let next = self.first.get(self.first_next.load(Ordering::Relaxed));
        next.map(|(bucket, _)| *bucket)
    }
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
    pub fn new(number: u64, parts: Parts) -> Result<Self, LayerError> {
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
        let runs = bytes.div_ceil(RUN_BYTES) as usize;
        let layer = Self {
            number,
            id,
            bytes,
            memfd,
            source: Mutex::new(Some(source).filter(|_| !is_sealed)),
            is_inherited: stat.st_blocks != 0,
            background: Background {
                first: demand.map(|demand| demand.in_order().collect()).unwrap_or_default(),
                first_next: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                fill,
                failures: AtomicUsize::new(0),
            },
            fetched: AtomicUsize::new(0),
            failures: Mutex::default(),
            is_complete: AtomicBool::new(is_sealed),
            is_sealed: AtomicBool::new(is_sealed),
            states: array(runs),
            data: array(runs),
            demanded: array(runs),
            present: AtomicUsize::new(0),
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

    /// Makes a run present: its data pages (a bit each) are in the memfd. How many runs are present
    /// now.
    pub fn set_present(&self, run: usize, data: u16) -> usize {
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

    /// Whether somebody gets a run.
    #[must_use]
    pub fn is_asked(&self, run: usize) -> bool {
        self.states.get(run).is_some_and(|state| state.load(Ordering::Acquire) == ASKED)
    }

    /// Notes that a VM needs a run, so long after its start.
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

    /// Lets the caller get a run.
    ///
    /// # Errors
    /// It is not absent: its state.
    pub fn claim(&self, run: usize) -> Result<(), State> {
        let state = self.states.get(run).ok_or(State::Failed)?;
        let claimed = state.compare_exchange(ABSENT, ASKED, Ordering::AcqRel, Ordering::Acquire);
        claimed.map(drop).map_err(|state| match state {
            ASKED => State::Asked,
            PRESENT => State::Present,
            _ => State::Failed,
        })
    }

    /// Gives a run up that somebody was to get. False: nobody is.
    pub fn give_up(&self, run: usize, next: State) -> bool {
        self.states.get(run).is_some_and(|state| {
            state.compare_exchange(ASKED, next as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// Where the runs are read. None: the layer is full.
    #[must_use]
    pub fn source(&self) -> Option<Arc<dyn PageSource>> {
        lock(&self.source).clone()
    }

    /// Lets go of the source of a layer that is full.
    pub fn close(&self) {
        drop(lock(&self.source).take());
    }

    /// Seals the memfd, which is full.
    ///
    /// # Errors
    /// See [`patina_control::memfd::seal`].
    pub fn seal(&self) -> Result<(), Errno> {
        patina_control::memfd::seal(&self.memfd)?;
        self.is_sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// How far it is, when so many VMs use it.
    #[must_use]
    pub fn status(&self, vms: usize) -> LayerStatus {
        LayerStatus {
            layer: self.id.clone(),
            bytes: self.bytes,
            runs: self.runs() as u64,
            present: self.present.load(Ordering::Acquire) as u64,
            fetched: self.fetched.load(Ordering::Relaxed) as u64,
            failed: lock(&self.failures).count,
            vms,
            is_complete: self.is_sealed.load(Ordering::Acquire),
        }
    }
}
