//! Memory that arrives while the VM runs: layers that the pager fills.
//!
//! ```text
//!  start     the layers are mapped, and their ranges registered with the userfaultfd; it goes to
//!            the pager with the list of mappings; only then may anything access RAM
//!  running   an access to a page that is not mapped waits until the pager has served it
//!  complete  the pager has all pages of a layer, unregisters its ranges and tells the vmm
//! ```
//! The vmm keeps its own userfaultfd. If the pager dies, accesses wait until `vmmd` has started
//! another one and has given both sides a new socket. [`super::pager_link`] has the connection.

use super::Machine;
pub use super::pager_link::LazyError;
use super::pager_link::LazyLayer;
use crate::memory::layers::{Layers, parts};
use crate::sys::userfault::Modes;
use patina_control::pager::Mapping;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Layers that are still being filled.
#[derive(Debug)]
pub struct Filling {
    /// Their numbers.
    pub layers: Vec<u8>,
    /// The connection to the pager that serves this VM.
    pub pager: UnixStream,
}

impl Machine {
    /// Makes accesses to the layers that are being filled wait for the pager, and tells it what to
    /// serve. Nothing may have accessed RAM since it was mapped: the kernel would have taken a page
    /// that has not arrived for a page of zeros.
    pub(super) fn serve_lazily(&self, layers: &Layers, filling: Filling) -> Result<(), LazyError> {
        let userfault = self.userfault.as_ref().ok_or(LazyError::NoUserfault)?;
        let mut lazy = Vec::new();
        for (number, place) in (0u32..).zip(&filling.layers) {
            let Some(layer) = layers.layers().get(usize::from(*place)) else { continue };
            let mut mappings = Vec::new();
            let own = layers.extents().as_slice().iter().filter(|extent| extent.layer == *place);
            for part in own.flat_map(|extent| parts(self.vm.memory(), extent.start..extent.end())) {
                let waits = Modes { tracks: false, waits: true };
                userfault
                    .register(part.region, part.at, part.bytes, waits)
                    .map_err(|source| LazyError::Register { start: part.start, bytes: part.bytes, source })?;
                let address = part.region.as_ptr() as u64 + part.at;
                mappings.push(Mapping { address, bytes: part.bytes, offset: part.start, layer: number });
            }
            lazy.push(LazyLayer::new(Arc::clone(layer), mappings));
        }
        self.pager.begin(lazy, filling.pager)
    }

    /// Starts to track the writes to a private view, as if it had never been tracked. Where
    /// accesses wait for the pager, they do so as before, except in layers that are complete.
    pub(super) fn track_writes(&self) -> Result<(), LazyError> {
        self.pager.expect_tracking()?;
        let Some(userfault) = &self.userfault else { return Ok(()) };
        let tracks = Modes { tracks: true, waits: false };
        for region in self.vm.memory().iter() {
            for range in self.pager.take_complete(region) {
                // With fewer modes alone the kernel would ignore the request. Pages that nobody
                // has accessed are mapped by the kernel from now on: the layer has them all.
                let bytes = range.end - range.start;
                userfault.forget(region, range.start, bytes).map_err(LazyError::Track)?;
            }
            let mut at = 0;
            for range in self.pager.registered(region) {
                if at < range.start {
                    userfault.register(region, at, range.start - at, tracks).map_err(LazyError::Track)?;
                }
                // With both modes: a request without the one would take it away.
                let both = Modes { waits: true, ..tracks };
                let bytes = range.end - range.start;
                userfault.register(region, range.start, bytes, both).map_err(LazyError::Track)?;
                at = range.end;
            }
            if at < region.len() {
                userfault.register(region, at, region.len() - at, tracks).map_err(LazyError::Track)?;
            }
            userfault.unprotect(region).map_err(LazyError::Track)?;
        }
        Ok(())
    }
}
