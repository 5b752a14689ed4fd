//! Why a VM could not be frozen.

use super::persist::VmPersistError;
use super::prefault::PrefaultError;
use crate::devices::event_loop::LoopError;
use crate::memory::layers::LayersError;
use crate::vcpu::gate::VcpuEnded;
use crate::vcpu::persist::PersistError;

/// Why a VM could not be frozen. It goes on, unless [`FreezeError::is_fatal`].
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It does not run yet.
    #[error("freeze the VM: it waits for a generation to start from")]
    Warm,
    /// There is no room for a second view, or the first cannot be left.
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
    /// The device thread has ended.
    #[error("freeze the VM")]
    Devices(#[from] LoopError),
    /// The VM has no memory now.
    #[error("freeze the VM: exchange its memory")]
    Memory(#[source] rustix::io::Errno),
    /// The page tables could not be read.
    #[error("freeze the VM: find its private pages")]
    Pages(#[source] rustix::io::Errno),
    /// What it has written could not be found.
    #[error("freeze the VM")]
    Written(#[from] PrefaultError),
    /// The layer could not be made.
    #[error("freeze the VM")]
    Layer(#[from] LayersError),
    /// Somebody else still has a writable mapping of the RAM.
    #[error("freeze the VM: seal its generation")]
    Seal(#[source] rustix::io::Errno),
    /// The state is too large.
    #[error("freeze the VM: write its state")]
    Encode(#[from] postcard::Error),
}

impl FreezeError {
    /// The VM cannot go on: it has lost its memory, or its devices.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Memory(_) | Self::Devices(_))
    }
}
