//! What the threads do: readers of faults, workers that fetch what VMs wait for, and workers that
//! fetch ahead. Their number is bounded.

use crate::engine::{Engine, Happened, Job};
use crate::fetch::Scratch;
use crate::layer::Layer;
use crate::pool::Busy;
use crate::source::{Class, RunError};
use crate::sys::faults::Batch;
use crate::sys::interrupt::Thread;
use crate::vm::{Vm, VmError};
use patina_control::best_effort;
use patina_daemon::lock;
use rustix::event::epoll;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Readers.
const READERS: usize = 2;
/// A read of faults that takes so long blocks.
const BLOCKED: Duration = Duration::from_millis(200);
/// A run that VMs wait for fails after so long.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How long a run that nobody waits for is put off while VMs wait for others.
const YIELD: Duration = Duration::from_millis(20);
/// How often a source may fail before nothing is fetched ahead any longer.
const FAILURES_MAX: usize = 8;

impl Engine {
    /// Starts its threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        for number in 0..READERS {
            let (engine, busy) = (Arc::clone(self), Arc::new(Busy::default()));
            let reader = thread::Builder::new().name(format!("reader{number}"));
            reader.spawn(move || {
                lock(&engine.readers.0).push((Thread::current(), Arc::clone(&busy)));
                engine.read_faults(&busy);
            })?;
        }
        self.replace_stuck()
    }

    /// What is to be done from time to time, a few times a second.
    pub fn tick(self: &Arc<Self>) {
        for (thread, busy) in lock(&self.readers.0).iter() {
            if busy.is_longer(BLOCKED) {
                thread.interrupt();
            }
        }
        best_effort(self.replace_stuck(), "without a thread for it, what is demanded fails in time");
        // None: the machine has just started.
        if let Some(since) = Instant::now().checked_sub(PATIENCE) {
            for (layer, run) in self.waiters.overdue(since) {
                self.fail(&layer, run, &RunError::Stalled);
            }
        }
    }

    fn replace_stuck(self: &Arc<Self>) -> io::Result<()> {
        for class in [Class::Demand, Class::Ahead] {
            for _ in 0..self.pool.missing(class) {
                let (engine, busy) = (Arc::clone(self), Arc::new(Busy::default()));
                lock(&self.pool.workers).push((class, Arc::clone(&busy)));
                let worker = thread::Builder::new().name(format!("{class:?}").to_lowercase());
                let started = worker.spawn({
                    let busy = Arc::clone(&busy);
                    move || match class {
                        Class::Demand => engine.fetch_demanded(&busy),
                        Class::Ahead => engine.fetch_all_ahead(&busy),
                    }
                });
                if let Err(error) = started {
                    lock(&self.pool.workers).retain(|(_, other)| !Arc::ptr_eq(other, &busy));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn read_faults(self: &Arc<Self>, busy: &Busy) {
        let (mut batch, mut scratch) = (Batch::default(), Scratch::default());
        let mut addresses = Vec::new();
        let mut ready = Vec::with_capacity(16);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                // Nothing that this call can return otherwise has to do with a VM.
                Err(_) => return,
            }
            for event in ready.drain(..) {
                let (serial, flags) = (event.data.u64(), event.flags);
                let Some(vm) = self.vm(serial) else { continue };
                let is_broken = flags.intersects(epoll::EventFlags::ERR);
                let served = match is_broken {
                    true => Err(VmError::Blocking),
                    false => self.read_vm(&vm, busy, &mut batch, &mut addresses, &mut scratch),
                };
                match served {
                    Ok(()) => self.watch_again(&vm),
                    Err(error) => self.give_up(&vm, error),
                }
                addresses.clear();
            }
        }
    }

    fn read_vm(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        busy: &Busy,
        batch: &mut Batch,
        addresses: &mut Vec<u64>,
        scratch: &mut Scratch,
    ) -> Result<(), VmError> {
        match busy.during(|| vm.faults.read(batch, addresses)) {
            // If there are more, they are ready when the VM is watched again.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(Errno::INTR) => return Err(VmError::Blocking),
            Err(error) => return Err(VmError::Read(error)),
        }
        self.serve(vm, addresses, scratch)
    }

    fn fetch_demanded(&self, busy: &Arc<Busy>) {
        let mut scratch = Scratch::default();
        while let Ok(job) = self.jobs.1.recv() {
            busy.during(|| self.fetch(&job, &mut scratch));
            if self.pool.leave_if_surplus(Class::Demand, busy) {
                return;
            }
        }
    }

    fn fetch_all_ahead(self: &Arc<Self>, busy: &Arc<Busy>) {
        Class::Ahead.make_thread_as_urgent();
        let mut scratch = Scratch::default();
        loop {
            let unsealed = std::mem::take(&mut *lock(&self.unsealed));
            busy.during(|| unsealed.into_iter().for_each(|layer| self.seal(layer)));
            match self.next_ahead() {
                Some(job) => busy.during(|| self.fetch_for_nobody(&job, &mut scratch, Class::Ahead)),
                None => self.pool.wait_for_more(),
            }
            if self.pool.leave_if_surplus(Class::Ahead, busy) {
                return;
            }
            // A source that is slow for VMs is not asked for more than a little besides.
            let until = Instant::now() + YIELD;
            while self.waiters.runs() > 0 && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The next run to fetch although nobody waits for it: of all layers, what VMs demanded in
    /// earlier times, by its bucket, and only then the others.
    fn next_ahead(&self) -> Option<Job> {
        let layers = self.layers();
        let wanted = |layer: &&Arc<Layer>| {
            !layer.is_full()
                && layer.background.failures.load(Ordering::Relaxed) < FAILURES_MAX
                && layer.source().is_some_and(|source| source.has_room())
        };
        let job = |layer: &Arc<Layer>, run| Job { layer: Arc::clone(layer), run };
        let first = || {
            let due = |layer: &'_ &Arc<Layer>| layer.background.next_bucket();
            let due = layers.iter().filter(wanted).filter_map(|layer| Some((due(&layer)?, layer)));
            due.min_by_key(|(bucket, _)| *bucket).map(|(_, layer)| layer)
        };
        while let Some(layer) = first() {
            let ahead = &layer.background;
            // Another worker may have taken it between the look and this.
            let Some((_, run)) = ahead.first.get(ahead.first_next.fetch_add(1, Ordering::Relaxed)) else {
                continue;
            };
            if layer.claim(*run).is_ok() {
                return Some(job(layer, *run));
            }
        }
        for layer in layers.iter().filter(wanted).filter(|layer| layer.background.fill) {
            let next = &layer.background.next;
            while let Some(run) = next_of(next, layer.runs()) {
                if layer.claim(run).is_ok() {
                    return Some(job(layer, run));
                }
            }
        }
        None
    }

    pub(crate) fn note_background_failure(&self, job: &Job, error: &RunError) {
        let ahead = &job.layer.background;
        if ahead.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_MAX {
            let (layer, run, reason) = (job.layer.id.clone(), job.run, patina_daemon::chain(error));
            self.tell(Happened::FillStopped { layer, run, reason });
        }
    }
}

/// The next of so many numbers. After the last one None, once, and then the first again.
fn next_of(next: &AtomicUsize, count: usize) -> Option<usize> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    if at >= count {
        next.store(0, Ordering::Relaxed);
        return None;
    }
    Some(at)
}
