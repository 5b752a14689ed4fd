//! A VM that is served: its userfaultfd, and what its addresses show.

use crate::layer::{Layer, Page, RUN_PAGES};
use crate::sys::faults::{Answer, Faults};
use patina_control::PAGE_BYTES;
use patina_control::pager::{Id, Mapping, RUN_BYTES};
use patina_daemon::lock;
use rustix::io::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most that is answered for one fault, bytes: as much as one page of page tables maps.
const STRETCH_BYTES: u64 = 2 << 20;
/// How often a part is tried again while the process changes its mappings.
const TRIES: usize = 64;

/// Why a VM cannot be served any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VmError {
    /// Its process has ended.
    #[error("its process has ended")]
    Ended,
    /// It has a fault where it said to have no mapping.
    #[error("it has a fault at {0:#x}, where it said to have no mapping")]
    Elsewhere(u64),
    /// The kernel refuses an answer.
    #[error("answer a fault at {at:#x}: {error}")]
    Refused {
        /// The address.
        at: u64,
        /// The kernel's reason.
        error: Errno,
    },
    /// Its userfaultfd cannot be read.
    #[error("read its userfaultfd: {0}")]
    Read(Errno),
    /// Reading its userfaultfd blocks.
    #[error("its userfaultfd is not non-blocking")]
    Blocking,
}

/// A mapping of a VM.
#[derive(Debug)]
struct Place {
    at: Mapping,
    layer: Arc<Layer>,
}

/// Which VM it is.
#[derive(Debug)]
pub struct Named {
    /// Unique among all VMs of the pager's life.
    pub serial: u64,
    /// Its name.
    pub id: Id,
    /// How long it has run.
    pub age: Duration,
}

/// See the module.
pub struct Vm {
    /// Unique among all VMs of the pager's life.
    pub serial: u64,
    /// Its name.
    pub id: Id,
    /// Its userfaultfd.
    pub faults: Faults,
    /// When it was attached.
    attached: Instant,
    /// How long it had run then.
    age: Duration,
    /// Whether the kernel tracks its writes with the same userfaultfd. Held while ranges are
    /// unregistered.
    pub tracks_writes: Mutex<bool>,
    /// Faults that wait for a run.
    pub waiting: AtomicUsize,
    /// Its faults are not read, because so many wait.
    pub is_paused: AtomicBool,
    places: Vec<Place>,
    layers: Vec<Arc<Layer>>,
    /// A bit for each run of each layer: it is mapped already, as far as the VM has it.
    answered: Vec<Box<[AtomicU64]>>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Vm({}, {})", self.id, self.serial)
    }
}

impl Vm {
    /// A VM with mappings that were checked against these layers, which they name by number.
    #[must_use]
    pub fn new(
        Named { serial, id, age }: Named,
        faults: Faults,
        mappings: &[Mapping],
        layers: Vec<Arc<Layer>>,
        tracks_writes: bool,
    ) -> Self {
        let place = |at: &Mapping| {
            layers.get(at.layer as usize).map(|layer| Place { at: *at, layer: Arc::clone(layer) })
        };
        let bits = |layer: &Arc<Layer>| {
            std::iter::repeat_with(AtomicU64::default).take(layer.runs().div_ceil(64)).collect()
        };
        Self {
            serial,
            id,
            faults,
            attached: Instant::now(),
            age,
            tracks_writes: Mutex::new(tracks_writes),
            waiting: AtomicUsize::new(0),
            is_paused: AtomicBool::new(false),
            places: mappings.iter().filter_map(place).collect(),
            answered: layers.iter().map(bits).collect(),
            layers,
        }
    }

    /// How long it has run.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age.saturating_add(self.attached.elapsed())
    }

    /// Its layers, each once.
    pub fn distinct_layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        let is_first = |(number, layer): &(u32, &Arc<Layer>)| self.numbers(layer).next() == Some(*number);
        (0..).zip(&self.layers).filter(is_first).map(|(_, layer)| layer)
    }

    /// Whether a layer is one of its own.
    #[must_use]
    pub fn uses(&self, layer: &Arc<Layer>) -> bool {
        self.layers.iter().any(|other| Arc::ptr_eq(other, layer))
    }

    /// How many mappings it has.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.places.len()
    }

    /// Where it may have faults.
    #[must_use]
    pub fn addresses(&self) -> Range<u64> {
        let first = self.places.first().map_or(0, |place| place.at.address);
        first..self.places.last().map_or(first, |place| place.at.addresses().end)
    }

    fn place(&self, address: u64) -> Option<&Place> {
        let behind = self.places.partition_point(|place| place.at.address <= address);
        let place = self.places.get(behind.checked_sub(1)?)?;
        place.at.addresses().contains(&address).then_some(place)
    }

    /// The layer that has the page at an address, and the page's number there.
    ///
    /// # Errors
    /// It has no mapping there.
    pub fn find(&self, address: u64) -> Result<(&Arc<Layer>, u64), VmError> {
        let place = self.place(address).ok_or(VmError::Elsewhere(address))?;
        Ok((&place.layer, place.page(address)))
    }

    /// Wakes all who wait, so that their faults are seen again.
    ///
    /// # Errors
    /// ENOTTY: its descriptor is no userfaultfd.
    pub fn wake_all(&self) -> Result<(), Errno> {
        let all = self.addresses();
        self.faults.wake(all.start, all.end - all.start)
    }

    /// A layer's numbers: a generation may have layers of the same content, which are one layer.
    pub fn numbers(&self, layer: &Arc<Layer>) -> impl Iterator<Item = u32> {
        (0..).zip(&self.layers).filter(|(_, other)| Arc::ptr_eq(other, layer)).map(|(number, _)| number)
    }

    /// Unregisters the mappings of a layer that is complete, unless the VM tracks writes. Whether
    /// it did.
    pub fn unregister(&self, layer: &Arc<Layer>) -> bool {
        // Held, so that the VM does not begin to track between the look and the last call.
        let tracks = lock(&self.tracks_writes);
        if !*tracks {
            for place in self.places.iter().filter(|place| Arc::ptr_eq(&place.layer, layer)) {
                // What the process has unmapped is not registered either.
                let _unregistered = self.faults.unregister(place.at.address, place.at.bytes);
            }
        }
        !*tracks
    }

    /// Answers the fault at `address`, whose run is present, and maps what is present around it.
    /// The addresses that need no further answer.
    ///
    /// # Errors
    /// See [`VmError`].
    pub fn answer(&self, address: u64) -> Result<Range<u64>, VmError> {
        let place = self.place(address).ok_or(VmError::Elsewhere(address))?;
        let pages = self.present_around(place, place.page(address));
        let own = self.stretches(place, &pages);
        // First what is waited for.
        let (first, others): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|(_, addresses)| addresses.contains(&address));
        for (answer, addresses) in first.into_iter().chain(others) {
            self.fill(place, answer, addresses, address)?;
        }
        self.note_answered(place, &pages);
        Ok(place.address(pages.start)..place.address(pages.end))
    }

    /// The pages of the mapping from `page`'s run on, in both directions, whose runs are present
    /// and not mapped yet.
    fn present_around(&self, place: &Place, page: u64) -> Range<u64> {
        const RUN: u64 = RUN_PAGES as u64;
        let stretch = STRETCH_BYTES / PAGE_BYTES;
        let mapped = place.page(place.at.address)..place.page(place.at.addresses().end);
        let block =
            (page / stretch * stretch).max(mapped.start)..((page / stretch + 1) * stretch).min(mapped.end);
        let wanted =
            |run: u64| place.layer.is_present(run as usize) && !self.is_answered(place, run as usize);
        let (mut first, mut last) = (page / RUN, page / RUN);
        while first * RUN > block.start && wanted(first - 1) {
            first -= 1;
        }
        while (last + 1) * RUN < block.end && wanted(last + 1) {
            last += 1;
        }
        (first * RUN).max(block.start)..((last + 1) * RUN).min(block.end)
    }

    /// Pages of present runs as stretches of addresses of one kind.
    fn stretches(&self, place: &Place, pages: &Range<u64>) -> Vec<(Answer, Range<u64>)> {
        let mut stretches: Vec<(Answer, Range<u64>)> = Vec::new();
        for page in pages.clone() {
            let answer = if place.layer.page(page) == Page::Data { Answer::Continue } else { Answer::Zero };
            let start = place.address(page);
            match stretches.last_mut() {
                Some((last, addresses)) if *last == answer => addresses.end = start + PAGE_BYTES,
                _ => stretches.push((answer, start..start + PAGE_BYTES)),
            }
        }
        stretches
    }

    /// Answers all addresses of a stretch. `waited` is the address of the fault.
    fn fill(&self, place: &Place, answer: Answer, addresses: Range<u64>, waited: u64) -> Result<(), VmError> {
        let (mut at, mut must_wake, mut tries) = (addresses.start, false, 0);
        while at < addresses.end {
            match self.faults.answer(answer, at, addresses.end - at) {
                Ok(bytes) => at += bytes,
                Err(Errno::EXIST) => {
                    // An entry that is write-protected refuses the page of zeros, but takes a copy
                    // of it.
                    if answer == Answer::Zero && at == waited {
                        self.give_zeros(at)?;
                    }
                    must_wake = true;
                    at += PAGE_BYTES;
                }
                // A hole of a memfd that was complete when the pager got it.
                Err(Errno::FAULT) if answer == Answer::Continue && place.layer.is_full() => {
                    self.give_zeros(at)?;
                    must_wake = true;
                    at += PAGE_BYTES;
                }
                Err(Errno::AGAIN) if tries < TRIES => {
                    tries += 1;
                    std::thread::yield_now();
                }
                // It changes its mappings, or has. Who waits tries again, and may have another
                // fault.
                Err(Errno::AGAIN | Errno::NOENT) => {
                    must_wake = true;
                    break;
                }
                Err(Errno::SRCH) => return Err(VmError::Ended),
                Err(error) => return Err(VmError::Refused { at, error }),
            }
        }
        if must_wake {
            let refused = |error| VmError::Refused { at: addresses.start, error };
            self.faults.wake(addresses.start, addresses.end - addresses.start).map_err(refused)?;
        }
        Ok(())
    }

    fn give_zeros(&self, at: u64) -> Result<(), VmError> {
        match self.faults.answer(Answer::ZeroCopy, at, PAGE_BYTES) {
            Ok(_) | Err(Errno::EXIST | Errno::AGAIN | Errno::NOENT) => Ok(()),
            Err(Errno::SRCH) => Err(VmError::Ended),
            Err(error) => Err(VmError::Refused { at, error }),
        }
    }

    /// Lets the access to a page fail. False: the kernel does not do that.
    pub fn poison(&self, address: u64) -> bool {
        self.faults.answer(Answer::Poison, address, PAGE_BYTES).is_ok()
    }

    fn bit(&self, place: &Place, run: usize) -> Option<(&AtomicU64, u64)> {
        let word = self.answered.get(place.at.layer as usize)?.get(run / 64)?;
        Some((word, 1 << (run % 64)))
    }

    fn is_answered(&self, place: &Place, run: usize) -> bool {
        self.bit(place, run).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn note_answered(&self, place: &Place, pages: &Range<u64>) {
        let runs = pages.start / RUN_PAGES as u64..pages.end.div_ceil(RUN_PAGES as u64);
        for (word, bit) in runs.filter_map(|run| self.bit(place, run as usize)) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

impl Place {
    /// The number in the layer of the page at an address of the mapping.
    fn page(&self, address: u64) -> u64 {
        (address - self.at.address + self.at.offset) / PAGE_BYTES
    }

    /// The address of a page of the mapping.
    fn address(&self, page: u64) -> u64 {
        (page * PAGE_BYTES).saturating_sub(self.at.offset) + self.at.address
    }
}

const _: () = assert!(STRETCH_BYTES.is_multiple_of(RUN_BYTES));
