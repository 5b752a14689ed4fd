//! Where a VM begins: with a kernel's first instruction, or in the middle of a generation.

use super::freeze::MachineState;
use super::persist::VmPersistError;
use crate::api::config::Start;
use crate::boot::{cmdline, kernel, tables};
use crate::memory::{self, Memory, MemoryError};
use crate::sys::inherit::{InheritError, Inherited};
use crate::vcpu::kind::KvmKind;
use crate::vcpu::persist::PersistError;
use crate::vcpu::setup::{self, SetupError};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Longest state of a generation, bytes.
const STATE_MAX_BYTES: u64 = 16 * 1024 * 1024;

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
    /// The generation's state cannot be read.
    #[error("read the generation's state")]
    Read(#[source] std::io::Error),
    /// The generation's state is not understood.
    #[error("read the generation's state: it is not understood")]
    Decode(#[from] postcard::Error),
    /// The generation is of another kind of VM.
    #[error(
        "start from the generation: it has {found_vcpus} vCPUs and {found_mib} MiB, the VM {vcpus} and {memory_mib} MiB"
    )]
    Shape {
        /// The generation's.
        found_vcpus: usize,
        /// The generation's.
        found_mib: u32,
        /// The VM's.
        vcpus: u8,
        /// The VM's.
        memory_mib: u32,
    },
    /// A vCPU could not be made.
    #[error("start from the generation: KVM_CREATE_VCPU")]
    Create(#[source] kvm_ioctls::Error),
    /// A vCPU does not take its state.
    #[error("start from the generation")]
    Vcpu(#[from] PersistError),
    /// The VM does not take its state.
    #[error("start from the generation")]
    Vm(#[from] VmPersistError),
}

/// Where a VM begins, with its RAM.
pub struct Origin {
    memory: Memory,
    from: From,
}

enum From {
    Boot { kernel: File, cmdline: String, memfd: File },
    Generation(Box<MachineState>),
}

impl Origin {
    /// Opens what `start` says, for a VM of this shape.
    ///
    /// # Errors
    /// No RAM, or a generation that is not of such a VM.
    pub fn open(start: &Start, shape: (u8, u32), inherited: &mut Inherited) -> Result<Self, OriginError> {
        let (vcpus, memory_mib) = shape;
        let bytes = u64::from(memory_mib) << 20;
        match start {
            Start::Boot { kernel_fd, cmdline } => {
                let (memfd, memory) = memory::allocate(bytes)?;
                let kernel = File::from(inherited.take(*kernel_fd)?);
                Ok(Self { memory, from: From::Boot { kernel, cmdline: cmdline.clone(), memfd } })
            }
            Start::Generation { state_fd, memory_fd } => {
                let state = read_state(&File::from(inherited.take(*state_fd)?))?;
                let (found_vcpus, found_mib) = (state.vcpus.len(), state.memory_mib);
                if (found_vcpus, found_mib) != (usize::from(vcpus), memory_mib) {
                    return Err(OriginError::Shape { found_vcpus, found_mib, vcpus, memory_mib });
                }
                let memory = memory::view(File::from(inherited.take(*memory_fd)?), bytes)?;
                Ok(Self { memory, from: From::Generation(Box::new(state)) })
            }
        }
    }

    /// The RAM.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The state that the VM's devices begin with, if not their own.
    #[must_use]
    pub fn state(&self) -> Option<&MachineState> {
        match &self.from {
            From::Boot { .. } => None,
            From::Generation(state) => Some(state),
        }
    }

    /// Makes the vCPUs of a VM that has its memory and `devices` virtio devices, ready to run. Returns them with the
    /// file behind the RAM, where that is the VM's own.
    ///
    /// # Errors
    /// The kernel does not load; KVM refuses a part of the state.
    pub fn vcpus(
        self,
        vm: &VmFd,
        vcpus: u8,
        devices: u32,
        (kind, supported): (KvmKind, &CpuId),
    ) -> Result<(Vec<VcpuFd>, Option<File>), OriginError> {
        match self.from {
            From::Boot { kernel, cmdline, memfd } => {
                let entry = kernel::load(kernel, &self.memory)?;
                let line = cmdline::compose(devices, &kind.cmdline(supported), &cmdline)?;
                tables::write(&self.memory, entry, vcpus, &line)?;
                let make = |index| setup::create(vm, &self.memory, supported, (index, vcpus), entry);
                Ok(((0..vcpus).map(make).collect::<Result<_, _>>()?, Some(memfd)))
            }
            From::Generation(state) => {
                let make = |(index, state): (u8, &crate::vcpu::persist::VcpuState)| {
                    let vcpu = vm.create_vcpu(u64::from(index)).map_err(OriginError::Create)?;
                    state.restore(&vcpu, index)?;
                    Ok::<_, OriginError>(vcpu)
                };
                let made = (0..vcpus).zip(&state.vcpus).map(make).collect::<Result<_, _>>()?;
                // After the vCPUs: what waits in the interrupt controllers goes to their APICs.
                state.vm.restore(vm)?;
                Ok((made, None))
            }
        }
    }
}

/// Reads by position: the file's own is shared with other clones of the generation.
fn read_state(file: &File) -> Result<MachineState, OriginError> {
    let bytes = file.metadata().map_err(OriginError::Read)?.len().min(STATE_MAX_BYTES);
    let mut state = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact_at(&mut state, 0).map_err(OriginError::Read)?;
    Ok(postcard::from_bytes(&state)?)
}
