//! Recognizes kernel files that a vmm loads, by their first bytes. `vmmd` refuses other files
//! before it makes anything. The vmm checks again, as the file may have changed.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Where a bzImage has its magic number: Linux boot protocol.
const BZIMAGE_MAGIC_AT: usize = 0x202;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
/// The number of first bytes that identify the format of a file.
const HEAD_BYTES: usize = BZIMAGE_MAGIC_AT + BZIMAGE_MAGIC.len();

/// A kernel file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 64-bit ELF for x86-64.
    Elf,
    /// bzImage.
    BzImage,
}

/// Why a file is not a kernel.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file cannot be read.
    #[error("read the kernel")]
    Read(#[source] io::Error),
    /// Neither format.
    #[error(
        "read the kernel: it is neither an x86-64 ELF file nor a bzImage (it begins with {0:02x?}); use a vmlinux or a bzImage"
    )]
    Unknown(Vec<u8>),
}

impl Format {
    /// The format of `file`, from its first bytes alone.
    ///
    /// # Errors
    /// It cannot be read, or is not a kernel.
    pub fn of_file(file: &File) -> Result<Self, FormatError> {
        let mut head = [0; HEAD_BYTES];
        let mut length = 0;
        while length < head.len() {
            match file.read_at(&mut head[length..], length as u64).map_err(FormatError::Read)? {
                0 => break,
                more => length += more,
            }
        }
        Self::of(&head[..length])
    }

    /// The format of a file that begins with `head`.
    ///
    /// # Errors
    /// It is not a kernel.
    pub fn of(head: &[u8]) -> Result<Self, FormatError> {
        /// Magic, 64-bit, little-endian.
        const ELF64: &[u8] = b"\x7fELF\x02\x01";
        const MACHINE: std::ops::Range<usize> = 18..20;
        const X86_64: &[u8] = &[62, 0];
        if head.starts_with(ELF64) && head.get(MACHINE) == Some(X86_64) {
            return Ok(Self::Elf);
        }
        if head.get(BZIMAGE_MAGIC_AT..HEAD_BYTES) == Some(BZIMAGE_MAGIC) {
            return Ok(Self::BzImage);
        }
        Err(FormatError::Unknown(head[..head.len().min(8)].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 62;
        assert_eq!(Format::of(&elf).unwrap(), Format::Elf);
        elf[18] = 183; // aarch64
        assert!(matches!(Format::of(&elf), Err(FormatError::Unknown(_))));
        assert!(matches!(Format::of(b""), Err(FormatError::Unknown(head)) if head.is_empty()));
        assert!(matches!(Format::of(b"#!/bin/sh\n"), Err(FormatError::Unknown(_))));
        let mut bzimage = vec![0; BZIMAGE_MAGIC_AT];
        bzimage.extend_from_slice(BZIMAGE_MAGIC);
        assert_eq!(Format::of(&bzimage).unwrap(), Format::BzImage);
        bzimage.pop();
        assert!(matches!(Format::of(&bzimage), Err(FormatError::Unknown(head)) if head == [0; 8]));
    }

    #[test]
    fn a_program_has_the_format_of_a_kernel() {
        assert_eq!(Format::of_file(&File::open("/bin/true").unwrap()).unwrap(), Format::Elf);
    }
}
