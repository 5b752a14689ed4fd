//! The side that has runs: answers what another host's pager asks over one connection.

use super::HANDSHAKE_PATIENCE;
use super::compression::{self, BLOCK_MAX_BYTES};
use super::tls::{self, Receiver, Sender};
use super::wire::{Answer, HEADER_BYTES, Kind, Request};
use crate::engine::{Engine, Job};
use crate::fetch::Scratch;
use crate::layer::Layer;
use crate::source::Class;
use crate::workers::PATIENCE;
use patina_control::pager::{Credential, RUN_BYTES};
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A connection that is answered. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Service(Arc<Sender>);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

impl Service {
    /// Answers requests for these layers in a thread of its own; with `compress`, by runs that are
    /// compressed where that makes them shorter. `ended` is called when the connection has, and
    /// hears whether the other side has ended it.
    ///
    /// # Errors
    /// The credential is none, or the thread cannot be started.
    pub(crate) fn start(
        engine: Arc<Engine>,
        (stream, credential): (File, &Credential),
        (layers, compress): (Vec<Arc<Layer>>, bool),
        ended: impl FnOnce(io::Error, bool) + Send + 'static,
    ) -> io::Result<Self> {
        let deadline = Instant::now() + HANDSHAKE_PATIENCE;
        let (sender, mut receiver) = tls::server(stream, credential)?;
        let service = Self(Arc::clone(&sender));
        thread::Builder::new().name("peer-service".into()).spawn(move || {
            let answered = receiver.handshake(deadline);
            let answered =
                answered.and_then(|()| engine.answer_all(&mut receiver, &sender, (&layers, compress)));
            let Err(error) = answered.map(|never| match never {});
            // The other side sees it at once.
            sender.hang_up();
            ended(error, receiver.is_ended());
        })?;
        Ok(service)
    }
}

impl Engine {
    fn answer_all(
        self: &Arc<Self>,
        input: &mut Receiver,
        sender: &Sender,
        (layers, compress): (&[Arc<Layer>], bool),
    ) -> io::Result<Infallible> {
        let mut scratch = Scratch::default();
        let mut output = vec![0; HEADER_BYTES + RUN_BYTES as usize];
        let mut compressed = vec![0; HEADER_BYTES + BLOCK_MAX_BYTES];
        loop {
            let Request { number, layer, run } = Request::read(input)?;
            let run = run as usize;
            let layer = layers.get(layer as usize).filter(|layer| run < layer.runs());
            let bytes = layer.and_then(|layer| {
                let bytes = layer.run_bytes(run);
                let place = output.get_mut(HEADER_BYTES..HEADER_BYTES + bytes)?;
                self.copy_run(layer, run, &mut scratch, place).then_some(bytes)
            });
            let shorter = bytes.filter(|_| compress).and_then(|bytes| {
                let run = &output[HEADER_BYTES..HEADER_BYTES + bytes];
                compression::compress(run, &mut compressed[HEADER_BYTES..])
            });
            let (kind, bytes, message) = match (shorter, bytes) {
                (Some(bytes), _) => (Kind::Lz4, bytes, &mut compressed),
                (None, Some(bytes)) => (Kind::Bytes, bytes, &mut output),
                (None, None) => (Kind::Refused, 0, &mut output),
            };
            let head = Answer { number, kind, bytes: bytes as u32 }.encode();
            message[..HEADER_BYTES].copy_from_slice(&head);
            sender.send(&message[..HEADER_BYTES + bytes])?;
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
