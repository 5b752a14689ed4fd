//! Starts a warm VM from a generation.
//!
//! ```text
//!  state, layers ─┬▶ vCPUs ─────────────┬▶ interrupt controllers, timer, clock ▶ run ▶ device loop
//!                 └▶ map RAM ▶ devices ─┘
//! ```
//! [`Persist`] gives the reasons for this order. Slow work that does not depend on the generation
//! was done when the VM was made: see [`super::build`].

use super::Machine;
use super::card::{MacError, card_owner};
use super::generation::{MachineState, Ram};
use super::lazy::{Filling, LazyError};
use super::persist::VmPersistError;
use super::prefault;
use super::state::{self, StateError};
use crate::bus::DevicesError;
use crate::devices::event_loop::LoopError;
use crate::memory::layers::{Layers, LayersError};
use crate::note::note;
use crate::persist::Persist;
use crate::vcpu::gate::VcpuEnded;
use crate::vcpu::persist::{PersistError, VcpuState};
use crate::vcpu::tsc::TscStart;
use patina_control::best_effort;
use patina_control::config::Member;
use patina_control::messages::{PREFAULT_LIST_MAX_BYTES, STATE_MAX_BYTES};
use patina_control::monotonic_ns;
use patina_snapshot::facts::HostFacts;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Why a VM could not start from a generation. Unless it was running already, such a VM cannot be
/// used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The VM runs already.
    #[error("start from the generation: the VM is already running")]
    Running,
    /// A spare vmm, and the request does not say who its VM is.
    #[error("start from the generation: this vmm is a spare, and the request does not say who its VM is")]
    Nobody,
    /// The VM has an identity already.
    #[error("start from the generation: the request says who the VM is, but it has an identity already")]
    Somebody,
    /// What the request says of who the VM is cannot be used.
    #[error("start from the generation")]
    Member(#[from] MacError),
    /// A file of the generation cannot be read.
    #[error("start from the generation: read its {what}")]
    Read {
        /// The file: the state or the prefault list.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file of the generation is too long.
    #[error("start from the generation: its {what} has {found_bytes} bytes; the limit is {most_bytes}")]
    Size {
        /// The file: the state or the prefault list.
        what: &'static str,
        /// The file's length, bytes.
        found_bytes: u64,
        /// The greatest length that is read, bytes.
        most_bytes: u64,
    },
    /// The state cannot be read, or is of a VM that needs another host.
    #[error("start from the generation")]
    State(#[from] StateError),
    /// The generation has another number of vCPUs, or another amount of RAM, than the VM.
    #[error(
        "start from the generation: it has {found_vcpus} vCPUs and {found_mib} MiB, the VM {vcpus} and {memory_mib} MiB"
    )]
    Shape {
        /// How many vCPUs the generation has.
        found_vcpus: usize,
        /// The RAM of the generation, MiB.
        found_mib: u32,
        /// How many vCPUs the VM has.
        vcpus: usize,
        /// The RAM of the VM, MiB.
        memory_mib: u32,
    },
    /// The RAM cannot be mapped.
    #[error("start from the generation")]
    Layers(#[from] LayersError),
    /// Memory that is still to arrive cannot be served.
    #[error("start from the generation")]
    Lazy(#[from] LazyError),
    /// A device rejects its state.
    #[error("start from the generation")]
    Devices(#[from] DevicesError),
    /// A vCPU rejects its state.
    #[error("start from the generation")]
    Vcpu(#[from] PersistError),
    /// A vCPU has ended.
    #[error("start from the generation")]
    Ended(#[from] VcpuEnded),
    /// KVM rejects the state of the VM.
    #[error("start from the generation")]
    Vm(#[from] VmPersistError),
    /// The device thread did not start.
    #[error("start from the generation")]
    Loop(#[from] LoopError),
}

/// The files of a generation that a VM starts from. Their content is not checked yet.
#[derive(Debug)]
pub struct GenerationFiles {
    /// [`MachineState`].
    pub state: File,
    /// Ranges of RAM to prefault; see [`patina_control::messages::Open::PrefaultList`].
    pub prefault_list: File,
    /// The memfds of the RAM.
    pub layers: Vec<File>,
    /// The layers that are still being filled, and the pager that fills them. None: all layers are
    /// complete.
    pub filling: Option<Filling>,
}

impl StartError {
    /// Whether the VM cannot be used any more.
    pub(super) fn is_fatal(&self) -> bool {
        !matches!(self, Self::Running | Self::Nobody | Self::Somebody | Self::Member(_))
    }
}

impl Machine {
    /// Gives the VM of a spare vmm its addresses. Those of another VM are known since it was made.
    ///
    /// # Errors
    /// It is not known who the VM is, or it is already.
    pub(super) fn take_member(&mut self, member: Option<Box<Member>>) -> Result<(), StartError> {
        match (&self.card, member) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(StartError::Somebody),
            (Some(_), None) => Err(StartError::Nobody),
            (Some(card), Some(member)) => {
                card.set(card_owner(&member.identity, Some(&member.neighbours))?);
                self.card = None;
                Ok(())
            }
        }
    }

    /// Starts a warm VM. Returns the time when its first vCPU enters the guest, in nanoseconds of
    /// CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(&mut self, files: GenerationFiles) -> Result<u64, StartError> {
        if !matches!(self.ram, Ram::Reserved) {
            return Err(StartError::Running);
        }
        let state = read(&files.state, "state", STATE_MAX_BYTES)?;
        let (state, facts) = state::read(&state, &self.facts)?;
        let (found_vcpus, vcpus) = (state.vcpus.len(), self.vcpus.count());
        let (found_mib, memory_mib) = (state.memory_mib, self.memory_mib);
        if (found_vcpus, found_mib) != (vcpus, memory_mib) {
            return Err(StartError::Shape { found_vcpus, found_mib, vcpus, memory_mib });
        }
        let MachineState { memory, is_held, vcpus, vm, transports, console, .. } = state;
        let filling = files.filling.as_ref().map_or(&[][..], |filling| &filling.layers);
        let layers = Layers::check(files.layers, filling, memory, self.memory_bytes())?;
        let first = vcpus.first();
        let mut msrs = first.map(VcpuState::msr_indices).unwrap_or_default();
        let tsc = Arc::new(TscStart::new(first.and_then(VcpuState::tsc), vm.clock_tsc()));
        let (vcpus, tscs) = (Arc::new(vcpus), Arc::clone(&tsc));
        let (sender, entered) = channel();
        // One job holds all of a vCPU's work, so that the vCPU wakes twice: for this job, and to
        // run.
        let restore = move |runner: &mut crate::vcpu::run::Runner| {
            let sender = sender.clone();
            runner.before_entry = Some(Box::new(move || {
                best_effort(
                    sender.send(monotonic_ns()),
                    "only the first vCPU to enter the guest has a receiver",
                );
            }));
            let state = vcpus.get(usize::from(runner.index));
            state.map_or(Ok(Vec::new()), |state| state.restore((&runner.vcpu, runner.index, &tscs)))
        };
        // Concurrently with the mapping. KVM looks up the pages that it shares with a guest again
        // at the first entry. For one MSR it writes to memory at once, the wall clock: that write
        // may be lost here, and a guest sets the MSR again before it reads the clock.
        // Not while pages are still to arrive: nothing may access RAM before the pager serves it.
        let early = files.filling.is_none().then(|| self.vcpus.begin(restore.clone())).transpose()?;
        let memory = Arc::clone(self.vm.memory());
        layers.map_over(&memory)?;
        if let Some(filling) = files.filling {
            self.serve_lazily(&layers, filling)?;
        }
        let restored = early.map_or_else(|| self.vcpus.begin(restore), Ok)?;
        self.bus.restore(&memory, &transports, &console)?;
        for refused in restored.collect()? {
            let refused = refused?;
            msrs.retain(|index| !refused.contains(index));
        }
        self.msrs = msrs.into();
        // After the vCPUs: the interrupt controllers send pending interrupts to their APICs.
        vm.restore((self.vm.vm(), tsc.ago_ns()))?;
        // The VM keeps what it was offered, wherever it goes.
        let kernel = std::mem::take(&mut self.facts.kernel);
        self.facts = HostFacts { can_scale_tsc: self.facts.can_scale_tsc, kernel, ..facts };
        self.ram = Ram::View(layers);
        self.vcpus.resume();
        // After the vCPUs have been woken: what they notify meanwhile stays in the eventfds.
        self.devices.start()?;
        let entered = entered.recv().map_err(|_| StartError::Ended(VcpuEnded(0)))?;
        // The guest runs, and the list is advice.
        let prefault_list = read(&files.prefault_list, "prefault list", PREFAULT_LIST_MAX_BYTES)
            .inspect_err(|error| note(&patina_daemon::chain(error)))
            .unwrap_or_default();
        self.to_prefault = prefault::from_list(&prefault_list, self.memory_bytes());
        if self.pager.waits() {
            // This thread must not wait for the pager.
            self.to_prefault.clear();
        }
        self.wants_prefault_list = is_held && self.to_prefault.is_empty();
        Ok(entered)
    }
}

/// Reads a whole file, from offset 0. The file position may be shared with other clones of the
/// generation, so it is not used.
fn read(file: &File, what: &'static str, most_bytes: u64) -> Result<Vec<u8>, StartError> {
    let failed = |source| StartError::Read { what, source };
    let found_bytes = file.metadata().map_err(failed)?.len();
    if found_bytes > most_bytes {
        return Err(StartError::Size { what, found_bytes, most_bytes });
    }
    let mut bytes = vec![0; usize::try_from(found_bytes).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}
