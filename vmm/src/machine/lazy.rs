//! Memory that arrives while the VM runs: layers that the pager fills.
//!
//! ```text
//!  start     the layers are mapped, and their ranges registered with the userfaultfd; it goes to
//!            the pager with the list of mappings; only then may anything access RAM
//!  running   an access to a page that is not mapped waits until the pager has served it
//!  complete  the pager has all pages of a layer, unregisters its ranges and tells the vmm
//! ```
//! The vmm keeps its own userfaultfd. If the pager dies, accesses wait until `vmmd` has started
//! another one and has given both sides a new socket ([`Machine::attach_pager`]).

use super::Machine;
use crate::memory::layer::Layer;
use crate::memory::layers::{Layers, parts};
use crate::note::note;
use crate::sys::userfault::Modes;
use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::LineBuffer;
use patina_control::pager::{Mapping, PagerToVm, VERSION, VmToPager};
use patina_control::{memfd, rights};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// How long the pager may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Layers that are still being filled.
#[derive(Debug)]
pub struct Filling {
    /// Their numbers.
    pub layers: Vec<u8>,
    /// The connection to the pager that serves this VM.
    pub pager: UnixStream,
}

/// Why a VM cannot run on layers that are still being filled.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// The kernel has no userfaultfd as this needs it.
    #[error("serve memory lazily: no userfaultfd; Linux 6.7 or later is needed, see `vmctl doctor`")]
    NoUserfault,
    /// A range cannot be registered.
    #[error("serve memory lazily: register {bytes:#x} bytes at {start:#x} of RAM")]
    Register {
        /// The offset in RAM, bytes.
        start: u64,
        /// How many bytes.
        bytes: u64,
        /// What the kernel said.
        source: Errno,
    },
    /// The kernel cannot track writes.
    #[error("track the writes to RAM")]
    Track(#[source] Errno),
    /// The pager cannot be reached.
    #[error("serve memory lazily: talk to the pager")]
    Pager(#[source] std::io::Error),
    /// The pager refuses the VM.
    #[error("serve memory lazily: the pager refuses the VM: {0}")]
    Refused(String),
    /// The VM has no layer that a pager could serve.
    #[error("serve memory lazily: all memory of the VM has arrived")]
    Nothing,
}

/// The layers of a VM that are, or were, being filled.
pub(super) struct Lazy {
    layers: Vec<LazyLayer>,
    /// None: the pager is gone, and `vmmd` is to send another one's socket.
    pager: Option<Pager>,
    /// Whether writes are tracked in the ranges as well.
    tracks: bool,
}

struct LazyLayer {
    layer: Arc<Layer>,
    /// Where it is mapped, as the pager is told.
    mappings: Vec<Mapping>,
    /// Accesses wait for the pager.
    is_registered: bool,
}

/// The connection to the pager.
struct Pager {
    stream: UnixStream,
    input: LineBuffer,
}

impl Pager {
    /// The next line, if it is there.
    fn next(&mut self) -> std::io::Result<Option<PagerToVm>> {
        let mut chunk = [0; 4096];
        loop {
            let line = self.input.next_line().map_err(std::io::Error::other)?;
            if let Some(line) = line {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.input.push(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line. Waits for it until `deadline`. The jail does not allow a time limit of the
    /// socket's own.
    fn wait(&mut self, deadline: Instant) -> std::io::Result<PagerToVm> {
        loop {
            if let Some(line) = self.next()? {
                return Ok(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, message: &VmToPager, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        rights::send(&self.stream, &line, descriptors)
    }
}

impl Machine {
    /// Makes accesses to the layers that are being filled wait for the pager, and tells it what to
    /// serve. Nothing may have accessed RAM since it was mapped: the kernel would have taken a page
    /// that has not arrived for a page of zeros.
    pub(super) fn serve_lazily(&mut self, layers: &Layers, filling: Filling) -> Result<(), LazyError> {
        let userfault = self.userfault.as_ref().ok_or(LazyError::NoUserfault)?;
        let mut lazy = Lazy { layers: Vec::new(), pager: None, tracks: false };
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
            let is_registered = !mappings.is_empty();
            lazy.layers.push(LazyLayer { layer: Arc::clone(layer), mappings, is_registered });
        }
        self.lazy = Some(lazy);
        self.attach_pager(filling.pager)
    }

    /// Gives the pager at the other end of `stream` what it needs to serve this VM, and waits until
    /// it does.
    ///
    /// # Errors
    /// There is nothing to serve, or the pager does not answer or refuses.
    pub fn attach_pager(&mut self, stream: UnixStream) -> Result<(), LazyError> {
        let (Some(lazy), Some(userfault)) = (&mut self.lazy, &self.userfault) else {
            return Err(LazyError::Nothing);
        };
        let registered = lazy.layers.iter().filter(|layer| layer.is_registered);
        let mut mappings: Vec<_> = registered.flat_map(|layer| layer.mappings.iter().copied()).collect();
        if mappings.is_empty() {
            return Err(LazyError::Nothing);
        }
        mappings.sort_by_key(|mapping| mapping.address);
        let list = memfd::sealed("patina-mappings", &Mapping::encode(&mappings));
        let list = list.map_err(LazyError::Pager)?;
        stream.set_nonblocking(true).map_err(LazyError::Pager)?;
        let mut pager = Pager { stream, input: LineBuffer::new(LINE_MAX_BYTES) };
        let attach = VmToPager::Attach { version: VERSION, tracks_writes: lazy.tracks };
        pager.send(&attach, &[userfault.as_fd(), list.as_fd()]).map_err(LazyError::Pager)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match pager.wait(deadline).map_err(LazyError::Pager)? {
                PagerToVm::Attached => break,
                PagerToVm::Refused { reason } => return Err(LazyError::Refused(reason)),
                // A new pager may have found all of a layer at once.
                PagerToVm::Complete { layer, is_unregistered } => lazy.note(layer, is_unregistered),
                PagerToVm::TrackingWrites => {}
            }
        }
        lazy.pager = Some(pager);
        Ok(())
    }

    /// The connection to the pager, which becomes readable when there is something to
    /// [hear](Self::hear_pager).
    #[must_use]
    pub fn pager(&self) -> Option<BorrowedFd<'_>> {
        self.lazy.as_ref()?.pager.as_ref().map(|pager| pager.stream.as_fd())
    }

    /// Hears what the pager says.
    pub fn hear_pager(&mut self) {
        let Some(lazy) = &mut self.lazy else { return };
        lazy.hear();
        if lazy.layers.iter().all(|layer| !layer.is_registered) {
            self.lazy = None;
        }
    }

    /// Starts to track the writes to a private view. Where accesses wait for the pager, they do so
    /// as before.
    pub(super) fn track_writes(&mut self) -> Result<(), LazyError> {
        self.expect_tracking()?;
        let Some(userfault) = &self.userfault else { return Ok(()) };
        let tracks = Modes { tracks: true, waits: false };
        for region in self.vm.memory().iter() {
            let mut at = 0;
            let waiting = self.lazy.as_ref().map(|lazy| lazy.registered(region)).unwrap_or_default();
            for range in waiting {
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
        }
        Ok(())
    }

    /// Tells the pager that writes are about to be tracked with the same userfaultfd, and waits
    /// until it unregisters no range any longer. That would end the tracking.
    fn expect_tracking(&mut self) -> Result<(), LazyError> {
        let Some(lazy) = &mut self.lazy else { return Ok(()) };
        // A pager that comes after this one is told when it is attached.
        lazy.tracks = true;
        let Some(pager) = &lazy.pager else { return Ok(()) };
        let sent = pager.send(&VmToPager::TrackWrites, &[]);
        let answered = sent.and_then(|()| lazy.hear_until_tracking());
        match answered {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(LazyError::Pager(error)),
            // It is gone, and unregisters nothing any longer.
            Err(error) => lazy.lose(&error),
        }
        Ok(())
    }
}

impl Lazy {
    fn hear(&mut self) {
        while let Some(pager) = &mut self.pager {
            match pager.next() {
                Ok(Some(PagerToVm::Complete { layer, is_unregistered })) => self.note(layer, is_unregistered),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => self.lose(&error),
            }
        }
    }

    fn hear_until_tracking(&mut self) -> std::io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(pager) = &mut self.pager {
            match pager.wait(deadline)? {
                PagerToVm::TrackingWrites => return Ok(()),
                PagerToVm::Complete { layer, is_unregistered } => self.note(layer, is_unregistered),
                _ => {}
            }
        }
        Ok(())
    }

    fn note(&mut self, number: u32, is_unregistered: bool) {
        let layer = usize::try_from(number).ok().and_then(|number| self.layers.get_mut(number));
        if let Some(layer) = layer {
            layer.layer.note_complete();
            layer.is_registered &= !is_unregistered;
        }
    }

    fn lose(&mut self, error: &std::io::Error) {
        note(&format!("the connection to the pager: {error}; accesses to memory wait for another pager"));
        self.pager = None;
    }

    /// The ranges of `region`, which begins at `base` of RAM, where accesses wait for the pager.
    /// Ascending, in bytes of the region.
    pub(super) fn registered(&self, region: &GuestRegionMmap) -> Vec<std::ops::Range<u64>> {
        let start = region.as_ptr() as u64;
        let end = start + region.len();
        let registered = self.layers.iter().filter(|layer| layer.is_registered);
        let mappings = registered.flat_map(|layer| &layer.mappings);
        let inside = mappings.filter(|mapping| (start..end).contains(&mapping.address));
        let mut ranges: Vec<_> =
            inside.map(|mapping| mapping.address - start..mapping.address - start + mapping.bytes).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }
}
