//! Where a VM begins: with a kernel's first instruction, or as a warm VM that waits for a generation.

use crate::boot::{cmdline, kernel, tables};
use crate::machine::generation::Ram;
use crate::memory::{self, Memory, MemoryError};
use crate::sys::inherit::{InheritError, Inherited};
use crate::vcpu::kind;
use crate::vcpu::setup::{self, SetupError};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use patina_control::config::{KvmKind, Start};
use std::fs::File;

/// Why a VM cannot begin there.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// A descriptor is not there.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// No RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// No command line.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// No boot tables.
    #[error(transparent)]
    Tables(#[from] tables::TablesError),
    /// No vCPU.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A vCPU could not be made.
    #[error("make a warm VM: KVM_CREATE_VCPU")]
    Create(#[source] kvm_ioctls::Error),
}

/// Where a VM begins, with its RAM.
pub struct Origin {
    memory: Memory,
    from: From,
}

enum From {
    Boot { kernel: File, cmdline: String, memfd: File },
    Warm,
}

impl Origin {
    /// Opens what `start` says, for a VM with so much RAM.
    ///
    /// # Errors
    /// No RAM.
    pub fn open(start: &Start, bytes: u64, inherited: &mut Inherited) -> Result<Self, OriginError> {
        match start {
            Start::Boot { kernel_fd, cmdline } => {
                let (memfd, memory) = memory::allocate(bytes)?;
                let kernel = File::from(inherited.take(*kernel_fd)?);
                Ok(Self { memory, from: From::Boot { kernel, cmdline: cmdline.clone(), memfd } })
            }
            Start::Warm => Ok(Self { memory: memory::reserve(bytes)?, from: From::Warm }),
        }
    }

    /// The RAM.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Makes the vCPUs of a VM that has its memory and `devices` virtio devices: ready to run, or in a warm VM to be
    /// given their state. Returns them with what the RAM is.
    ///
    /// # Errors
    /// The kernel does not load; KVM refuses.
    pub fn vcpus(
        self,
        vm: &VmFd,
        vcpus: u8,
        devices: u32,
        (kind, supported): (KvmKind, &CpuId),
    ) -> Result<(Vec<VcpuFd>, Ram), OriginError> {
        match self.from {
            From::Boot { kernel, cmdline, memfd } => {
                let entry = kernel::load(kernel, &self.memory)?;
                let line = cmdline::compose(devices, &kind::cmdline(kind, supported), &cmdline)?;
                tables::write(&self.memory, entry, vcpus, &line)?;
                let make = |index| setup::create(vm, &self.memory, supported, (index, vcpus), entry);
                Ok(((0..vcpus).map(make).collect::<Result<_, _>>()?, Ram::Shared(memfd)))
            }
            From::Warm => {
                let make = |index: u8| vm.create_vcpu(u64::from(index)).map_err(OriginError::Create);
                Ok(((0..vcpus).map(make).collect::<Result<_, _>>()?, Ram::Reserved))
            }
        }
    }
}
