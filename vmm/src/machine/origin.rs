//! The first state of a VM: at a kernel's first instruction, or warm (waiting for a generation).

use crate::boot::{cmdline, kernel, tables};
use crate::machine::generation::Ram;
use crate::memory::{self, Memory, MemoryError};
use crate::vcpu::kind;
use crate::vcpu::setup::{self, SetupError};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use patina_control::config::{KvmKind, Start};
use patina_jail::sys::inherit::{InheritError, Inherited};
use std::fs::File;

/// Why the first state of a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// A descriptor is missing.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The RAM could not be allocated or reserved.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// The command line could not be composed.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// The boot tables could not be written.
    #[error(transparent)]
    Tables(#[from] tables::TablesError),
    /// A vCPU could not be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A vCPU could not be made.
    #[error("make a warm VM: KVM_CREATE_VCPU")]
    Create(#[source] kvm_ioctls::Error),
}

/// The first state of a VM, with its RAM.
pub struct Origin {
    memory: Memory,
    from: From,
}

enum From {
    Boot { kernel: File, cmdline: String, memfd: File },
    Warm,
}

impl Origin {
    /// Opens what `start` names, for a VM with `bytes` of RAM.
    ///
    /// # Errors
    /// The RAM or the kernel's descriptor is not available.
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

    /// Makes the vCPUs of a VM that has its memory and `devices` virtio devices. They are ready to
    /// run, or in a warm VM ready to restore a state. Returns them with the VM's RAM.
    ///
    /// # Errors
    /// The kernel cannot be loaded, or KVM refuses.
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
