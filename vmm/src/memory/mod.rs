//! Guest RAM, laid out around the hole below 4 GiB for devices. In a VM that boots, RAM is one
//! memfd that is mapped shared. In a frozen VM and in a clone, RAM is a private view of a
//! generation's memfds.
//!
//! - [`extents`]: maps each page of a generation to a memfd.
//! - [`layer`]: one of those memfds, complete or still being filled.
//! - [`layers`]: all of them, and the views of them.
//! - `source`: copies pages out of a layer.

pub mod extents;
pub mod layer;
pub mod layers;
mod layers_error;
mod source;

use std::{fs::File, os::fd::OwnedFd, sync::Arc};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the hole for devices begins: RAM below it, MMIO from here to 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM continues after the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Guest RAM as every part of the VMM shares it.
pub type Memory = Arc<GuestMemoryMmap>;

/// Why RAM could not be allocated or reserved.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel gave no memfd.
    #[error("make a memfd for {bytes} bytes of guest RAM")]
    Memfd {
        /// The size of the memfd, bytes.
        bytes: u64,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// The memfd could not be mapped.
    #[error("map {bytes} bytes of guest RAM; check the limit of address space (ulimit -v)")]
    Map {
        /// The size of all RAM, bytes.
        bytes: u64,
        /// Which part, and why.
        source: vm_memory::mmap::FromRangesError,
    },
}

/// The ranges of guest-physical addresses that `bytes` of RAM take: (start, length).
#[must_use]
pub fn layout(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HOLE_END, bytes - low));
    }
    ranges
}

/// Makes `bytes` of zeroed RAM (a whole number of pages). The kernel allocates each page at its
/// first access.
///
/// # Errors
/// The kernel gives no memfd or no mapping.
pub fn allocate(bytes: u64) -> Result<(File, Memory), MemoryError> {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let memfd: OwnedFd = memfd_create("patina-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|source| MemoryError::Memfd { bytes, source })?;
    ftruncate(&memfd, bytes).map_err(|source| MemoryError::Memfd { bytes, source })?;
    let file = Arc::new(File::from(memfd));
    let mut offset = 0;
    let mut ranges = Vec::new();
    for (start, length) in layout(bytes) {
        ranges.push((
            GuestAddress(start),
            length as usize,
            Some(FileOffset::from_arc(Arc::clone(&file), offset)),
        ));
        offset += length;
    }
    let memory = GuestMemoryMmap::from_ranges_with_files(&ranges)
        .map_err(|source| MemoryError::Map { bytes, source })?;
    let memfd = file.try_clone().map_err(|error| MemoryError::Memfd {
        bytes,
        source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::MFILE),
    })?;
    Ok((memfd, Arc::new(memory)))
}

/// Reserves address space for `bytes` of RAM. It has no memory until a generation is mapped there.
///
/// # Errors
/// There is no address space left.
pub fn reserve(bytes: u64) -> Result<Memory, MemoryError> {
    use vm_memory::mmap::{FromRangesError, MmapRegionError};
    use vm_memory::{GuestRegionMmap, MmapRegion};
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let map = |source: FromRangesError| MemoryError::Map { bytes, source };
    let mut regions = Vec::new();
    for (start, length) in layout(bytes) {
        let mapping = MmapRegion::build(None, length as usize, libc::PROT_NONE, FLAGS)
            .map_err(|error| map(error.into()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        regions.push(region.ok_or(MmapRegionError::InvalidPointer).map_err(|error| map(error.into()))?);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|error| map(error.into()))?;
    Ok(Arc::new(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(layout(256 << 20), [(0, 256 << 20)]);
        assert_eq!(layout(3 << 30), [(0, 3 << 30)]);
        assert_eq!(layout(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn the_greatest_ram_costs_nothing_until_touched() {
        use vm_memory::GuestMemoryBackend;
        let (memfd, memory) = allocate(64 << 30).expect("64 GiB of address space");
        assert_eq!(memfd.metadata().expect("memfd").len(), 64 << 30);
        assert_eq!(memory.iter().count(), 2);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&memfd.metadata().expect("memfd"));
        assert_eq!(blocks, 0);
    }
}
