//! Gives other hosts kernels and root file systems of this one.

use super::fetch::digest;
use crate::{
    process::control_client::PATIENCE,
    vms::{error::Error, fetched_data::shelf::Held, host::Host, images, remote_data::error::ReceiveError},
};
use blake3::Hash;
use patina_proto::v1::{ReadImageRequest, ReadImageResponse};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tonic::Status;
use uuid::Uuid;

/// Most bytes of a message.
const PART_BYTES: usize = 256 * 1024;
/// Messages between the disk and the network.
const QUEUE: usize = 4;

/// A call of another host, checked.
#[derive(Debug)]
pub struct ReadCall {
    digest: Hash,
    host: Uuid,
    to_host: Uuid,
}

impl ReadCall {
    /// The host that calls.
    #[must_use]
    pub fn host(&self) -> Uuid {
        self.host
    }

    /// Checks what came.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(call: &ReadImageRequest) -> Result<Self, ReceiveError> {
        Ok(Self {
            digest: digest(&call.digest)?,
            host: ReceiveError::uuid("host", &call.host_id)?,
            to_host: ReceiveError::uuid("called host", &call.to_host_id)?,
        })
    }
}

/// A file that another host reads.
struct Given {
    file: File,
    bytes: u64,
    _held: Option<Held>,
    _turn: OwnedSemaphorePermit,
}

impl Host {
    /// Gives a file.
    ///
    /// # Errors
    /// There is none with this content that other hosts may read.
    pub(crate) async fn read_image(
        self: &Arc<Self>,
        call: ReadCall,
    ) -> Result<mpsc::Receiver<Result<ReadImageResponse, Status>>, Error> {
        self.adopted(PATIENCE).await?;
        self.check_called(call.to_host)?;
        let turn = Arc::clone(&self.giving).try_acquire_owned().map_err(|_| ReceiveError::Reading)?;
        let (host, digest) = (Arc::clone(self), call.digest);
        let found = self.image_disks.blocking(move || Ok(host.find_for_peer(digest))).await?;
        let (file, bytes, held) = found.ok_or(ReceiveError::NotOffered(digest))?;
        let (sender, answers) = mpsc::channel(QUEUE);
        tracing::info!(host = %call.host, %digest, bytes, "another host reads a file");
        tokio::spawn(give(Given { file, bytes, _held: held, _turn: turn }, sender));
        Ok(answers)
    }

    /// The file with this content, if other hosts may read it: one that vmmd was started with, that
    /// came from another host, or of a VM that another host was asked to make clones of. May block.
    fn find_for_peer(&self, digest: Hash) -> Option<(File, u64, Option<Held>)> {
        let own = &self.settings.images;
        let offered = self.offered.find(digest);
        let at = offered.iter().chain([&own.kernel, &own.rootfs]);
        if let Some((file, bytes)) = at.cloned().find_map(|path| self.open_as(&path, digest)) {
            return Some((file, bytes, None));
        }
        let held = self.shelf.hold(digest)?;
        let Some((file, bytes)) = self.open_as(held.path(), digest) else {
            self.shelf.discard(digest);
            return None;
        };
        Some((file, bytes, Some(held)))
    }

    /// Opens a file if it has this content.
    pub(super) fn open_as(&self, path: &Path, digest: Hash) -> Option<(File, u64)> {
        let (file, _) = images::open_rootfs(path).ok()?;
        let (is, _) = self.digests.of(&file).ok()?;
        let bytes = file.metadata().ok()?.len();
        (is == digest).then_some((file, bytes))
    }
}

/// Sends a file until the caller has it, or takes nothing for long.
async fn give(given: Given, to: mpsc::Sender<Result<ReadImageResponse, Status>>) {
    let first = ReadImageResponse { total_bytes: given.bytes, bytes: Vec::new() };
    let mut next = Ok(first);
    let (mut given, mut start) = (given, 0);
    loop {
        let is_last = next.is_err();
        let sent = timeout(PATIENCE, to.send(next)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
        let read = spawn_blocking(move || {
            let part = read_part(&given, start);
            (given, part)
        });
        let Ok((still, part)) = read.await else { return };
        given = still;
        next = match part {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => {
                start += bytes.len() as u64;
                Ok(ReadImageResponse { total_bytes: 0, bytes })
            }
            Err(error) => Err(Status::unavailable(format!("read image: {error}"))),
        };
    }
}

fn read_part(given: &Given, start: u64) -> io::Result<Vec<u8>> {
    let left = usize::try_from(given.bytes.saturating_sub(start)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; left.min(PART_BYTES)];
    given.file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
