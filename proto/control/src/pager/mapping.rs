//! Which addresses of a VM's process show which part of which layer.

use crate::PAGE_BYTES;
use crate::config::EXTENTS_MAX;
use std::ops::Range;

/// The length of a [`Mapping`] in a memfd, bytes.
pub const MAPPING_BYTES: usize = 32;
/// The end of the addresses that a process can have, with five levels of page tables.
const ADDRESS_MAX: u64 = 1 << 56;

/// A private mapping of a part of a layer, at an address of the vmm. In a memfd: four u64 LE, in
/// the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Where it begins in the layer.
    pub offset: u64,
    /// The layer's number in [`super::ToPager::AttachVm`].
    pub layer: u32,
}

/// Why mappings are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MappingsError {
    /// The memfd's length is not that of whole mappings.
    #[error("the list of mappings has {0} bytes; each mapping has {MAPPING_BYTES}")]
    Length(usize),
    /// There are none, or too many.
    #[error("there are {0} mappings; the limits are 1 and {EXTENTS_MAX}")]
    Count(usize),
    /// A mapping is empty, not made of whole pages, or beyond the greatest address.
    #[error("mapping {0} is empty, is not made of whole pages, or lies beyond the greatest address")]
    Range(usize),
    /// A mapping begins before the end of the one before it.
    #[error("mapping {0} begins before the end of the one before it")]
    Order(usize),
    /// A mapping is of a layer that the VM does not have.
    #[error("mapping {at} is of layer {layer}; the VM has {layers}")]
    Layer {
        /// The mapping's number.
        at: usize,
        /// The layer that it names.
        layer: u64,
        /// How many layers the VM has.
        layers: usize,
    },
    /// A mapping goes beyond the end of its layer.
    #[error("mapping {0} goes beyond the end of its layer")]
    Beyond(usize),
}

impl Mapping {
    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.bytes)
    }

    /// A list as it stands in a memfd.
    #[must_use]
    pub fn encode(mappings: &[Self]) -> Vec<u8> {
        let fields = |mapping: &Self| {
            [mapping.address, mapping.bytes, mapping.offset, mapping.layer.into()].map(u64::to_le_bytes)
        };
        mappings.iter().flat_map(fields).flatten().collect()
    }

    /// Reads a list that another process made, for layers of these lengths. Mappings are ascending
    /// and do not overlap.
    ///
    /// # Errors
    /// See [`MappingsError`].
    pub fn decode(bytes: &[u8], layers: &[u64]) -> Result<Vec<Self>, MappingsError> {
        let (records, rest) = bytes.as_chunks::<MAPPING_BYTES>();
        if !rest.is_empty() {
            return Err(MappingsError::Length(bytes.len()));
        }
        if !(1..=EXTENTS_MAX).contains(&records.len()) {
            return Err(MappingsError::Count(records.len()));
        }
        let mut mappings: Vec<Self> = Vec::with_capacity(records.len());
        for (at, record) in records.iter().enumerate() {
            let (fields, _) = record.as_chunks::<8>();
            let &[address, bytes, offset, layer] = fields else { return Err(MappingsError::Range(at)) };
            let [address, bytes, offset, layer] = [address, bytes, offset, layer].map(u64::from_le_bytes);
            let is_whole = [address, bytes, offset].iter().all(|value| value.is_multiple_of(PAGE_BYTES));
            let end = address.checked_add(bytes).filter(|end| *end <= ADDRESS_MAX);
            if !is_whole || bytes == 0 || end.is_none() {
                return Err(MappingsError::Range(at));
            }
            if mappings.last().is_some_and(|before| address < before.addresses().end) {
                return Err(MappingsError::Order(at));
            }
            let length = usize::try_from(layer).ok().and_then(|number| layers.get(number));
            let (Some(length), Ok(number)) = (length, u32::try_from(layer)) else {
                return Err(MappingsError::Layer { at, layer, layers: layers.len() });
            };
            if offset.checked_add(bytes).is_none_or(|end| end > *length) {
                return Err(MappingsError::Beyond(at));
            }
            mappings.push(Self { address, bytes, offset, layer: number });
        }
        Ok(mappings)
    }
}
