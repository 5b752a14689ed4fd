//! The path of a fault: from the address to the answer.

use crate::engine::{Engine, Happened, Job, VM_WAITING_MAX};
use crate::fetch::Scratch;
use crate::layer::{Layer, Page, RUN_PAGES};
use crate::source::{Class, RunError};
use crate::vm::{Vm, VmError};
use crate::waiting::{Asked, Sleepers};
use patina_control::PAGE_BYTES;
use patina_control::pager::FailedVm;
use patina_daemon::lock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Engine {
    /// Serves faults of a VM at these addresses, which it empties.
    ///
    /// # Errors
    /// The VM cannot be served any longer.
    pub(crate) fn serve(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        addresses: &mut Vec<u64>,
        scratch: &mut Scratch,
    ) -> Result<(), VmError> {
        addresses.sort_unstable();
        addresses.dedup();
        let mut done = 0..0;
        for address in addresses.drain(..) {
            if !done.contains(&address) {
                done = self.serve_page(vm, address, scratch)?;
            }
        }
        Ok(())
    }

    /// Serves one fault. The addresses around it that need no further answer.
    fn serve_page(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        address: u64,
        scratch: &mut Scratch,
    ) -> Result<Range<u64>, VmError> {
        let (layer, page) = vm.find(address)?;
        let run = (page / RUN_PAGES as u64) as usize;
        layer.record(run, vm.age());
        loop {
            match layer.page(page) {
                Page::Data | Page::Zero => return vm.answer(address),
                Page::Failed => {
                    let reason = lock(&layer.failures).reason(run);
                    self.end_accesses(layer, run, reason, &[(Arc::clone(vm), vec![address])]);
                    return Ok(address..address + PAGE_BYTES);
                }
                Page::Absent => match self.waiters.ask(layer, run, vm, address) {
                    Asked::Settled => {}
                    Asked::Waits => return Ok(0..0),
                    Asked::Fetch => {
                        self.fetch_now(layer, run, scratch);
                        return Ok(0..0);
                    }
                },
            }
        }
    }

    /// Gets a run that somebody waits for: at once, if its source has it at hand; from who has it,
    /// if that can be asked; or by a worker.
    fn fetch_now(self: &Arc<Self>, layer: &Arc<Layer>, run: usize, scratch: &mut Scratch) {
        let now = layer.read_now(run, scratch);
        let job = Job { layer: Arc::clone(layer), run };
        match now {
            Some(read) => self.finish(&job, read.and_then(|read| layer.install(run, scratch, read))),
            None if self.request(&job, Class::Demand, Self::finish) => {}
            // Never waits: with so many demands a run that is one too many fails.
            None => {
                if let Err(error) = self.jobs.0.try_send(job) {
                    self.finish(&error.into_inner(), Err(RunError::Crowded));
                }
            }
        }
    }

    /// A run that VMs wait for, or may, was fetched, or cannot be.
    pub(crate) fn finish(&self, job: &Job, fetched: Result<u16, RunError>) {
        match fetched {
            Ok(data) => self.settle(job, data),
            Err(error) => self.fail(&job.layer, job.run, &error),
        }
    }

    /// A run is in the memfd: answers those who wait for it.
    pub(crate) fn settle(&self, job: &Job, data: u16) {
        let present = job.layer.set_present(job.run, data);
        self.arrivals.tell();
        for (vm, addresses) in self.waiters.settle(&job.layer, job.run) {
            let answered = addresses.iter().try_fold(0..0, |done: Range<u64>, address| {
                if done.contains(address) { Ok(done) } else { vm.answer(*address) }
            });
            if let Err(error) = answered {
                self.give_up(&vm, error);
            }
            self.resume(&vm);
        }
        if present == job.layer.runs() {
            self.complete(&job.layer);
        }
    }

    /// A run cannot be had: ends the accesses that wait for it.
    pub(crate) fn fail(&self, layer: &Arc<Layer>, run: usize, error: &RunError) {
        let sleepers = self.waiters.fail(layer, run);
        self.end_waiting(layer, run, error, sleepers);
    }

    pub(crate) fn end_waiting(
        &self,
        layer: &Arc<Layer>,
        run: usize,
        error: &RunError,
        sleepers: Option<Sleepers>,
    ) {
        self.arrivals.tell();
        let Some(sleepers) = sleepers.filter(|sleepers| !sleepers.is_empty()) else { return };
        let reason = patina_daemon::chain(error);
        lock(&layer.failures).add(run, &reason);
        self.end_accesses(layer, run, reason, &sleepers);
        sleepers.iter().for_each(|(vm, _)| self.resume(vm));
    }

    fn end_accesses(&self, layer: &Layer, run: usize, reason: String, vms: &[(Arc<Vm>, Vec<u64>)]) {
        let end = |(vm, addresses): &(Arc<Vm>, Vec<u64>)| {
            // Each, even after one that could not be ended.
            let refused = addresses.iter().filter(|address| !vm.poison(**address)).count();
            FailedVm { vm: vm.id.clone(), is_poisoned: refused == 0 }
        };
        let vms = vms.iter().map(end).collect();
        self.tell(Happened::RunFailed { layer: layer.id.clone(), run, reason, vms });
    }

    /// Reads the faults of a VM again, if too many waited.
    pub(crate) fn resume(&self, vm: &Vm) {
        if vm.waiting.load(Ordering::Acquire) < VM_WAITING_MAX && vm.is_paused.swap(false, Ordering::AcqRel) {
            self.watch(vm);
        }
    }

    /// After a VM's faults were served: lets the next be read, unless too many wait.
    pub(crate) fn watch_again(&self, vm: &Vm) {
        if vm.waiting.load(Ordering::Acquire) < VM_WAITING_MAX {
            return self.watch(vm);
        }
        vm.is_paused.store(true, Ordering::Release);
        // What they waited for may have come in between.
        self.resume(vm);
    }
}
