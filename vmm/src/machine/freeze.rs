//! Freezes a running VM into a generation and resumes the VM.
//!
//! At the first freeze, RAM is a memfd that is mapped shared. No page is copied: the memfd becomes
//! the generation. From then on the VM copies on write, as every clone does.
//! ```text
//!  before   private views of RAM are mapped at other addresses,
//!           KVM drops its mappings of the pages                         the guest runs
//!           devices stop                                                the guest runs
//!  paused   vCPUs stop, all state is saved,
//!           each private view replaces a shared mapping of RAM
//!  after    the old mapping is unmapped, the memfd sealed               the guest runs
//! ```
//! At later freezes, and in a clone, RAM is a private view of a generation. The pages that the VM
//! has written since then are copied into a new layer. The new generation is the old one with that
//! layer on top. The VM's RAM counts as a view of the new generation, so the next freeze copies
//! only pages that are written after this one. As in live migration, most pages are copied before
//! the pause. If few pages were written, all of them are copied in the pause.
//! ```text
//!  before   written pages are found and write-protected in one step,
//!           then copied; this repeats while many are found;
//!           devices stop                                                the guest runs
//!  paused   vCPUs stop, all state is saved,
//!           the pages written since the last round are copied
//!  after    small gaps between the pages are filled from the layers
//!           below, the memfd is sealed; if the chain of layers is long,
//!           a merge starts for the next generation                      the guest runs
//! ```
//! If the host's kernel cannot track writes (before Linux 6.7), each freeze copies all private
//! pages in the pause.

use super::Machine;
use super::freeze_error::FreezeError;
use super::generation::{Generation, MachineState, Ram};
use super::merging::{Merging, let_go};
use super::persist::VmState;
use super::prefault::prefault_beside;
use super::standstill::{Stoppable, stand_still};
use super::state;
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
use crate::vcpu::run::Runner;
use patina_control::PAGE_BYTES;
use patina_control::memfd;
use patina_control::messages::Frozen;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// What was prepared before the pause.
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
    /// How many page faults there had been before the last search for written pages, if that is
    /// known.
    faults: Option<u64>,
}

/// The RAM that the pause captured. [`Machine::finish_freeze`] makes the generation's layers of it.
enum CapturedRam {
    Exchanged { replaced: Vec<Replaced>, written: Vec<Range<u64>> },
    Copied(Layer),
}

/// How many bytes of RAM a freeze has copied.
struct Copied {
    /// Into the generation.
    into: u64,
    /// For the VM's own view, concurrently with the guest.
    beside: u64,
}

/// How long a freeze waits for devices and vCPUs to stop. On a busy host they have to wait for a
/// CPU.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// The same while memory is arriving: a device or a vCPU may wait for a page, and the others have
/// stopped already. Longer than the host takes to replace a pager.
const STOP_PATIENCE_FILLING: Duration = Duration::from_secs(2);
/// The most rounds of copying before the pause. Each round copies the pages written during the
/// last.
const ROUNDS_MAX: usize = 4;
/// A round that finds no more than this is the last before the pause, which copies so much in half
/// a millisecond.
const ROUND_MIN_BYTES: u64 = 1 << 20;

/// The layers of a view. Takes over the result of a merge that has finished, or waits for it if the
/// layers are full.
fn merged(merging: &mut Option<Merging>, view: &mut Layers) -> Result<Layers, FreezeError> {
    let must_be = view.is_full()?;
    if let Some(done) = merging.take_if(|merging| must_be || merging.is_finished()) {
        match done.finish(view) {
            Ok(fewer) => let_go(std::mem::replace(view, fewer)),
            // The view keeps its layers. A later freeze starts a new merge.
            Err(error) => note(&format!("merge the layers of RAM: {}", patina_daemon::chain(&error))),
        }
    }
    Ok(view.clone())
}

/// Seals the memfd whose private view is the VM's RAM now, then prefaults that view. The order
/// matters: before it seals a memfd, the kernel looks for pages with extra references, and a copy
/// in progress holds one. The kernel would then wait, or refuse to seal.
fn seal_and_prefault(
    memfd: &File,
    view: &Memory,
    written: Vec<Range<u64>>,
) -> Result<Option<JoinHandle<()>>, FreezeError> {
    memfd::seal(memfd).map_err(FreezeError::Seal)?;
    Ok(prefault_beside(view, written))
}

/// Whether a pause at `now` comes before `until`.
fn in_time(now: Instant, until: Option<Instant>) -> Result<(), FreezeError> {
    if until.is_some_and(|until| now >= until) { Err(FreezeError::Late) } else { Ok(()) }
}

impl Stoppable for Machine {
    type Vcpus = Vec<VcpuState>;

    fn stop_devices(&mut self) -> Result<(), FreezeError> {
        Ok(self.devices.stop(self.stop_patience())?)
    }

    fn stop_vcpus(&mut self) -> Result<Self::Vcpus, FreezeError> {
        let indices = self.msrs.clone();
        let save = move |runner: &mut Runner| VcpuState::save((&runner.vcpu, runner.index, &indices));
        let states = self.vcpus.pause_and(save, self.stop_patience())?;
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
    /// How long a freeze waits for the devices and for the vCPUs before it gives up.
    fn stop_patience(&self) -> Duration {
        if self.pager.waits() { STOP_PATIENCE_FILLING } else { STOP_PATIENCE }
    }

    /// Freezes the VM and resumes it. `is_held` says whether the guest's other processes are held.
    /// The pause comes before `until`, or the freeze fails.
    ///
    /// # Errors
    /// See [`FreezeError`].
    pub fn freeze(&mut self, is_held: bool, until: Option<Instant>) -> Result<Generation, FreezeError> {
        // What has waited too long before costs the VM no pause.
        in_time(Instant::now(), until)?;
        let plan = self.plan()?;
        let capture = |machine: &mut Self, vcpus| {
            // The guest's programs stand still now, whether they were released or not.
            in_time(Instant::now(), until)?;
            machine.capture(vcpus, plan)
        };
        let ((mut state, ram), pause) = stand_still(self, capture)?;
        // Slow work comes after the pause, while the guest runs again.
        self.frozen.note_freeze();
        let (layers, copied) = self.finish_freeze(ram)?;
        let number = self.frozen.number();
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        state.memory = layers.extents().clone();
        state.is_held = is_held;
        let (copied_pages, copied_beside_pages) = (copied.into / PAGE_BYTES, copied.beside / PAGE_BYTES);
        let frozen = Frozen { pause_us, copied_pages, copied_beside_pages, agent_abi: 0, number };
        Ok(Generation {
            state: state::write(&state, &self.facts)?,
            layers: layers.layers().iter().map(|layer| Arc::clone(layer.memfd())).collect(),
            frozen,
        })
    }

    fn plan(&mut self) -> Result<Plan, FreezeError> {
        let bytes = self.memory_bytes();
        // A search for written pages also resets the record of them. If this freeze fails after a
        // search, the next one would miss those pages. So tracking counts as lost until this
        // generation is made. It starts anew when a layer is complete whose mappings still wait for
        // the pager, so that they no longer do.
        let tracked_since = self.tracked_since.take().filter(|_| !self.pager.is_behind());
        match &mut self.ram {
            Ram::Reserved => Err(FreezeError::Warm),
            Ram::Shared(_) => {
                let view = |region: &GuestRegionMmap| {
                    region.file_offset().map(|file| PrivateView::prepare(region, file))
                };
                let views = self.vm.memory().iter().filter_map(view).collect::<Result<_, _>>();
                let views = views.map_err(FreezeError::View)?;
                let written = self.written_since_ready()?;
                // KVM takes time to drop each page. Here the guest runs meanwhile.
                for region in self.vm.memory().iter() {
                    view::forget_pages(region).map_err(FreezeError::View)?;
                }
                Ok(Plan::Exchange { views, written })
            }
            Ram::View(base) => {
                let base = merged(&mut self.merging, base)?;
                let mut layer =
                    Layer { base, memfd: layers::new_layer(bytes)?, runs: Vec::new(), faults: None };
                if self.userfault.is_some() {
                    if tracked_since.is_none() {
                        // The first search finds all private pages. `Pages::All` must not be
                        // asked for: it takes entries without a page that an earlier freeze has
                        // protected for private pages, and to copy those would wait for the pager.
                        self.track_writes()?;
                    }
                    // The first write to a page is a fault. If there were few faults, few pages
                    // were written, and the pause copies them: a second search takes longer than
                    // that copy. An estimate that is too low makes the pause longer, and misses
                    // nothing.
                    let faults =
                        faults::count().zip(tracked_since).map(|(now, then)| now.saturating_sub(then));
                    let is_little = faults.is_some_and(|faults| faults <= ROUND_MIN_BYTES / PAGE_BYTES);
                    let rounds = if is_little { 0 } else { ROUNDS_MAX };
                    // While a guest writes many pages during a round, another round follows, so
                    // that few are left for the pause. A guest that writes as fast as pages are
                    // copied is paused after the last round.
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

    /// Captures the paused VM's state and memory.
    fn capture(&self, vcpus: Vec<VcpuState>, plan: Plan) -> Result<(MachineState, CapturedRam), FreezeError> {
        let state = self.save(vcpus)?;
        let ram = match plan {
            Plan::Exchange { views, written } => {
                CapturedRam::Exchanged { replaced: self.exchange(views)?, written }
            }
            Plan::Copy(mut layer) => {
                let pages = if self.userfault.is_some() { Pages::WrittenAtRest } else { Pages::All };
                // Read before the search, so that every fault after the search is counted.
                layer.faults = faults::count();
                self.copy_pages(pages, &mut layer)?;
                CapturedRam::Copied(layer)
            }
        };
        Ok((state, ram))
    }

    /// Copies pages into the layer. Returns the number of bytes.
    fn copy_pages(&self, which: Pages, layer: &mut Layer) -> Result<u64, FreezeError> {
        // Only these pages. To copy the gaps as well would read them from the layers below, which
        // takes time while the guest waits.
        let runs = self.private_pages(which).map_err(FreezeError::Pages)?;
        layers::copy_runs(self.vm.memory(), &runs, &layer.memfd)?;
        let bytes = bytes_of(&runs);
        layer.runs.extend(runs);
        Ok(bytes)
    }

    /// Makes the generation's layers from the captured RAM. Returns them and how much was copied.
    fn finish_freeze(&mut self, ram: CapturedRam) -> Result<(Layers, Copied), FreezeError> {
        match ram {
            CapturedRam::Exchanged { replaced, written } => {
                let bytes = self.memory_bytes();
                // The VM works on a private view now. Even if a later step fails, the memfd is no
                // longer its RAM.
                let Ram::Shared(memfd) = std::mem::replace(&mut self.ram, Ram::Reserved) else {
                    return Err(FreezeError::Warm);
                };
                // This drops the last writable mapping. The seals prevent a new one.
                drop(replaced);
                let beside = bytes_of(&written);
                let sealed = seal_and_prefault(&memfd, self.vm.memory(), written);
                let base = Layers::whole(memfd, bytes);
                self.ram = Ram::View(base.clone());
                self.frozen.note_view();
                sealed.map(|_| (base, Copied { into: 0, beside }))
            }
            CapturedRam::Copied(Layer { base, memfd, runs, faults }) => {
                let runs = union(runs);
                let copied = Copied { into: bytes_of(&runs), beside: 0 };
                let mut generation = if runs.is_empty() { base } else { base.with(runs, memfd)? };
                if generation.is_full()? {
                    generation = generation.merge()?;
                }
                // The VM's own mappings stay: their pages have the same content.
                if self.userfault.is_some() {
                    self.ram = Ram::View(generation.clone());
                    self.frozen.note_view();
                    // With 0 the guest counts as one that has written much.
                    self.tracked_since = Some(faults.unwrap_or(0));
                }
                self.merge_beside()?;
                Ok((generation, copied))
            }
        }
    }

    /// If the VM's own view has many layers, starts to merge them for its next generation. The
    /// merge may copy as much as all of RAM, so it has a thread of its own.
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

    /// Replaces the shared mappings of RAM with the private views. Nothing may access RAM
    /// meanwhile. KVM keeps its memory slots, because no address changes. Before the old pages are
    /// moved away, the kernel's MMU notifiers make KVM drop its mappings of them.
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
