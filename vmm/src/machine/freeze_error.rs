//! Why a VM could not be frozen.

use super::lazy::LazyError;
use super::persist::VmPersistError;
use super::prefault::PrefaultError;
use crate::devices::event_loop::LoopError;
use crate::memory::layers::LayersError;
use crate::vcpu::gate::PauseError;
use crate::vcpu::persist::PersistError;
use patina_snapshot::container::ContainerError;

/// Why a VM could not be frozen. The VM continues, unless [`FreezeError::is_fatal`].
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The VM does not run yet.
    #[error("freeze the VM: it is warm and has not started from a generation yet")]
    Warm,
    /// A private view cannot be mapped, or KVM cannot drop the old pages.
    #[error("freeze the VM: map a private view of its RAM")]
    View(#[source] rustix::io::Errno),
    /// The agent may have released the programs that it held.
    #[error(
        "freeze the VM: it took too long, so its agent may have released the programs that it held; nothing was frozen, try again"
    )]
    Late,
    /// A vCPU's state could not be saved.
    #[error("freeze the VM")]
    Vcpu(#[from] PersistError),
    /// A vCPU has ended or does not stop.
    #[error("freeze the VM")]
    Pause(#[from] PauseError),
    /// The VM's state could not be saved.
    #[error("freeze the VM")]
    Vm(#[from] VmPersistError),
    /// The device thread has ended or does not stop.
    #[error("freeze the VM")]
    Devices(#[from] LoopError),
    /// The exchange of memory failed half-way, so the VM has lost memory.
    #[error("freeze the VM: exchange its memory")]
    Memory(#[source] rustix::io::Errno),
    /// The page tables could not be read.
    #[error("freeze the VM: find its private pages")]
    Pages(#[source] rustix::io::Errno),
    /// The writes to RAM cannot be tracked, or the pager, which serves some of it, does not answer.
    #[error("freeze the VM")]
    Lazy(#[from] LazyError),
    /// The pages that the VM has written could not be found.
    #[error("freeze the VM")]
    Written(#[from] PrefaultError),
    /// The layer could not be made.
    #[error("freeze the VM")]
    Layer(#[from] LayersError),
    /// The memfd could not be sealed: a writable mapping of the RAM is left.
    #[error("freeze the VM: seal its generation")]
    Seal(#[source] rustix::io::Errno),
    /// The state could not be encoded.
    #[error("freeze the VM")]
    Encode(#[from] ContainerError),
}

impl FreezeError {
    /// Whether the VM cannot continue because it has lost its memory or its devices.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Devices(error) => !matches!(error, LoopError::Busy(_)),
            _ => false,
        }
    }
}
