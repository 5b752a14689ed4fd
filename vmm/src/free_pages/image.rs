//! The memory of a generation, by the guest's physical addresses.

use crate::memory::layers::Layers;
use crate::memory::layout;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Why a part of a generation's memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no RAM.
    #[error("there is no RAM at {0:#x}")]
    NoRam(u64),
    /// It may not have arrived.
    #[error("memory at {0:#x} may not have arrived yet")]
    Filling(u64),
    /// A layer cannot be read.
    #[error("read a layer at {at:#x}")]
    Io {
        /// The offset.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    /// Whether the guest itself has named a wrong address. Nothing else is wrong then.
    #[must_use]
    pub fn is_guests(&self) -> bool {
        matches!(self, Self::NoRam(_))
    }
}

/// The memory of a generation.
#[derive(Debug)]
pub struct Image<'a> {
    layers: &'a Layers,
    /// Where RAM is: its first physical address, its length, and its first offset in the layers.
    regions: Vec<(u64, u64, u64)>,
}

impl<'a> Image<'a> {
    /// Of these layers.
    #[must_use]
    pub fn new(layers: &'a Layers) -> Self {
        let mut offset = 0;
        let regions = layout(layers.extents().bytes()).into_iter().map(|(start, bytes)| {
            let region = (start, bytes, offset);
            offset += bytes;
            region
        });
        Self { layers, regions: regions.collect() }
    }

    /// How many bytes of RAM there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.extents().bytes()
    }

    /// A range of physical addresses, as a range of bytes of RAM. None: not all of it is RAM.
    #[must_use]
    pub fn in_ram(&self, start: u64, bytes: u64) -> Option<Range<u64>> {
        let end = start.checked_add(bytes)?;
        let region =
            self.regions.iter().find(|(first, length, _)| *first <= start && end <= first + length)?;
        let at = start - region.0 + region.2;
        Some(at..at + bytes)
    }

    /// Reads at a physical address.
    ///
    /// # Errors
    /// There is no RAM, it may not have arrived, or a layer cannot be read.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let ram = self.in_ram(address, buffer.len() as u64).ok_or(ReadError::NoRam(address))?;
        let mut left = buffer;
        for extent in self.layers.extents().within(ram) {
            let layer = self.layers.layers().get(usize::from(extent.layer));
            let layer = layer.filter(|layer| !layer.is_filling()).ok_or(ReadError::Filling(address))?;
            // It is no longer than the buffer.
            let (part, behind) = left.split_at_mut(usize::try_from(extent.bytes).unwrap_or(usize::MAX));
            let read = layer.memfd().read_exact_at(part, extent.start);
            read.map_err(|source| ReadError::Io { at: extent.start, source })?;
            left = behind;
        }
        Ok(())
    }
}
