//! Maps each byte of a generation's RAM to the layer that holds it.
//!
//! A layer is a memfd of the RAM's size. A page has the same offset in its layer as in RAM, so the
//! map names only layers:
//! ```text
//!  RAM      |------- 0 -------|- 2 -|--- 0 ---|- 1 -|- 2 -|---- 0 ----|
//! ```

use patina_control::PAGE_BYTES;
use patina_snapshot::layout::Item;
use std::ops::Range;

pub use patina_control::config::EXTENTS_MAX;

/// Bytes of RAM that lie in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where the bytes begin, the same offset in RAM and in the layer.
    pub start: u64,
    /// The extent's length, bytes.
    pub bytes: u64,
    /// The number of the layer in which they lie.
    pub layer: u8,
}

patina_snapshot::layout!(Extent { start: u64, bytes: u64, layer: u8 });

impl Item for Extent {
    const WHAT: &'static str = "extents";
    const MOST: usize = EXTENTS_MAX;
}

impl Extent {
    /// Where the extent ends: the offset of the first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// All of RAM, each byte in exactly one extent, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

patina_snapshot::layout!(Extents { 0: Vec<Extent> });

/// Why a map from another process is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentsError {
    /// There is a gap or an overlap, or the map does not end where the RAM ends.
    #[error(
        "read the generation's memory map: an extent should begin at {at:#x} but begins at {found:#x}; RAM has {bytes} bytes"
    )]
    Hole {
        /// Where the next extent should begin.
        at: u64,
        /// Where the next extent begins.
        found: u64,
        /// The RAM's size, bytes.
        bytes: u64,
    },
    /// An extent is not made of whole pages.
    #[error("read the generation's memory map: the extent at {0:#x} is not made of whole pages")]
    Page(u64),
    /// An extent is in a layer that does not exist.
    #[error("read the generation's memory map: it names layer {layer}, but there are only {layers}")]
    Layer {
        /// The number of the layer that the extent names.
        layer: u8,
        /// How many layers there are.
        layers: usize,
    },
    /// The map has more than [`EXTENTS_MAX`] extents.
    #[error("read the generation's memory map: it has {0} extents; the limit is {EXTENTS_MAX}")]
    Many(usize),
}

impl Extents {
    /// All of `bytes` in layer 0.
    #[must_use]
    pub fn whole(bytes: u64) -> Self {
        Self(vec![Extent { start: 0, bytes, layer: 0 }])
    }

    /// The extents, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Extent] {
        &self.0
    }

    /// The RAM's size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.last().map_or(0, Extent::end)
    }

    /// The extents of a part of RAM, cut to it.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Extent> {
        let first = self.0.partition_point(|extent| extent.end() <= range.start);
        let behind = self.0.get(first..).unwrap_or_default().iter();
        behind.take_while(move |extent| extent.start < range.end).map(move |extent| {
            let (start, end) = (extent.start.max(range.start), extent.end().min(range.end));
            Extent { start, bytes: end - start, layer: extent.layer }
        })
    }

    /// Renumbers the layers in use from 0, in the same order. Returns their old numbers.
    pub fn renumber(&mut self) -> Vec<u8> {
        let mut seen: Vec<u8> = self.0.iter().map(|extent| extent.layer).collect();
        seen.sort_unstable();
        seen.dedup();
        for extent in &mut self.0 {
            let number = seen.partition_point(|layer| *layer < extent.layer);
            // There are no more layers than before.
            extent.layer = u8::try_from(number).unwrap_or(u8::MAX);
        }
        seen
    }

    /// Checks a map from another process, for RAM of `bytes` in `layers` layers.
    ///
    /// # Errors
    /// See [`ExtentsError`].
    pub fn check(&self, bytes: u64, layers: usize) -> Result<(), ExtentsError> {
        if self.0.len() > EXTENTS_MAX {
            return Err(ExtentsError::Many(self.0.len()));
        }
        let mut at = 0;
        for extent in &self.0 {
            if extent.start != at || extent.bytes == 0 || extent.bytes > bytes - at {
                return Err(ExtentsError::Hole { at, found: extent.start, bytes });
            }
            if extent.start % PAGE_BYTES != 0 || extent.bytes % PAGE_BYTES != 0 {
                return Err(ExtentsError::Page(extent.start));
            }
            if usize::from(extent.layer) >= layers {
                return Err(ExtentsError::Layer { layer: extent.layer, layers });
            }
            at += extent.bytes;
        }
        if at == bytes { Ok(()) } else { Err(ExtentsError::Hole { at, found: bytes, bytes }) }
    }

    /// The same map, except that `runs` are in `layer`. Runs are ascending and do not overlap.
    #[must_use]
    pub fn overlay(&self, runs: &[Range<u64>], layer: u8) -> Self {
        let mut over = Vec::with_capacity(self.0.len() + 2 * runs.len());
        let mut runs = runs.iter().cloned().peekable();
        for below in &self.0 {
            let mut at = below.start;
            while at < below.end() {
                let Some(run) = runs.peek().filter(|run| run.start < below.end()) else {
                    push(&mut over, at..below.end(), below.layer);
                    break;
                };
                push(&mut over, at..run.start.max(at), below.layer);
                let covered = run.end.min(below.end());
                push(&mut over, run.start.max(at)..covered, layer);
                at = covered;
                if run.end <= below.end() {
                    runs.next();
                }
            }
        }
        Self(over)
    }
}

/// Adds a range. Extends the last extent if that is in the same layer.
fn push(extents: &mut Vec<Extent>, range: Range<u64>, layer: u8) {
    if range.is_empty() {
        return;
    }
    let bytes = range.end - range.start;
    match extents.last_mut() {
        Some(last) if last.layer == layer && last.end() == range.start => last.bytes += bytes,
        _ => extents.push(Extent { start: range.start, bytes, layer }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::testing::runs;
    use proptest::prelude::*;

    const PAGES: u64 = 64;
    const BYTES: u64 = PAGES * PAGE_BYTES;

    /// The layer of each page, which is what a map means.
    fn pages(extents: &Extents) -> Vec<u8> {
        let layers = |extent: &Extent| vec![extent.layer; (extent.bytes / PAGE_BYTES) as usize];
        extents.0.iter().flat_map(layers).collect()
    }

    proptest! {
        #[test]
        fn an_overlay_is_what_it_is_page_by_page(sets in prop::collection::vec(prop::collection::vec(any::<bool>(), PAGES as usize), 0..6)) {
            let mut extents = Extents::whole(BYTES);
            let mut model = vec![0u8; PAGES as usize];
            for (layer, set) in (1u8..).zip(&sets) {
                extents = extents.overlay(&runs(set), layer);
                model.iter_mut().zip(set).filter(|(_, is_in)| **is_in).for_each(|(page, _)| *page = layer);
                prop_assert_eq!(pages(&extents), model.clone());
                prop_assert_eq!(extents.check(BYTES, sets.len() + 1), Ok(()));
                prop_assert!(extents.0.windows(2).all(|pair| pair[0].layer != pair[1].layer), "not joined");
            }
        }
    }

    #[test]
    fn a_map_that_is_none_is_refused() {
        let extent = |start, bytes, layer| Extent { start, bytes, layer };
        let check = |extents: &[Extent]| Extents(extents.to_vec()).check(BYTES, 2);
        assert_eq!(check(&[extent(0, BYTES, 1)]), Ok(()));
        assert!(matches!(check(&[]), Err(ExtentsError::Hole { at: 0, .. })));
        assert!(matches!(check(&[extent(0, BYTES - 4096, 0)]), Err(ExtentsError::Hole { .. })));
        assert!(matches!(check(&[extent(0, u64::MAX - 4095, 0)]), Err(ExtentsError::Hole { .. })));
        assert!(matches!(
            check(&[extent(0, 4096, 0), extent(0, BYTES, 0)]),
            Err(ExtentsError::Hole { at: 4096, .. })
        ));
        assert_eq!(check(&[extent(0, 5, 0)]), Err(ExtentsError::Page(0)));
        assert_eq!(check(&[extent(0, BYTES, 2)]), Err(ExtentsError::Layer { layer: 2, layers: 2 }));
        assert_eq!(check(&vec![extent(0, 0, 0); EXTENTS_MAX + 1]), Err(ExtentsError::Many(EXTENTS_MAX + 1)));
    }
}
