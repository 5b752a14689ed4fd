//! The operator's interface: `patina.v1.Vmmd`.
//!
//! - [`service`]: the calls; [`exec`], [`console`], [`logs`], [`watch`]: the streaming ones.
//! - [`peer_service`]: `patina.v1.HostPeer`, for other hosts.
//! - [`status`]: errors as rich statuses; [`convert`]: VMs as messages; [`snapshots`]: snapshots as
//!   messages, [`images`]: images as messages; [`facts`]: facts about this host; [`limit`]: the
//!   number of concurrent calls.
//!
//! No decision is made here: every call checks its message, calls [`crate::vms`], and returns the
//! answer.

pub mod access;
mod clone_calls;
pub mod console;
pub mod convert;
pub mod exec;
pub mod facts;
pub mod images;
pub mod limit;
pub mod logs;
pub mod peer_service;
pub mod service;
pub mod snapshots;
pub mod status;
pub mod watch;

use crate::vms::error::{Error, STREAMS_MAX};
use std::{pin::Pin, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::Status;

/// Longest message that is taken, bytes: an exec start of 32 KiB or 64 KiB of input, and what
/// surrounds them.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Messages between a stream's task and its client.
const STREAM_QUEUE: usize = 8;

/// The answers of a streaming call.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How many streams may be open, all clients together.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Semaphore>);

/// The right to one stream.
#[derive(Debug)]
pub struct Permit(OwnedSemaphorePermit);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

impl Streams {
    /// One more.
    ///
    /// # Errors
    /// There are too many.
    pub fn permit(&self) -> Result<Permit, Error> {
        Arc::clone(&self.0).try_acquire_owned().map(Permit).map_err(|_| Error::TooManyStreams)
    }
}

impl Permit {
    /// A stream of what is sent into the channel. The permit is given back with it.
    fn answers<T: Send + 'static>(self, receiver: mpsc::Receiver<Result<T, Status>>) -> Answers<T> {
        Box::pin(ReceiverStream::new(receiver).map(move |answer| {
            // Held by the closure for as long as the stream lives.
            let Self(_permit) = &self;
            answer
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_gives_its_place_back_when_it_is_dropped() {
        let streams = Streams::default();
        let held: Vec<_> = (1..STREAMS_MAX).map(|_| streams.permit().unwrap()).collect();
        let (_sender, receiver) = mpsc::channel::<Result<(), Status>>(1);
        let last = streams.permit().unwrap().answers(receiver);
        assert!(matches!(streams.permit(), Err(Error::TooManyStreams)));
        drop(last);
        assert!(streams.permit().is_ok());
        drop(held);
    }
}
