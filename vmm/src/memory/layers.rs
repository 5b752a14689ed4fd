//! A generation's RAM: sealed memfds, and which page is in which. A VM works on a private view of all of them.

use super::Memory;
use super::extents::{EXTENTS_MAX, Extent, Extents, ExtentsError};
use super::source::Source;
use crate::ranges::{bytes_of, join, small_gaps, union};
use crate::sys::view;
use patina_control::PAGE_BYTES;
use patina_control::config::LAYERS_MAX;
use patina_control::memfd::seal;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// RAM with so many layers, or with more extents, is to be merged beside the guest, for the next generation. Each extent is a mapping in every
/// clone: 3.5 us before its first instruction, and 200 bytes of the kernel's memory.
const LAYERS_LONG: usize = 6;
const EXTENTS_LONG: usize = 512;
/// With so many it must be merged before anything else: where VMs are frozen faster than merged, and in clones of clones of clones.
const LAYERS_FULL: usize = 10;
const EXTENTS_FULL: usize = EXTENTS_MAX / 2;
const _: () = assert!(LAYERS_LONG < LAYERS_FULL && LAYERS_FULL < LAYERS_MAX);
/// Most layers that a merge beside the guest leaves as they are.
const LAYERS_KEPT_MAX: usize = 3;
const _: () = assert!(LAYERS_KEPT_MAX + 1 < LAYERS_LONG);
/// Most runs of pages in the layer that merging makes: few enough that it is long until the next time.
const MERGED_RUNS_MAX: usize = 128;
/// Gaps of up to so many bytes between pages that were written are filled from the layers below. It is done once, beside the
/// guest; every clone would pay for a mapping more, which takes as long as to copy two pages.
const GAP_MAX_BYTES: u64 = 3 * PAGE_BYTES;

/// Why the RAM of a generation cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// The map is not of these layers.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// The generation has no layers, or too many.
    #[error("read the generation: {0} layers, and there must be 1 to {LAYERS_MAX}")]
    Count(usize),
    /// A layer is of another size.
    #[error("read the generation: layer {layer} has {found_bytes} bytes, the RAM {bytes}")]
    Size {
        /// The layer's number.
        layer: usize,
        /// The layer's size, bytes.
        found_bytes: u64,
        /// The RAM's size, bytes.
        bytes: u64,
    },
    /// A layer cannot be looked at.
    #[error("read the generation: layer {layer}")]
    Stat {
        /// The layer's number.
        layer: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A part cannot be mapped.
    #[error("map {bytes:#x} bytes at {start:#x} of the generation's layer {layer}")]
    Map {
        /// The layer's number.
        layer: u8,
        /// The offset of the part in the layer, bytes.
        start: u64,
        /// The part's length, bytes.
        bytes: u64,
        /// What the kernel said.
        source: Errno,
    },
    /// There is no memory for another layer.
    #[error("make a layer of {bytes} bytes of RAM")]
    Memfd {
        /// The size of the layer, bytes.
        bytes: u64,
        /// What the kernel said.
        source: Errno,
    },
    /// The thread that merges them has ended without a result.
    #[error("merge the layers of RAM: the thread panicked")]
    Merge,
    /// Somebody still has a writable shared mapping of the layer.
    #[error("seal a layer of RAM")]
    Seal(#[source] Errno),
    /// Pages could not be copied.
    #[error("copy {bytes} bytes of RAM at {start:#x} into a layer; is the host out of memory?")]
    Copy {
        /// The offset in RAM of the first byte that was to be copied.
        start: u64,
        /// How many bytes were to be copied.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The RAM of a generation.
#[derive(Debug, Clone)]
pub struct Layers {
    files: Vec<Arc<File>>,
    extents: Extents,
}

impl Layers {
    /// RAM of `bytes` that is all in one memfd.
    #[must_use]
    pub fn whole(memfd: File, bytes: u64) -> Self {
        Self { files: vec![Arc::new(memfd)], extents: Extents::whole(bytes) }
    }

    /// Takes what came from elsewhere, for RAM of `bytes`.
    ///
    /// # Errors
    /// It is not the RAM of such a VM.
    pub fn check(files: Vec<File>, extents: Extents, bytes: u64) -> Result<Self, LayersError> {
        if files.is_empty() || files.len() > LAYERS_MAX {
            return Err(LayersError::Count(files.len()));
        }
        for (layer, file) in files.iter().enumerate() {
            let stat = file.metadata().map_err(|source| LayersError::Stat { layer, source })?;
            if stat.len() != bytes {
                return Err(LayersError::Size { layer, found_bytes: stat.len(), bytes });
            }
        }
        extents.check(bytes, files.len())?;
        Ok(Self { files: files.into_iter().map(Arc::new).collect(), extents })
    }

    /// The memfds, by number of layer.
    #[must_use]
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// Which page is in which.
    #[must_use]
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Maps all of it, copy-on-write, over what is reserved for `memory`.
    ///
    /// # Errors
    /// The kernel refuses a mapping.
    pub fn map_over(&self, memory: &Memory) -> Result<(), LayersError> {
        // The first layer at once, and the others over it: that is half as many mappings as one by one where pages are scattered.
        let first = Extent { start: 0, bytes: self.extents.bytes(), layer: 0 };
        let above = self.extents.as_slice().iter().filter(|extent| extent.layer > 0);
        for extent in std::iter::once(&first).chain(above) {
            let file =
                self.files.get(usize::from(extent.layer)).ok_or(LayersError::Count(self.files.len()))?;
            for part in parts(memory, extent.start..extent.end()) {
                view::map_layer(part.region, part.at, part.bytes, file, part.start).map_err(|source| {
                    LayersError::Map { layer: extent.layer, start: part.start, bytes: part.bytes, source }
                })?;
            }
        }
        Ok(())
    }

    /// The same RAM, but for `runs`, which are in `memfd`: ascending, and none touches another. Small gaps between them are
    /// filled, and it is sealed.
    ///
    /// # Errors
    /// There is no memory for the gaps, or somebody can still write to `memfd`.
    pub fn with(&self, mut runs: Vec<Range<u64>>, memfd: File) -> Result<Self, LayersError> {
        let gaps = small_gaps(&runs, GAP_MAX_BYTES);
        self.copy_to(&memfd, &gaps)?;
        runs.extend(gaps);
        seal(&memfd).map_err(LayersError::Seal)?;
        let mut files = self.files.clone();
        // There are fewer than `LAYERS_MAX` of them: see `is_full`.
        let layer = u8::try_from(files.len()).unwrap_or(u8::MAX);
        files.push(Arc::new(memfd));
        Ok(Self { files, extents: self.extents.overlay(&union(runs), layer) }.without_unseen())
    }

    /// Whether it is time to [`Self::merge`]: there are many layers or extents, or the layers above the first hold more than
    /// all of RAM.
    ///
    /// # Errors
    /// A layer cannot be looked at.
    pub fn is_long(&self) -> Result<bool, LayersError> {
        self.exceeds(LAYERS_LONG, EXTENTS_LONG, self.extents.bytes())
    }

    /// Whether it must be merged at once.
    ///
    /// # Errors
    /// A layer cannot be looked at.
    pub fn is_full(&self) -> Result<bool, LayersError> {
        self.exceeds(LAYERS_FULL, EXTENTS_FULL, 2 * self.extents.bytes())
    }

    /// Whether there are so many layers, or more extents, or more bytes in the layers above the first.
    fn exceeds(&self, most_layers: usize, most_extents: usize, most_bytes: u64) -> Result<bool, LayersError> {
        let mut held_bytes = 0;
        for (layer, file) in self.files.iter().enumerate().skip(1) {
            held_bytes +=
                512 * file.metadata().map_err(|source| LayersError::Stat { layer, source })?.blocks();
        }
        let (layers, extents) = (self.files.len(), self.extents.as_slice().len());
        Ok(layers >= most_layers || extents > most_extents || held_bytes > most_bytes)
    }

    /// The same RAM in two layers: the first, which is the largest as a rule, and one that has all that the others have on
    /// top of it, in few runs. Where that is most of RAM it is all of it, and the only layer.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn merge(&self) -> Result<Self, LayersError> {
        self.merge_from(1)
    }

    /// The same RAM in fewer layers, for as little copying as there can be: only the youngest layers become one. A page is copied
    /// again when as much has been written since as its layer holds, as in a log-structured merge tree. What has too many extents,
    /// or holds more than all of RAM, is [merged](Self::merge) whole.
    ///
    /// # Errors
    /// There is no memory for it, or a layer cannot be looked at.
    pub fn merge_youngest(&self) -> Result<Self, LayersError> {
        let must_be_whole = self.exceeds(usize::MAX, EXTENTS_LONG, self.extents.bytes())?;
        self.merge_from(if must_be_whole { 1 } else { self.youngest() })
    }

    /// The first of the layers that [`Self::merge_youngest`] makes one: the one right below it holds more than twice as
    /// much as those from it on, and no more than [`LAYERS_KEPT_MAX`] are left.
    fn youngest(&self) -> usize {
        let bytes_of = |layer: usize| -> u64 {
            let own = self.extents.as_slice().iter().filter(|extent| usize::from(extent.layer) == layer);
            own.map(|extent| extent.bytes).sum()
        };
        let mut first = self.files.len().saturating_sub(1).max(1);
        let mut bytes = bytes_of(first);
        while first > 1 {
            let below = bytes_of(first - 1);
            if first <= LAYERS_KEPT_MAX && below > 2 * bytes {
                break;
            }
            (first, bytes) = (first - 1, bytes + below);
        }
        first
    }

    /// The same RAM with one layer, in few runs, in the place of all from number `kept` on.
    fn merge_from(&self, kept: usize) -> Result<Self, LayersError> {
        if self.files.is_empty() {
            return Err(LayersError::Count(0));
        }
        let bytes = self.extents.bytes();
        let above = self.extents.as_slice().iter().filter(|extent| usize::from(extent.layer) >= kept);
        let mut runs = join(union(above.map(|extent| extent.start..extent.end()).collect()), MERGED_RUNS_MAX);
        if bytes_of(&runs) > bytes / 2 {
            runs = std::iter::once(0..bytes).collect();
        }
        let merged = new_layer(bytes)?;
        self.copy_to(&merged, &runs)?;
        seal(&merged).map_err(LayersError::Seal)?;
        let mut files: Vec<_> = self.files.iter().take(kept).cloned().collect();
        // There are fewer than `LAYERS_MAX` of them.
        let layer = u8::try_from(files.len()).unwrap_or(u8::MAX);
        files.push(Arc::new(merged));
        Ok(Self { files, extents: self.extents.overlay(&runs, layer) }.without_unseen())
    }

    /// The same RAM on top of `merged`, which is `source` merged: this is `source`, or what [`Self::with`] has made of it.
    #[must_use]
    pub fn rebased(&self, source: &Self, merged: &Self) -> Self {
        let (mut files, mut extents) = (merged.files.clone(), merged.extents.clone());
        for (number, file) in (0u8..).zip(&self.files) {
            if source.files.iter().any(|old| Arc::ptr_eq(old, file)) {
                continue;
            }
            let own = self.extents.as_slice().iter().filter(|extent| extent.layer == number);
            let runs: Vec<_> = own.map(|extent| extent.start..extent.end()).collect();
            // There are no more than this one has, and it has fewer than `LAYERS_MAX`.
            let layer = u8::try_from(files.len()).unwrap_or(u8::MAX);
            files.push(Arc::clone(file));
            extents = extents.overlay(&runs, layer);
        }
        Self { files, extents }.without_unseen()
    }

    /// Lets go of the layers that no page is in.
    fn without_unseen(mut self) -> Self {
        let seen = self.extents.renumber();
        self.files = seen.iter().filter_map(|layer| self.files.get(usize::from(*layer)).cloned()).collect();
        self
    }

    /// Copies what is in `ranges`, which are ascending, to the same places of `to`.
    fn copy_to(&self, to: &File, ranges: &[Range<u64>]) -> Result<(), LayersError> {
        let mut sources: Vec<_> = self.files.iter().map(|file| Source::new(file)).collect();
        let mut buffer = Vec::new();
        for extent in ranges.iter().flat_map(|range| self.extents.within(range.clone())) {
            let (start, bytes) = (extent.start, extent.bytes);
            let source =
                sources.get_mut(usize::from(extent.layer)).ok_or(LayersError::Count(self.files.len()))?;
            source.copy(start..extent.end(), to, &mut buffer).map_err(|source| LayersError::Copy {
                start,
                bytes,
                source,
            })?;
        }
        Ok(())
    }
}

/// A memfd for `bytes` of RAM, all holes.
///
/// # Errors
/// The kernel gives none.
pub fn new_layer(bytes: u64) -> Result<File, LayersError> {
    let failed = |source| LayersError::Memfd { bytes, source };
    let memfd =
        memfd_create("patina-layer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(failed)?;
    ftruncate(&memfd, bytes).map_err(failed)?;
    Ok(memfd.into())
}

/// A part of RAM that lies in one region.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The region.
    pub region: &'a GuestRegionMmap,
    /// Where in the region.
    pub at: u64,
    /// Where in RAM: the regions one after another, without the hole between them.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// The parts of `range`, which is in bytes of RAM, by region.
pub fn parts(memory: &Memory, range: Range<u64>) -> impl Iterator<Item = Part<'_>> {
    let mut base = 0;
    memory.iter().filter_map(move |region| {
        let (first, last) = (base, base + region.len());
        base = last;
        let (start, end) = (range.start.max(first), range.end.min(last));
        (start < end).then(|| Part { region, at: start - first, start, bytes: end - start })
    })
}

/// Copies `runs` of RAM into `memfd`.
///
/// # Errors
/// There is no memory for the copy.
pub fn copy_runs(memory: &Memory, runs: &[Range<u64>], memfd: &File) -> Result<(), LayersError> {
    for run in runs {
        for part in parts(memory, run.clone()) {
            view::copy_out(part.region, part.at, part.bytes, memfd, part.start).map_err(|source| {
                LayersError::Copy { start: part.start, bytes: part.bytes, source: source.into() }
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "layers_test.rs"]
mod tests;
