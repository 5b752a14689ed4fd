//! The connection to the pager. A thread of its own listens to it, which never accesses the guest's
//! memory: whatever waits for a page, another pager can be attached.
//!
//! ```text
//!  attach ──▶ a thread: Attach ──Attached──▶ answers the client, listens on
//!                          └─ refused, closed, no answer ──▶ answers the client, ends
//!  either ──AttachAgain──▶ another pager has the socket: Attach once more
//!  listening ──Complete──▶ the layer waits for the pager no longer; after the last one it ends
//!      └─ closed, or another pager is attached ──▶ ends
//! ```

mod listener;

use crate::memory::layer::Layer;
use crate::note::note;
use crate::sys::userfault::Userfault;
use listener::Listener;
use patina_control::best_effort;
use patina_control::pager::{Mapping, PagerToVm, VERSION, VmToPager};
use patina_control::{memfd, rights};
use patina_daemon::lock;
use rustix::io::Errno;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// How long the pager may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// A layer that is, or was, being filled.
#[derive(Debug)]
pub(super) struct LazyLayer {
    layer: Arc<Layer>,
    /// Where it is mapped, as the pager is told.
    mappings: Vec<Mapping>,
    /// Accesses wait for the pager.
    is_registered: bool,
}

impl LazyLayer {
    /// A layer whose mappings are registered.
    pub(super) fn new(layer: Arc<Layer>, mappings: Vec<Mapping>) -> Self {
        let is_registered = !mappings.is_empty();
        Self { layer, mappings, is_registered }
    }

    fn is_behind(&self) -> bool {
        self.is_registered && !self.layer.is_filling()
    }
}

fn is_inside(region: &GuestRegionMmap, mapping: &Mapping) -> bool {
    let start = region.as_ptr() as u64;
    (start..start + region.len()).contains(&mapping.address)
}

/// Called once with the outcome of an attachment, on the thread that listens or on the caller's.
pub type Attached = Box<dyn FnOnce(Result<(), LazyError>) + Send>;

/// See the module. Clones are the same connection.
#[derive(Clone)]
pub struct PagerLink(Arc<Shared>);

struct Shared {
    userfault: Option<Arc<Userfault>>,
    /// Never held while something waits.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    layers: Vec<LazyLayer>,
    /// Whether writes are tracked in the ranges as well.
    tracks: bool,
    /// None: no pager serves the VM now.
    pager: Option<Pager>,
    /// How many pagers there have been.
    serial: u64,
}

/// A pager that serves the VM, or is about to.
struct Pager {
    serial: u64,
    stream: Arc<UnixStream>,
    /// The pager knows that writes are tracked.
    knows_tracking: bool,
}

impl Pager {
    fn send(&self, message: &VmToPager, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        rights::send(&self.stream, &line, descriptors)
    }
}

impl PagerLink {
    /// For a VM with this userfaultfd, if the kernel has one.
    #[must_use]
    pub fn new(userfault: Option<Arc<Userfault>>) -> Self {
        Self(Arc::new(Shared { userfault, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Takes the layers that are being filled, and waits until the pager at the other end of
    /// `stream` serves them.
    pub(super) fn begin(&self, layers: Vec<LazyLayer>, stream: UnixStream) -> Result<(), LazyError> {
        lock(&self.0.state).layers = layers;
        let (sender, outcome) = channel();
        self.attach(stream, Box::new(move |attached| drop(sender.send(attached))));
        // The thread that listens always says how it went, and does so in bounded time.
        outcome.recv().unwrap_or_else(|_| Err(LazyError::Pager(ErrorKind::BrokenPipe.into())))
    }

    /// Gives the pager at the other end of `stream` what it needs to serve this VM. It replaces the
    /// pager before it. Does not wait: `attached` is called when it serves the VM, or has failed
    /// to.
    pub fn attach(&self, stream: UnixStream, attached: Attached) {
        match self.introduce(stream) {
            Ok((serial, stream)) => self.listen(serial, stream, attached),
            Err(error) => attached(Err(error)),
        }
    }

    /// Sends [`VmToPager::Attach`].
    fn introduce(&self, stream: UnixStream) -> Result<(u64, Arc<UnixStream>), LazyError> {
        let mut state = lock(&self.0.state);
        stream.set_nonblocking(true).map_err(LazyError::Pager)?;
        state.serial += 1;
        let (serial, stream) = (state.serial, Arc::new(stream));
        let pager = Pager { serial, stream: Arc::clone(&stream), knows_tracking: state.tracks };
        self.say_attach(&state, &pager)?;
        let before = state.pager.replace(pager);
        drop(state);
        self.0.changed.notify_all();
        if let Some(before) = before {
            best_effort(before.stream.shutdown(Shutdown::Both), "its pager may have closed it");
        }
        Ok((serial, stream))
    }

    fn say_attach(&self, state: &State, pager: &Pager) -> Result<(), LazyError> {
        let userfault = self.0.userfault.as_ref().ok_or(LazyError::Nothing)?;
        let registered = state.layers.iter().filter(|layer| layer.is_registered);
        let mut mappings: Vec<_> = registered.flat_map(|layer| layer.mappings.iter().copied()).collect();
        if mappings.is_empty() {
            return Err(LazyError::Nothing);
        }
        mappings.sort_by_key(|mapping| mapping.address);
        let list = memfd::sealed("patina-mappings", &Mapping::encode(&mappings));
        let list = list.map_err(LazyError::Pager)?;
        let attach = VmToPager::Attach { version: VERSION, tracks_writes: pager.knows_tracking };
        pager.send(&attach, &[userfault.as_fd(), list.as_fd()]).map_err(LazyError::Pager)
    }

    /// Another pager has the socket of this one: it may have read nothing of it.
    fn attach_again(&self, serial: u64) -> Result<(), LazyError> {
        let mut state = lock(&self.0.state);
        let tracks = state.tracks;
        let mut pager = state.pager.take_if(|pager| pager.serial == serial).ok_or(LazyError::Nothing)?;
        pager.knows_tracking = tracks;
        self.say_attach(&state, &pager)?;
        state.pager = Some(pager);
        drop(state);
        self.0.changed.notify_all();
        Ok(())
    }

    fn listen(&self, serial: u64, stream: Arc<UnixStream>, attached: Attached) {
        let attached = Arc::new(Mutex::new(Some(attached)));
        let (link, told) = (self.clone(), Arc::clone(&attached));
        let thread = std::thread::Builder::new().name("pager".into());
        let started = thread.spawn(move || {
            let tell = |outcome| {
                if let Some(attached) = lock(&told).take() {
                    attached(outcome);
                }
            };
            let mut listener = Listener::new(stream);
            let mut deadline = Some(Instant::now() + PATIENCE);
            loop {
                match listener.next(deadline) {
                    Ok(PagerToVm::Attached) => {
                        deadline = None;
                        tell(Ok(()));
                    }
                    Ok(PagerToVm::AttachAgain) => match link.attach_again(serial) {
                        Ok(()) => deadline = Some(Instant::now() + PATIENCE),
                        Err(error) => return tell(Err(error)),
                    },
                    Ok(PagerToVm::Refused { reason }) => {
                        link.lose(serial, &reason);
                        return tell(Err(LazyError::Refused(reason)));
                    }
                    Ok(message) => {
                        if link.note(serial, &message) {
                            return tell(Ok(()));
                        }
                    }
                    Err(error) => {
                        link.lose(serial, &error.to_string());
                        return tell(Err(LazyError::Pager(error)));
                    }
                }
            }
        });
        if let Err(error) = started {
            self.lose(serial, &error.to_string());
            if let Some(attached) = lock(&attached).take() {
                attached(Err(LazyError::Pager(error)));
            }
        }
    }

    /// Takes in what the pager says. True: nothing waits for a pager any longer.
    fn note(&self, serial: u64, message: &PagerToVm) -> bool {
        let mut state = lock(&self.0.state);
        let State { layers, pager, .. } = &mut *state;
        let Some(own) = pager.as_mut().filter(|pager| pager.serial == serial) else { return true };
        match message {
            PagerToVm::TrackingWrites => own.knows_tracking = true,
            PagerToVm::Complete { layer, is_unregistered } => {
                let layer = usize::try_from(*layer).ok().and_then(|number| layers.get_mut(number));
                if let Some(layer) = layer {
                    layer.layer.note_complete();
                    layer.is_registered &= !is_unregistered;
                }
            }
            PagerToVm::Attached | PagerToVm::AttachAgain | PagerToVm::Refused { .. } => {}
        }
        let is_done = !state.waits();
        if is_done {
            state.pager = None;
        }
        drop(state);
        self.0.changed.notify_all();
        is_done
    }

    fn lose(&self, serial: u64, why: &str) {
        let mut state = lock(&self.0.state);
        if state.pager.take_if(|pager| pager.serial == serial).is_some() && state.waits() {
            note(&format!("the connection to the pager: {why}; accesses to memory wait for another pager"));
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Whether accesses to some of RAM wait for the pager.
    #[must_use]
    pub fn waits(&self) -> bool {
        lock(&self.0.state).waits()
    }

    /// Whether accesses wait for the pager in a layer that is complete: writes were tracked when it
    /// became so, and the pager could not unregister it.
    pub(super) fn is_behind(&self) -> bool {
        lock(&self.0.state).layers.iter().any(LazyLayer::is_behind)
    }

    /// The ranges of `region` where accesses wait for the pager. Ascending, in bytes of the region.
    pub(super) fn registered(&self, region: &GuestRegionMmap) -> Vec<Range<u64>> {
        lock(&self.0.state).ranges(region, |layer| layer.is_registered)
    }

    /// The ranges of `region` in layers that are complete and where accesses wait for the pager.
    /// The caller unregisters them: they count as unregistered from now on.
    pub(super) fn take_complete(&self, region: &GuestRegionMmap) -> Vec<Range<u64>> {
        let mut state = lock(&self.0.state);
        let ranges = state.ranges(region, LazyLayer::is_behind);
        for layer in state.layers.iter_mut().filter(|layer| layer.is_behind()) {
            // Mappings of the layer in other regions stay in the list.
            layer.mappings.retain(|mapping| !is_inside(region, mapping));
            layer.is_registered = !layer.mappings.is_empty();
        }
        let pager = if state.waits() { None } else { state.pager.take() };
        drop(state);
        if let Some(pager) = pager {
            best_effort(pager.stream.shutdown(Shutdown::Both), "the pager may have closed it");
        }
        ranges
    }

    /// Tells the pager that writes are about to be tracked with the same userfaultfd, and waits
    /// until it unregisters no range any longer. That would end the tracking.
    ///
    /// # Errors
    /// A pager serves the VM and does not answer.
    pub(super) fn expect_tracking(&self) -> Result<(), LazyError> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock(&self.0.state);
        // A pager that comes after this one is told when it is attached.
        state.tracks = true;
        // After an error its listener hears of its end.
        if let Some(pager) = state.pager.as_ref().filter(|pager| !pager.knows_tracking)
            && let Err(error) = pager.send(&VmToPager::TrackWrites, &[])
        {
            note(&format!("the connection to the pager: {error}"));
        }
        // A pager that is gone unregisters nothing any longer.
        while state.pager.as_ref().is_some_and(|pager| !pager.knows_tracking) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LazyError::Pager(ErrorKind::TimedOut.into()));
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl State {
    fn ranges(&self, region: &GuestRegionMmap, which: impl Fn(&LazyLayer) -> bool) -> Vec<Range<u64>> {
        let start = region.as_ptr() as u64;
        let mappings = self.layers.iter().filter(|layer| which(layer)).flat_map(|layer| &layer.mappings);
        let inside = mappings.filter(|mapping| is_inside(region, mapping));
        let mut ranges: Vec<_> =
            inside.map(|mapping| mapping.address - start..mapping.address - start + mapping.bytes).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    fn waits(&self) -> bool {
        self.layers.iter().any(|layer| layer.is_registered)
    }
}

#[cfg(test)]
#[path = "pager_link_test.rs"]
mod tests;
