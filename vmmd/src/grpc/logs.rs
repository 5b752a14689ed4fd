//! `Logs`: a file from its beginning. To follow it, inotify reports what is appended.
//!
//! When a console's log is full, the vmm drops its older half. A follower then finds its position
//! by the last bytes that it has sent (`resume`).

use super::{Answers, Permit, STREAM_QUEUE, status::invalid};
use crate::{
    plan::lifecycle::Phase,
    sys::readable,
    vms::{Host, Status as VmStatus, error::Error},
};
use patina_proto::v1::{self, logs_request::Source};
use rustix::fs::inotify;
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};
use tonic::Status;

/// Longest answer, bytes.
const CHUNK_BYTES: usize = 32 * 1024;
/// How much of what was sent is remembered to find the place again, bytes.
const MEMORY_BYTES: usize = 256;

type Sender = mpsc::Sender<Result<v1::LogsResponse, Status>>;

/// Serves one call.
///
/// # Errors
/// There is no such VM, or its log does not open.
pub async fn run(
    host: &Host,
    permit: Permit,
    request: &v1::LogsRequest,
) -> Result<Answers<v1::LogsResponse>, Status> {
    let vm = host.find(&request.name).await?;
    let path = match Source::try_from(request.source) {
        Ok(Source::Unspecified | Source::Console) => vm.dir.console_log(),
        Ok(Source::Vmm) => vm.dir.vmm_log(),
        Err(_) => return Err(invalid("source", "no such log")),
    };
    let failed = |source| Error::Log { name: request.name.clone(), source };
    // Watched before it is read: what is added in between is told.
    let watch = if request.follow { Some(Watch::new(&path).map_err(failed)?) } else { None };
    let log = Log { file: File::open(&path).map_err(failed)?, offset_bytes: 0, memory: Vec::new() };
    let (answers, receiver) = mpsc::channel(STREAM_QUEUE);
    let status = vm.watch();
    tokio::spawn(async move {
        if let Err(error) = stream(log, watch, status, &answers).await
            && answers.send(Err(Status::internal(format!("read the log: {error}")))).await.is_err()
        {
            tracing::debug!("the client of a log is gone");
        }
    });
    Ok(permit.answers(receiver))
}

async fn stream(
    mut log: Log,
    watch: Option<Watch>,
    mut status: watch::Receiver<VmStatus>,
    answers: &Sender,
) -> io::Result<()> {
    loop {
        // Looked at before reading: what was written before the end is read before the stream ends.
        let ended = matches!(status.borrow_and_update().phase, Phase::Ended(_));
        while let Some(data) = log.next()? {
            if answers.send(Ok(v1::LogsResponse { data })).await.is_err() {
                return Ok(());
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| !ended) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            changed = status.changed() => if changed.is_err() { return Ok(()) },
            () = answers.closed() => return Ok(()),
        }
    }
}

/// A log, read up to a place.
struct Log {
    file: File,
    offset_bytes: u64,
    memory: Vec<u8>,
}

impl Log {
    /// What comes next; None at the end of the file.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length_bytes = self.file.metadata()?.len();
        if length_bytes < self.offset_bytes {
            self.offset_bytes = self.find_again(length_bytes)?;
        }
        let mut data = vec![0; CHUNK_BYTES];
        let read = self.file.read_at(&mut data, self.offset_bytes)?;
        data.truncate(read);
        self.offset_bytes += read as u64;
        self.memory.extend_from_slice(&data[read.saturating_sub(MEMORY_BYTES)..]);
        let forgotten = self.memory.len().saturating_sub(MEMORY_BYTES);
        self.memory.drain(..forgotten);
        Ok((read > 0).then_some(data))
    }

    fn find_again(&self, length_bytes: u64) -> io::Result<u64> {
        // The vmm keeps its logs to a mebibyte; more than twice that is not read at once.
        const SEARCH_MAX_BYTES: u64 = 2 * patina_control::config::CONSOLE_LOG_MAX_BYTES;
        let mut content = vec![0; usize::try_from(length_bytes.min(SEARCH_MAX_BYTES)).unwrap_or(0)];
        let read = self.file.read_at(&mut content, 0)?;
        Ok(resume(&content[..read], &self.memory) as u64)
    }
}

/// Where to read on in a log that was cut at its front: after the last place where what was sent
/// last stands, or at the beginning when it is gone.
fn resume(content: &[u8], memory: &[u8]) -> usize {
    if memory.is_empty() {
        return 0;
    }
    let found = content.windows(memory.len()).rposition(|window| window == memory);
    found.map_or(0, |at| at + memory.len())
}

struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, path, inotify::WatchFlags::MODIFY)?;
        readable(inotify).map(Self)
    }

    /// Returns when the file has changed since the last time; which events say so does not matter.
    async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
#[path = "logs_test.rs"]
mod tests;
