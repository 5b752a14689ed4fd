//! Why the RAM of a generation cannot be used or made.

use super::extents::{EXTENTS_MAX, ExtentsError};
use patina_control::config::LAYERS_MAX;
use rustix::io::Errno;

/// Why the RAM of a generation cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// The map is invalid for these layers.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// The generation has no layers, or too many.
    #[error("read the generation: it has {0} layers; 1 to {LAYERS_MAX} are allowed")]
    Count(usize),
    /// A layer is of another size.
    #[error("read the generation: layer {layer} has {found_bytes} bytes, but the RAM has {bytes}")]
    Size {
        /// The layer's number.
        layer: usize,
        /// The layer's size, bytes.
        found_bytes: u64,
        /// The RAM's size, bytes.
        bytes: u64,
    },
    /// The size of a layer cannot be read.
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
    /// Pages were to be copied from a layer that is still being filled.
    #[error("copy RAM at {start:#x} from layer {layer}, which is still being filled; please report this")]
    Filling {
        /// The layer's number.
        layer: u8,
        /// The offset in RAM of the first byte that was to be copied.
        start: u64,
    },
    /// The generation would have too many layers or extents, and they cannot be merged while a
    /// layer is being filled.
    #[error(
        "make a layer of RAM: with it there are {layers} layers and {extents} extents; {LAYERS_MAX} and \
         {EXTENTS_MAX} are allowed, and they cannot be merged while memory is still arriving; try again \
         when it has arrived"
    )]
    Full {
        /// How many layers there would be.
        layers: usize,
        /// How many extents there would be.
        extents: usize,
    },
    /// The thread that merges layers has panicked.
    #[error("merge the layers of RAM: the thread panicked")]
    Merge,
    /// The layer could not be sealed: a writable shared mapping of it is left.
    #[error("seal a layer of RAM")]
    Seal(#[source] Errno),
    /// Memory that was to be copied is lost: the pager could not have it.
    #[error(
        "copy {bytes} bytes of RAM at {start:#x} into a layer: some of them are lost, because their source has failed or \
         is damaged; the VM ends when it needs them"
    )]
    Lost {
        /// The offset in RAM of the first byte that was to be copied.
        start: u64,
        /// How many bytes were to be copied.
        bytes: u64,
    },
    /// Pages could not be copied.
    #[error("copy {bytes} bytes of RAM at {start:#x} into a layer; check that the host has free memory")]
    Copy {
        /// The offset in RAM of the first byte that was to be copied.
        start: u64,
        /// How many bytes were to be copied.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
}
