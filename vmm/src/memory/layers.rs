//! The layers of a generation's RAM: sealed memfds, and a map from pages to memfds. A VM works on a
//! private view of all layers.

use super::Memory;
use super::extents::{EXTENTS_MAX, Extent, Extents, ExtentsError};
use super::layer::Layer;
pub use super::layers_error::LayersError;
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

/// RAM with so many layers, or with more extents than below, is merged for the next generation
/// while the guest runs. Each extent is a mapping in every clone. It costs 3.5 us before the
/// clone's first instruction and 200 bytes of kernel memory.
const LAYERS_LONG: usize = 6;
const EXTENTS_LONG: usize = 512;
/// RAM with so many layers, or with more extents than below, is merged before the freeze goes on.
/// This happens if a VM is frozen faster than its layers are merged, and in long chains of clones.
const LAYERS_FULL: usize = 10;
const EXTENTS_FULL: usize = EXTENTS_MAX / 2;
const _: () = assert!(LAYERS_LONG < LAYERS_FULL && LAYERS_FULL < LAYERS_MAX);
/// Most layers that a merge while the guest runs leaves as they are.
const LAYERS_KEPT_MAX: usize = 3;
const _: () = assert!(LAYERS_KEPT_MAX + 1 < LAYERS_LONG);
/// Most runs of pages in a merged layer: few enough that the next merge is not needed soon.
const MERGED_RUNS_MAX: usize = 128;
/// Gaps of up to so many bytes between written pages are filled from the layers below. A gap would
/// cost every clone one more mapping, which takes as long as to copy two pages. The fill is done
/// once, while the guest runs.
const GAP_MAX_BYTES: u64 = 3 * PAGE_BYTES;

/// The RAM of a generation.
#[derive(Debug, Clone)]
pub struct Layers {
    layers: Vec<Arc<Layer>>,
    extents: Extents,
}

impl Layers {
    /// RAM of `bytes` in one memfd.
    #[must_use]
    pub fn whole(memfd: File, bytes: u64) -> Self {
        Self { layers: vec![Layer::complete(memfd)], extents: Extents::whole(bytes) }
    }

    /// Checks layers and a map from another process, for RAM of `bytes`. `filling` has the numbers
    /// of the layers that are still being filled.
    ///
    /// # Errors
    /// They are not the RAM of such a VM.
    pub fn check(
        files: Vec<File>,
        filling: &[u8],
        extents: Extents,
        bytes: u64,
    ) -> Result<Self, LayersError> {
        if files.is_empty() || files.len() > LAYERS_MAX {
            return Err(LayersError::Count(files.len()));
        }
        for (layer, file) in files.iter().enumerate() {
            let stat = file.metadata().map_err(|source| LayersError::Stat { layer, source })?;
            if stat.len() != bytes {
                return Err(LayersError::Size { layer, found_bytes: stat.len(), bytes });
            }
        }
        if let Some(layer) = filling.iter().find(|layer| usize::from(**layer) >= files.len()) {
            return Err(ExtentsError::Layer { layer: *layer, layers: files.len() }.into());
        }
        extents.check(bytes, files.len())?;
        let layers = (0u8..).zip(files).map(|(number, file)| Layer::new(file, filling.contains(&number)));
        Ok(Self { layers: layers.collect(), extents })
    }

    /// The layers, by number.
    #[must_use]
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// How many of the lowest layers must be left as they are, because one of them is still being
    /// filled.
    fn unmergeable(&self) -> usize {
        self.layers.iter().rposition(|layer| layer.is_filling()).map_or(0, |last| last + 1)
    }

    /// The map from pages to layers.
    #[must_use]
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Maps all layers, copy-on-write, over the address space that `memory` reserves.
    ///
    /// # Errors
    /// The kernel refuses a mapping.
    pub fn map_over(&self, memory: &Memory) -> Result<(), LayersError> {
        // The first layer is mapped whole and the others over it. If pages are scattered, this
        // takes half as many calls as one for each extent.
        let first = Extent { start: 0, bytes: self.extents.bytes(), layer: 0 };
        let above = self.extents.as_slice().iter().filter(|extent| extent.layer > 0);
        for extent in std::iter::once(&first).chain(above) {
            let layer =
                self.layers.get(usize::from(extent.layer)).ok_or(LayersError::Count(self.layers.len()))?;
            for part in parts(memory, extent.start..extent.end()) {
                view::map_layer(part.region, part.at, part.bytes, layer.memfd(), part.start).map_err(
                    |source| LayersError::Map {
                        layer: extent.layer,
                        start: part.start,
                        bytes: part.bytes,
                        source,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// The same RAM with `memfd` as the top layer, which holds `runs`. Runs are ascending, and none
    /// touches another. Small gaps between them are filled, where all their pages are there, and
    /// `memfd` is sealed.
    ///
    /// # Errors
    /// There is no memory for the gaps, a writable mapping of `memfd` is left, or the layers or
    /// extents are too many and cannot be merged yet.
    pub fn with(&self, mut runs: Vec<Range<u64>>, memfd: File) -> Result<Self, LayersError> {
        let mut gaps = small_gaps(&runs, GAP_MAX_BYTES);
        if self.unmergeable() > 0 {
            gaps.retain(|gap| self.extents.within(gap.clone()).all(|extent| !self.is_filling(extent.layer)));
        }
        self.copy_to(&memfd, &gaps)?;
        runs.extend(gaps);
        seal(&memfd).map_err(LayersError::Seal)?;
        let mut layers = self.layers.clone();
        // There are fewer than `LAYERS_MAX` of them: see `is_full`, and the check below.
        let layer = u8::try_from(layers.len()).unwrap_or(u8::MAX);
        layers.push(Layer::complete(memfd));
        let all = Self { layers, extents: self.extents.overlay(&union(runs), layer) }.without_unseen();
        let (layers, extents) = (all.layers.len(), all.extents.as_slice().len());
        if layers > LAYERS_MAX || extents > EXTENTS_MAX {
            return Err(LayersError::Full { layers, extents });
        }
        Ok(all)
    }

    /// Whether this layer is still being filled.
    fn is_filling(&self, layer: u8) -> bool {
        self.layers.get(usize::from(layer)).is_some_and(|layer| layer.is_filling())
    }

    /// Whether the layers should be merged while the guest runs: there are many layers or extents,
    /// or the layers above the first hold more bytes than the RAM has. Not while layers are being
    /// filled: soon there will be fewer that cannot be merged.
    ///
    /// # Errors
    /// The size of a layer cannot be read.
    pub fn is_long(&self) -> Result<bool, LayersError> {
        Ok(self.unmergeable() == 0 && self.is_longer()?)
    }

    fn is_longer(&self) -> Result<bool, LayersError> {
        self.exceeds(LAYERS_LONG, EXTENTS_LONG, self.extents.bytes())
    }

    /// Whether the layers must be merged at once.
    ///
    /// # Errors
    /// The size of a layer cannot be read.
    pub fn is_full(&self) -> Result<bool, LayersError> {
        self.exceeds(LAYERS_FULL, EXTENTS_FULL, 2 * self.extents.bytes())
    }

    /// Whether there are at least `most_layers` layers, or more extents than `most_extents`, or
    /// more bytes in the layers above the first than `most_bytes`.
    fn exceeds(&self, most_layers: usize, most_extents: usize, most_bytes: u64) -> Result<bool, LayersError> {
        let mut held_bytes = 0;
        for (layer, memfd) in self.layers.iter().map(|layer| layer.memfd()).enumerate().skip(1) {
            held_bytes +=
                512 * memfd.metadata().map_err(|source| LayersError::Stat { layer, source })?.blocks();
        }
        let (layers, extents) = (self.layers.len(), self.extents.as_slice().len());
        Ok(layers >= most_layers || extents > most_extents || held_bytes > most_bytes)
    }

    /// The same RAM in two layers: the first, which is usually the largest, and one that merges all
    /// others, in few runs. If the merged layer holds more than half of RAM, it gets all of RAM and
    /// is the only layer.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn merge(&self) -> Result<Self, LayersError> {
        self.merge_from(1)
    }

    /// The same RAM in fewer layers, with little copying: only the youngest layers become one. As
    /// in a log-structured merge tree, a layer is copied again only when the layers above it have
    /// grown to a similar size. If there are too many extents, or the layers above the first hold
    /// more bytes than the RAM has, all of them are [merged](Self::merge).
    ///
    /// # Errors
    /// There is no memory for it, or the size of a layer cannot be read.
    pub fn merge_youngest(&self) -> Result<Self, LayersError> {
        let must_be_whole = self.exceeds(usize::MAX, EXTENTS_LONG, self.extents.bytes())?;
        self.merge_from(if must_be_whole { 1 } else { self.youngest() })
    }

    /// The lowest of the layers that [`Self::merge_youngest`] merges. The layer below it holds more
    /// than twice as much as the merged ones together, and at most [`LAYERS_KEPT_MAX`] layers are
    /// kept.
    fn youngest(&self) -> usize {
        let bytes_of = |layer: usize| -> u64 {
            let own = self.extents.as_slice().iter().filter(|extent| usize::from(extent.layer) == layer);
            own.map(|extent| extent.bytes).sum()
        };
        let mut first = self.layers.len().saturating_sub(1).max(1);
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

    /// The same RAM with one layer, in few runs, that replaces all layers from number `kept` on.
    /// Layers that are still being filled stay, with all below them.
    fn merge_from(&self, kept: usize) -> Result<Self, LayersError> {
        if self.layers.is_empty() {
            return Err(LayersError::Count(0));
        }
        let unmergeable = self.unmergeable();
        let kept = kept.max(unmergeable);
        if kept >= self.layers.len() {
            return Ok(self.clone());
        }
        let bytes = self.extents.bytes();
        let above = self.extents.as_slice().iter().filter(|extent| usize::from(extent.layer) >= kept);
        let mut runs = union(above.map(|extent| extent.start..extent.end()).collect());
        // Joined runs include pages of the layers below.
        if unmergeable == 0 {
            runs = join(runs, MERGED_RUNS_MAX);
            if bytes_of(&runs) > bytes / 2 {
                runs = std::iter::once(0..bytes).collect();
            }
        }
        let merged = new_layer(bytes)?;
        self.copy_to(&merged, &runs)?;
        seal(&merged).map_err(LayersError::Seal)?;
        let mut layers: Vec<_> = self.layers.iter().take(kept).cloned().collect();
        // There are fewer than `LAYERS_MAX` of them.
        let layer = u8::try_from(layers.len()).unwrap_or(u8::MAX);
        layers.push(Layer::complete(merged));
        Ok(Self { layers, extents: self.extents.overlay(&runs, layer) }.without_unseen())
    }

    /// The same RAM on top of `merged`, which is `source` after a merge. `self` is `source`, or
    /// `source` with layers that [`Self::with`] has added.
    #[must_use]
    pub fn rebased(&self, source: &Self, merged: &Self) -> Self {
        let (mut layers, mut extents) = (merged.layers.clone(), merged.extents.clone());
        for (number, own) in (0u8..).zip(&self.layers) {
            if source.layers.iter().any(|old| Arc::ptr_eq(old, own)) {
                continue;
            }
            let extents_of_own = self.extents.as_slice().iter().filter(|extent| extent.layer == number);
            let runs: Vec<_> = extents_of_own.map(|extent| extent.start..extent.end()).collect();
            // There are no more than this one has, and it has fewer than `LAYERS_MAX`.
            let layer = u8::try_from(layers.len()).unwrap_or(u8::MAX);
            layers.push(Arc::clone(own));
            extents = extents.overlay(&runs, layer);
        }
        Self { layers, extents }.without_unseen()
    }

    /// Drops the layers that hold no visible page.
    fn without_unseen(mut self) -> Self {
        let seen = self.extents.renumber();
        self.layers = seen.iter().filter_map(|layer| self.layers.get(usize::from(*layer)).cloned()).collect();
        self
    }

    /// Copies `ranges`, which are ascending, to the same offsets in `to`. All their pages must be
    /// there: in a layer that is still being filled, "not here yet" looks like a page of zeros.
    fn copy_to(&self, to: &File, ranges: &[Range<u64>]) -> Result<(), LayersError> {
        let mut sources: Vec<_> = self.layers.iter().map(|layer| Source::new(layer.memfd())).collect();
        let mut buffer = Vec::new();
        for extent in ranges.iter().flat_map(|range| self.extents.within(range.clone())) {
            let (start, bytes) = (extent.start, extent.bytes);
            if self.is_filling(extent.layer) {
                return Err(LayersError::Filling { layer: extent.layer, start });
            }
            let source =
                sources.get_mut(usize::from(extent.layer)).ok_or(LayersError::Count(self.layers.len()))?;
            source.copy(start..extent.end(), to, &mut buffer).map_err(|source| LayersError::Copy {
                start,
                bytes,
                source,
            })?;
        }
        Ok(())
    }
}

/// Makes a memfd for `bytes` of RAM, all holes.
///
/// # Errors
/// The kernel refuses.
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
    /// The offset in the region.
    pub at: u64,
    /// The offset in RAM, in which the regions follow each other without the hole between them.
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
/// There is no memory for the copy, or some of the RAM is lost.
pub fn copy_runs(memory: &Memory, runs: &[Range<u64>], memfd: &File) -> Result<(), LayersError> {
    for run in runs {
        for part in parts(memory, run.clone()) {
            let Part { start, bytes, .. } = part;
            view::copy_out(part.region, part.at, bytes, memfd, start).map_err(|error| match error {
                Errno::FAULT | Errno::HWPOISON => LayersError::Lost { start, bytes },
                error => LayersError::Copy { start, bytes, source: error.into() },
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "layers_test.rs"]
mod tests;
