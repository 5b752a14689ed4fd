//! Loads a guest kernel: an ELF file, or the ELF inside a bzImage.

use super::bzimage::{self, BzImageError};
use super::layout;
use crate::memory::{HOLE_START, Memory};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use patina_control::kernel::{Format, FormatError};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

/// How the kernel must be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode at this address, as the PVH boot protocol says.
    Pvh(u32),
    /// 64-bit mode at this address, as the Linux boot protocol says.
    Linux64(u64),
}

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("read the kernel")]
    Read(#[source] std::io::Error),
    /// The file is not a kernel.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The bzImage has no ELF that can be used.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The ELF cannot be loaded.
    #[error(
        "load the kernel's ELF segments into {ram_mib} MiB of RAM; check that the file is a complete kernel"
    )]
    Load {
        /// The guest's RAM.
        ram_mib: u64,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// The kernel's end is not in the RAM below the hole.
    #[error(
        "load the kernel: it ends at {end:#x}, beyond the RAM that ends at {ram_end:#x}; give the VM more memory"
    )]
    TooBig {
        /// Where it ends.
        end: u64,
        /// Where RAM ends.
        ram_end: u64,
    },
}

/// Loads the kernel in `file` into `memory`.
///
/// # Errors
/// See [`KernelError`].
pub fn load(mut file: File, memory: &Memory) -> Result<Entry, KernelError> {
    match Format::of_file(&file)? {
        Format::Elf => load_elf(&mut file, memory),
        Format::BzImage => {
            let mut image = Vec::new();
            file.seek(SeekFrom::Start(0)).map_err(KernelError::Read)?;
            file.take(bzimage::KERNEL_MAX_BYTES).read_to_end(&mut image).map_err(KernelError::Read)?;
            let kernel = bzimage::extract(&image)?;
            Format::of(&kernel)?;
            load_elf(&mut Cursor::new(kernel), memory)
        }
    }
}

fn load_elf<F>(image: &mut F, memory: &Memory) -> Result<Entry, KernelError>
where
    F: Read + vm_memory::ReadVolatile + Seek,
{
    let ram_mib = (memory.last_addr().raw_value() + 1) >> 20;
    let lowest = Some(GuestAddress(layout::HIGH_RAM_START));
    let loaded = Elf::load(memory.as_ref(), None, image, lowest)
        .map_err(|source| KernelError::Load { ram_mib, source })?;
    let ram_end = (memory.last_addr().raw_value() + 1).min(HOLE_START);
    if loaded.kernel_end > ram_end {
        return Err(KernelError::TooBig { end: loaded.kernel_end, ram_end });
    }
    Ok(match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) if u32::try_from(entry).is_ok() => {
            Entry::Pvh(entry as u32)
        }
        _ => Entry::Linux64(loaded.kernel_load.raw_value()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_no_kernel_is_refused() {
        let memory = crate::memory::allocate(64 << 20).expect("RAM").1;
        let program = File::open("/bin/true").expect("a program");
        assert!(matches!(load(program, &memory), Err(KernelError::Load { ram_mib: 64, .. })));
    }
}
