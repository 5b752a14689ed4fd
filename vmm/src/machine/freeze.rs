//! Freeze: turns a running VM into a generation, and lets it go on.
//!
//! The first time, RAM is a memfd that is mapped shared. No page is copied: the memfd becomes the generation, and the VM
//! copies on write from now on, like every clone.
//! ```text
//!  before   private views of RAM are mapped aside, KVM is made to
//!           forget where its pages are                                  the guest runs
//!           devices stop                                                the guest runs
//!  paused   vCPUs stop, all state is saved,
//!           RAM's shared mapping is moved away, the view takes its place
//!  after    the old mapping is unmapped, the memfd sealed               the guest runs
//! ```
//! Later (and in a clone) RAM is a private view of a generation. The pages that the VM has written since are copied into a
//! layer, and the new generation is the old one with that layer on top; it is also what the VM's own pages are a view
//! of now, so that the next freeze copies only what is written from here on. As with live migration, most is copied
//! before the pause, unless there was little.
//! ```text
//!  before   written pages are found, protected again (one step)
//!           and copied; again, while that is much; devices stop         the guest runs
//!  paused   vCPUs stop, all state is saved,
//!           the pages that were written meanwhile are copied
//!  after    small gaps between the pages are filled from the layers
//!           below, the memfd is sealed; the merging of a long chain is
//!           begun, for the next generation                              the guest runs
//! ```
//! A host whose kernel does not track writes (before Linux 6.7) copies all private pages in the pause, every time.

use super::Machine;
use super::freeze_error::FreezeError;
use super::generation::{Generation, MachineState, Ram};
use super::merging::{Merging, let_go};
use super::persist::VmState;
use super::prefault::prefault_beside;
use super::standstill::{Stoppable, stand_still};
use crate::devices::console::persist::ConsoleState;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::memory::Memory;
use crate::memory::extents::Extents;
use crate::memory::layers::{self, Layers};
use crate::note::note;
use crate::persist::Persist;
use crate::ranges::{bytes_of, union};
use crate::sys::faults;
use crate::sys::pagemap::Pages;
use crate::sys::view::{self, PrivateView, Replaced};
use crate::vcpu::persist::VcpuState;
use patina_control::PAGE_BYTES;
use patina_control::memfd;
use patina_control::messages::Frozen;
use std::fs::File;
use std::ops::Range;
use std::thread::JoinHandle;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// What is ready before the VM is paused.
enum Plan {
    Exchange { views: Vec<PrivateView>, written: Vec<Range<u64>> },
    Copy(Layer),
}

/// A layer that is being made.
struct Layer {
    base: Layers,
    memfd: File,
    /// What is in it, ascending within each pass.
    runs: Vec<Range<u64>>,
    /// How many page faults there had been before the last search for written pages, if that is known.
    faults: Option<u64>,
}

/// What the pause has left.
enum Taken {
    Exchanged { replaced: Vec<Replaced>, written: Vec<Range<u64>> },
    Copied(Layer),
}

/// How many bytes of RAM a freeze has copied.
struct Copied {
    /// Into the generation.
    into: u64,
    /// For the VM itself, beside it.
    beside: u64,
}

/// How often at most what is written while pages are copied is copied as well, before the pause.
const ROUNDS_MAX: usize = 4;
/// So much is left for the pause: it is copied in half a millisecond.
const ROUND_MIN_BYTES: u64 = 1 << 20;

/// What a view is of: the same RAM in fewer layers, if it has been merged meanwhile or must be.
fn merged(merging: &mut Option<Merging>, view: &mut Layers) -> Result<Layers, FreezeError> {
    let must_be = view.is_full()?;
    if let Some(done) = merging.take_if(|merging| must_be || merging.is_finished()) {
        match done.finish(view) {
            Ok(fewer) => let_go(std::mem::replace(view, fewer)),
            // There are more layers than there need be. Another freeze begins anew.
            Err(error) => note(&format!("merge the layers of RAM: {}", crate::chain(&error))),
        }
    }
    Ok(view.clone())
}

/// Seals the RAM of a VM that works on a view of it by now, and only then prefaults that view: to seal it the kernel looks for pages
/// that somebody holds, and a copy under way holds one. It would wait, or refuse.
fn seal_and_prefault(
    memfd: &File,
    view: &Memory,
    written: Vec<Range<u64>>,
) -> Result<Option<JoinHandle<()>>, FreezeError> {
    memfd::seal(memfd).map_err(FreezeError::Seal)?;
    Ok(prefault_beside(view, written))
}

impl Stoppable for Machine {
    type Vcpus = Vec<VcpuState>;

    fn stop_devices(&mut self) -> Result<(), FreezeError> {
        Ok(self.devices.stop()?)
    }

    fn stop_vcpus(&mut self) -> Result<Self::Vcpus, FreezeError> {
        let indices = self.msrs.clone();
        let states =
            self.vcpus.pause_and(move |runner| VcpuState::save((&runner.vcpu, runner.index, &indices)))?;
        Ok(states.into_iter().collect::<Result<_, _>>()?)
    }

    fn start_devices(&mut self) -> Result<(), FreezeError> {
        Ok(self.devices.start()?)
    }

    fn resume_vcpus(&mut self) {
        self.vcpus.resume();
    }
}

impl Machine {
    /// Freezes the VM, whose other processes are held or not, and lets it go on.
    ///
    /// # Errors
    /// See [`FreezeError`].
    pub fn freeze(&mut self, is_held: bool) -> Result<Generation, FreezeError> {
        let plan = self.plan()?;
        let ((mut state, taken), pause) = stand_still(self, |machine, vcpus| machine.take(vcpus, plan))?;
        // What takes time comes after the pause: the guest runs again.
        let (layers, copied) = self.finish_taking(taken)?;
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        state.memory = layers.extents().clone();
        state.is_held = is_held;
        let (copied_pages, copied_beside_pages) = (copied.into / PAGE_BYTES, copied.beside / PAGE_BYTES);
        let frozen = Frozen { pause_us, copied_pages, copied_beside_pages };
        Ok(Generation { state: postcard::to_stdvec(&state)?, layers: layers.files().to_vec(), frozen })
    }

    fn plan(&mut self) -> Result<Plan, FreezeError> {
        let bytes = self.memory_bytes();
        // What is found written and then does not come into a generation would be missed by the next one: until this one
        // is made, nothing is known.
        let tracked_since = self.tracked_since.take();
        match &mut self.ram {
            Ram::Reserved => Err(FreezeError::Warm),
            Ram::Shared(_) => {
                let view = |region: &GuestRegionMmap| {
                    region.file_offset().map(|file| PrivateView::prepare(region, file))
                };
                let views = self.vm.memory().iter().filter_map(view).collect::<Result<_, _>>();
                let views = views.map_err(FreezeError::View)?;
                let written = self.written_since_ready()?;
                // Taking pages away from KVM takes time for each of them: here the guest runs meanwhile.
                for region in self.vm.memory().iter() {
                    view::forget_pages(region).map_err(FreezeError::View)?;
                }
                Ok(Plan::Exchange { views, written })
            }
            Ram::View(base) => {
                let base = merged(&mut self.merging, base)?;
                let mut layer =
                    Layer { base, memfd: layers::new_layer(bytes)?, runs: Vec::new(), faults: None };
                if let Some(tracker) = &self.tracker {
                    if tracked_since.is_none() {
                        for region in self.vm.memory().iter() {
                            tracker.track(region).map_err(FreezeError::Pages)?;
                        }
                        // Asking protects them, so that the next question finds what is written from here on.
                        self.private_pages(Pages::Written).map_err(FreezeError::Pages)?;
                        self.copy_pages(Pages::All, &mut layer)?;
                    }
                    // The first write to a page is a fault. If faults are few, all that was written is left for the pause:
                    // a second search takes longer than to copy so little. An estimate that is too low
                    // makes the pause longer, and misses nothing.
                    let faults =
                        faults::count().zip(tracked_since).map(|(now, then)| now.saturating_sub(then));
                    let is_little = faults.is_some_and(|faults| faults <= ROUND_MIN_BYTES / PAGE_BYTES);
                    let rounds = if is_little { 0 } else { ROUNDS_MAX };
                    // A guest that writes much while it is copied is looked at again, so that what the pause copies is little; one
                    // that writes as fast as it is copied is paused after some rounds all the same.
                    for _ in 0..rounds {
                        if self.copy_pages(Pages::Written, &mut layer)? <= ROUND_MIN_BYTES {
                            break;
                        }
                    }
                }
                Ok(Plan::Copy(layer))
            }
        }
    }

    /// Takes the paused VM's state and memory.
    fn take(&self, vcpus: Vec<VcpuState>, plan: Plan) -> Result<(MachineState, Taken), FreezeError> {
        let state = self.save(vcpus)?;
        let taken = match plan {
            Plan::Exchange { views, written } => {
                Taken::Exchanged { replaced: self.exchange(views)?, written }
            }
            Plan::Copy(mut layer) => {
                let pages = if self.tracker.is_some() { Pages::WrittenAtRest } else { Pages::All };
                // Before the search, so that no fault after it is missed.
                layer.faults = faults::count();
                self.copy_pages(pages, &mut layer)?;
                Taken::Copied(layer)
            }
        };
        Ok((state, taken))
    }

    /// Copies pages into the layer; returns how many bytes.
    fn copy_pages(&self, which: Pages, layer: &mut Layer) -> Result<u64, FreezeError> {
        // These and no more: what lies between them would be read, and so made, in the layers below, and the guest waits.
        let runs = self.private_pages(which).map_err(FreezeError::Pages)?;
        layers::copy_runs(self.vm.memory(), &runs, &layer.memfd)?;
        let bytes = bytes_of(&runs);
        layer.runs.extend(runs);
        Ok(bytes)
    }

    /// Makes the generation's RAM of what was taken; returns it and how much was copied.
    fn finish_taking(&mut self, taken: Taken) -> Result<(Layers, Copied), FreezeError> {
        match taken {
            Taken::Exchanged { replaced, written } => {
                let bytes = self.memory_bytes();
                // The VM works on a private view now. Whatever fails from here on, the memfd is its RAM no more.
                let Ram::Shared(memfd) = std::mem::replace(&mut self.ram, Ram::Reserved) else {
                    return Err(FreezeError::Warm);
                };
                // The last writable mapping goes, and with the seals nobody can make another.
                drop(replaced);
                let beside = bytes_of(&written);
                let sealed = seal_and_prefault(&memfd, self.vm.memory(), written);
                let base = Layers::whole(memfd, bytes);
                self.ram = Ram::View(base.clone());
                sealed.map(|_| (base, Copied { into: 0, beside }))
            }
            Taken::Copied(Layer { base, memfd, runs, faults }) => {
                let runs = union(runs);
                let copied = Copied { into: bytes_of(&runs), beside: 0 };
                let mut generation = if runs.is_empty() { base } else { base.with(runs, memfd)? };
                if generation.is_full()? {
                    generation = generation.merge()?;
                }
                // The VM's own view stays as it is: the pages are the same.
                if self.tracker.is_some() {
                    self.ram = Ram::View(generation.clone());
                    // With 0 the guest counts as one that has written much.
                    self.tracked_since = Some(faults.unwrap_or(0));
                }
                self.merge_beside()?;
                Ok((generation, copied))
            }
        }
    }

    /// Begins to merge the layers of the VM's own view, for its next generation, where they are many: on a thread of its own, since it may
    /// copy as much as all of RAM, and nobody is to wait for that.
    fn merge_beside(&mut self) -> Result<(), FreezeError> {
        if let Ram::View(layers) = &self.ram
            && self.merging.is_none()
            && layers.is_long()?
        {
            self.merging = Merging::start(layers.clone())
                .inspect_err(|error| note(&format!("merge the layers of RAM: start a thread: {error}")))
                .ok();
        }
        Ok(())
    }

    /// Puts the private views in the place of the shared mappings. Nobody may look at RAM. KVM keeps its slots, as no address
    /// changes: moving the old pages away has it forget them, through the kernel's MMU notifiers, before the move is done.
    fn exchange(&self, views: Vec<PrivateView>) -> Result<Vec<Replaced>, FreezeError> {
        let memory = self.vm.memory();
        let replaced =
            memory.iter().zip(views).map(|(region, view)| view.replace(region)).collect::<Result<_, _>>();
        replaced.map_err(FreezeError::Memory)
    }

    fn save(&self, vcpus: Vec<VcpuState>) -> Result<MachineState, FreezeError> {
        let transports = self.bus.transports.iter().map(|transport| TransportState::save(transport));
        let Ok(transports) = transports.collect();
        let Ok(console) = ConsoleState::save(&self.bus.serial);
        Ok(MachineState {
            memory_mib: self.memory_mib,
            memory: Extents::whole(self.memory_bytes()),
            is_held: false,
            vcpus,
            vm: VmState::save(self.vm.vm())?,
            transports,
            console,
        })
    }
}

#[cfg(test)]
#[path = "freeze_test.rs"]
mod tests;
