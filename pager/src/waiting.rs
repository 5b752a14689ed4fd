//! Who waits for which run.
//!
//! A run that several VMs need is read once: the first of them gets it, the others wait with it.
//! The tables have locks of their own, each for a share of all runs, and nobody waits for anything
//! while holding one.

use crate::layer::{Layer, State};
use crate::vm::Vm;
use patina_daemon::lock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

const TABLES: usize = 64;

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

/// VMs, each with the addresses of its faults.
pub type Sleepers = Vec<(Arc<Vm>, Vec<u64>)>;

#[derive(Debug)]
struct Waiting {
    layer: Arc<Layer>,
    since: Instant,
    vms: Sleepers,
}

/// The number of a run, and of its layer.
type Key = (u64, usize);
type Table = HashMap<Key, Waiting>;

/// See the module.
#[derive(Debug)]
pub struct Waiters {
    tables: [Mutex<Table>; TABLES],
    runs: AtomicUsize,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { tables: std::array::from_fn(|_| Mutex::default()), runs: AtomicUsize::new(0) }
    }
}

impl Waiters {
    /// For how many runs somebody waits.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    fn table(&self, layer: &Layer, run: usize) -> MutexGuard<'_, Table> {
        lock(&self.tables[(layer.number as usize).wrapping_mul(31).wrapping_add(run) % TABLES])
    }

    /// Lets a VM wait for a run, because of a fault at `address`.
    pub fn ask(&self, layer: &Arc<Layer>, run: usize, vm: &Arc<Vm>, address: u64) -> Asked {
        let mut table = self.table(layer, run);
        let asked = match layer.claim(run) {
            Ok(()) => Asked::Fetch,
            Err(State::Asked) => Asked::Waits,
            Err(_) => return Asked::Settled,
        };
        let waiting = table.entry((layer.number, run)).or_insert_with(|| {
            self.runs.fetch_add(1, Ordering::Relaxed);
            Waiting { layer: Arc::clone(layer), since: Instant::now(), vms: Vec::new() }
        });
        match waiting.vms.iter_mut().find(|(other, _)| Arc::ptr_eq(other, vm)) {
            Some((_, addresses)) if addresses.contains(&address) => return asked,
            Some((_, addresses)) => addresses.push(address),
            None => waiting.vms.push((Arc::clone(vm), vec![address])),
        }
        vm.waiting.fetch_add(1, Ordering::Relaxed);
        asked
    }

    /// Takes those out who waited for a run that has become present. Whoever asks after this finds
    /// it present.
    pub fn settle(&self, layer: &Layer, run: usize) -> Sleepers {
        self.take(&mut self.table(layer, run), layer, run)
    }

    /// Gives a run up that somebody was to get. Those who waited. None: somebody was faster.
    pub fn fail(&self, layer: &Layer, run: usize) -> Option<Sleepers> {
        let mut table = self.table(layer, run);
        layer.give_up(run, State::Failed).then(|| self.take(&mut table, layer, run))
    }

    /// Gives a run up that was fetched for nobody. If somebody waits for it now: those. If not, it
    /// is absent again.
    pub fn release(&self, layer: &Layer, run: usize) -> Option<Sleepers> {
        let mut table = self.table(layer, run);
        let is_wanted = table.contains_key(&(layer.number, run));
        let next = if is_wanted { State::Failed } else { State::Absent };
        (layer.give_up(run, next) && is_wanted).then(|| self.take(&mut table, layer, run))
    }

    fn take(&self, table: &mut Table, layer: &Layer, run: usize) -> Sleepers {
        let Some(waiting) = table.remove(&(layer.number, run)) else { return Vec::new() };
        self.runs.fetch_sub(1, Ordering::Relaxed);
        for (vm, addresses) in &waiting.vms {
            vm.waiting.fetch_sub(addresses.len(), Ordering::Relaxed);
        }
        waiting.vms
    }

    /// The runs for which somebody has waited since before `since`.
    #[must_use]
    pub fn overdue(&self, since: Instant) -> Vec<(Arc<Layer>, usize)> {
        let mut overdue = Vec::new();
        for table in &self.tables {
            let table = lock(table);
            let late = table.iter().filter(|(_, waiting)| waiting.since < since);
            overdue.extend(late.map(|((_, run), waiting)| (Arc::clone(&waiting.layer), *run)));
        }
        overdue
    }

    /// Lets a VM wait no longer.
    pub fn forget(&self, vm: &Arc<Vm>) {
        for table in &self.tables {
            let mut table = lock(table);
            for waiting in table.values_mut() {
                waiting.vms.retain(|(other, _)| !Arc::ptr_eq(other, vm));
            }
            let before = table.len();
            table.retain(|_, waiting| !waiting.vms.is_empty());
            self.runs.fetch_sub(before - table.len(), Ordering::Relaxed);
        }
    }
}

/// Lets threads wait for a run that somebody else gets.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// How many threads wait.
    threads: AtomicUsize,
    lock: Mutex<()>,
    arrived: Condvar,
}

impl Arrivals {
    /// The state of a run has changed. Takes a lock only if somebody waits for any run.
    pub fn tell(&self) {
        // Ordered against the look at the run in `wait`: one of both sees the other.
        fence(Ordering::SeqCst);
        if self.threads.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.lock));
            self.arrived.notify_all();
        }
    }

    /// Waits until nobody gets the run any longer, or until `deadline`.
    pub fn wait(&self, layer: &Layer, run: usize, deadline: Instant) {
        if !layer.is_asked(run) {
            return;
        }
        self.threads.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let left = deadline.saturating_duration_since(Instant::now());
        let is_asked = |(): &mut ()| layer.is_asked(run);
        drop(self.arrived.wait_timeout_while(lock(&self.lock), left, is_asked));
        self.threads.fetch_sub(1, Ordering::Relaxed);
    }
}
