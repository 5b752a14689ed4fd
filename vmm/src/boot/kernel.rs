//! Loads a guest kernel: an ELF file, or the ELF inside a bzImage.

use super::bzimage::{self, BzImageError};
use super::layout;
use crate::memory::{HOLE_START, Memory};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

/// A file's kind, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 64-bit ELF for x86-64.
    Elf,
    /// bzImage.
    BzImage,
}

/// How the kernel wants to be entered.
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
    /// Neither format.
    #[error(
        "read the kernel: it is neither an x86-64 ELF file nor a bzImage (it begins with {0:02x?}); give a vmlinux or a bzImage"
    )]
    Format(Vec<u8>),
    /// The bzImage gives no ELF.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The ELF does not load.
    #[error(
        "load the kernel's ELF segments into {ram_mib} MiB of RAM; is the file whole, and is it a kernel?"
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

/// Tells what kind of kernel `file` is, from its first bytes alone.
///
/// # Errors
/// It cannot be read, or is none.
pub fn check_kernel(file: &File) -> Result<Format, KernelError> {
    let mut head = [0; bzimage::HEADER_BYTES];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64).map_err(KernelError::Read)? {
            0 => break,
            more => length += more,
        }
    }
    format_of(&head[..length])
}

fn format_of(head: &[u8]) -> Result<Format, KernelError> {
    /// Magic, 64-bit, little-endian.
    const ELF64: &[u8] = b"\x7fELF\x02\x01";
    const MACHINE: std::ops::Range<usize> = 18..20;
    const X86_64: &[u8] = &[62, 0];
    if head.starts_with(ELF64) && head.get(MACHINE) == Some(X86_64) {
        return Ok(Format::Elf);
    }
    if bzimage::is_bzimage(head) {
        return Ok(Format::BzImage);
    }
    Err(KernelError::Format(head[..head.len().min(8)].to_vec()))
}

/// Loads the kernel in `file` into `memory`.
///
/// # Errors
/// See [`KernelError`].
pub fn load(mut file: File, memory: &Memory) -> Result<Entry, KernelError> {
    match check_kernel(&file)? {
        Format::Elf => load_elf(&mut file, memory),
        Format::BzImage => {
            let mut image = Vec::new();
            file.seek(SeekFrom::Start(0)).map_err(KernelError::Read)?;
            file.take(bzimage::KERNEL_MAX_BYTES).read_to_end(&mut image).map_err(KernelError::Read)?;
            let kernel = bzimage::extract(&image)?;
            format_of(&kernel)?;
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
    fn formats_are_told_apart() {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 62;
        assert_eq!(format_of(&elf).expect("ELF"), Format::Elf);
        elf[18] = 183; // aarch64
        assert!(matches!(format_of(&elf), Err(KernelError::Format(_))));
        assert!(matches!(format_of(b""), Err(KernelError::Format(head)) if head.is_empty()));
        assert!(matches!(format_of(b"#!/bin/sh\n"), Err(KernelError::Format(_))));
    }

    #[test]
    fn a_program_that_is_no_kernel_is_refused() {
        let memory = crate::memory::allocate(64 << 20).expect("RAM").1;
        let program = File::open("/bin/true").expect("a program");
        assert_eq!(check_kernel(&program).expect("an ELF"), Format::Elf);
        assert!(matches!(load(program, &memory), Err(KernelError::Load { ram_mib: 64, .. })));
    }
}
