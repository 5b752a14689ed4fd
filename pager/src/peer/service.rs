//! The side that has runs: answers what another host's pager asks over one connection.

use super::hang_up;
use super::wire::{Answer, HEADER_BYTES, Kind, Request};
use crate::engine::{Engine, Job};
use crate::fetch::Scratch;
use crate::layer::Layer;
use crate::source::Class;
use crate::workers::PATIENCE;
use patina_control::pager::RUN_BYTES;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A connection that is answered. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Service(Arc<File>);

impl Drop for Service {
    fn drop(&mut self) {
        hang_up(&self.0);
    }
}

impl Service {
    /// Answers requests for these layers in a thread of its own. `ended` is called when the
    /// connection has.
    pub(crate) fn start(
        engine: Arc<Engine>,
        stream: File,
        layers: Vec<Arc<Layer>>,
        ended: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let stream = Arc::new(stream);
        let served = Arc::clone(&stream);
        thread::Builder::new().name("peer-service".into()).spawn(move || {
            let Err(error) = engine.answer_all(&served, &layers);
            ended(error);
        })?;
        Ok(Self(stream))
    }
}

impl Engine {
    fn answer_all(self: &Arc<Self>, stream: &File, layers: &[Arc<Layer>]) -> io::Result<Infallible> {
        let mut input = BufReader::new(stream);
        let mut scratch = Scratch::default();
        let mut output = vec![0; HEADER_BYTES + RUN_BYTES as usize];
        loop {
            let Request { number, layer, run } = Request::read(&mut input)?;
            let run = run as usize;
            let layer = layers.get(layer as usize).filter(|layer| run < layer.runs());
            let bytes = layer.and_then(|layer| {
                let bytes = layer.run_bytes(run);
                let place = output.get_mut(HEADER_BYTES..HEADER_BYTES + bytes)?;
                self.copy_run(layer, run, &mut scratch, place).then_some(bytes)
            });
            let kind = if bytes.is_some() { Kind::Bytes } else { Kind::Refused };
            let bytes = bytes.unwrap_or(0);
            let head = Answer { number, kind, bytes: bytes as u32 }.encode();
            output[..HEADER_BYTES].copy_from_slice(&head);
            let mut stream = stream;
            stream.write_all(&output[..HEADER_BYTES + bytes])?;
        }
    }

    /// Copies a run, and gets it before if it is not here: it is wanted here, too. False: it cannot
    /// be had.
    fn copy_run(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        run: usize,
        scratch: &mut Scratch,
        to: &mut [u8],
    ) -> bool {
        if layer.claim(run).is_ok() {
            // A VM of that host may wait for it.
            self.fetch_for_nobody(&Job { layer: Arc::clone(layer), run }, scratch, Class::Demand);
        }
        // Its source answers later, or somebody else was first.
        self.arrivals.wait(layer, run, Instant::now() + PATIENCE);
        layer.is_present(run) && layer.memfd.read_exact_at(to, run as u64 * RUN_BYTES).is_ok()
    }
}
