//! Freeze: turns a running VM into a generation, and lets it go on.
//!
//! ```text
//!  before   private views of RAM are mapped aside                       the guest runs
//!  paused   vCPUs stop, devices stop, all state is saved,
//!           RAM's shared mapping is moved away, the view takes its place
//!  after    the old mapping is unmapped, the memfd sealed                the guest runs
//! ```
//! No page is copied: the memfd that was RAM is the generation, and the VM copies on write from now on, like every
//! clone. The pause is the saving of state and a few moves of page tables; it does not grow with the pages.

use super::build::Machine;
use super::persist::{VmPersistError, VmState};
use crate::devices::console::persist::ConsoleState;
use crate::devices::event_loop::LoopError;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::sys::slot::SlotError;
use crate::sys::view::{PrivateView, Replaced};
use crate::vcpu::gate::VcpuEnded;
use crate::vcpu::persist::{PersistError, VcpuState};
use rustix::fs::{SealFlags, fcntl_add_seals};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Why a VM could not be frozen. It goes on, unless [`FreezeError::is_fatal`].
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It was frozen before.
    #[error("freeze the VM: its memory is a generation's already; freezing again is not there yet")]
    Again,
    /// There is no room for a second view.
    #[error("freeze the VM: map a private view of its RAM")]
    View(#[source] rustix::io::Errno),
    /// A vCPU's state could not be taken.
    #[error("freeze the VM")]
    Vcpu(#[from] PersistError),
    /// A vCPU has ended.
    #[error("freeze the VM")]
    Ended(#[from] VcpuEnded),
    /// The VM's state could not be taken.
    #[error("freeze the VM")]
    Vm(#[from] VmPersistError),
    /// The device thread did not stop or start.
    #[error("freeze the VM")]
    Devices(#[from] LoopError),
    /// The VM has no memory now.
    #[error("freeze the VM: exchange its memory")]
    Memory(#[source] rustix::io::Errno),
    /// KVM did not take the memory back.
    #[error("freeze the VM")]
    Slot(#[from] SlotError),
    /// Somebody else still has a writable mapping of the RAM.
    #[error("freeze the VM: seal its generation")]
    Seal(#[source] rustix::io::Errno),
    /// The state is too large.
    #[error("freeze the VM: write its state")]
    Encode(#[from] postcard::Error),
}

impl FreezeError {
    /// The VM cannot go on: it has lost its memory.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Memory(_) | Self::Slot(_))
    }
}

/// All of a VM but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Its RAM.
    pub memory_mib: u32,
    /// In order.
    pub vcpus: Vec<VcpuState>,
    /// What KVM keeps of the VM.
    pub vm: VmState,
    /// The virtio devices, in the order of their windows.
    pub transports: Vec<TransportState>,
    /// The serial console.
    pub console: ConsoleState,
}

/// A generation: an immutable image of a VM at one instant.
#[derive(Debug)]
pub struct Generation {
    /// [`MachineState`], encoded with postcard.
    pub state: Vec<u8>,
    /// The RAM. Nothing can write to it any more.
    pub memfd: File,
}

impl Machine {
    /// Freezes the VM and lets it go on.
    ///
    /// # Errors
    /// See [`FreezeError`].
    pub fn freeze(&mut self) -> Result<Generation, FreezeError> {
        if self.memfd.is_none() {
            return Err(FreezeError::Again);
        }
        let views = self.prepare_views()?;
        self.vcpus.pause();
        let exchanged = self.devices.stop().map_err(FreezeError::from).and_then(|()| self.exchange(views));
        let started = self.devices.start();
        self.vcpus.resume();
        let (state, replaced) = exchanged?;
        // The VM works on a private view now. Whatever fails from here on, the memfd is its RAM no more.
        let memfd = self.memfd.take().ok_or(FreezeError::Again)?;
        started?;
        // What takes time comes after the pause: the guest runs again. The last writable mapping goes, and with the
        // seals nobody can make another.
        drop(replaced);
        seal(&memfd)?;
        Ok(Generation { state: postcard::to_stdvec(&state)?, memfd })
    }

    fn prepare_views(&self) -> Result<Vec<PrivateView>, FreezeError> {
        let memory = self.vm.memory();
        memory
            .iter()
            .filter_map(|region| region.file_offset().map(|file| PrivateView::prepare(region, file)))
            .collect::<Result<_, _>>()
            .map_err(FreezeError::View)
    }

    /// Saves the paused VM and exchanges its memory.
    fn exchange(&self, views: Vec<PrivateView>) -> Result<(MachineState, Vec<Replaced>), FreezeError> {
        let state = self.save()?;
        self.vm.detach()?;
        let memory = Arc::clone(self.vm.memory());
        let replaced = memory
            .iter()
            .zip(views)
            .map(|(region, view)| view.replace(region))
            .collect::<Result<Vec<_>, _>>();
        self.vm.attach()?;
        Ok((state, replaced.map_err(FreezeError::Memory)?))
    }

    fn save(&self) -> Result<MachineState, FreezeError> {
        let indices = self.msrs.clone();
        let vcpus = self.vcpus.each(move |runner| VcpuState::save(runner, &indices))?;
        Ok(MachineState {
            memory_mib: self.memory_mib,
            vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
            vm: VmState::save(self.vm.vm())?,
            transports: self.bus.transports.iter().map(|transport| transport.save()).collect(),
            console: self.bus.serial.save(),
        })
    }
}

fn seal(memfd: &File) -> Result<(), FreezeError> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(memfd, seals).map_err(FreezeError::Seal)
}
