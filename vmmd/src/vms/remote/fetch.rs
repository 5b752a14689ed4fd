//! Gets kernels and root file systems that this host lacks from the host that wants clones here.

use crate::{
    plan::lifecycle::Phase,
    process::control_client::PATIENCE,
    store::record::{FileId, Record},
    vms::{
        error::Error,
        fetched_data::{
            arrive::arrive,
            coming::Coming,
            error::{FETCH_MAX, FetchError, FetchFault, STALL, ShelfError},
            shelf::Held,
            under_way::Fetching,
        },
        host::Host,
        images,
        remote_data::error::ReceiveError,
        snapshot_data::error::SnapshotError,
    },
};
use blake3::Hash;
use patina_control::best_effort;
use patina_daemon::chain;
use patina_proto::v1::{FetchImagesRequest, FetchImagesResponse, ImageKind, ReadImageRequest, WantedImage};
use patina_snapshot::manifest::ImageRef;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;
use uuid::Uuid;

/// Most files of a call.
const IMAGES_MAX: usize = 8;
/// Messages about how far it is that wait for the caller.
const QUEUE: usize = 4;

/// A call of another host, checked.
#[derive(Debug)]
pub struct FetchCall {
    images: Vec<(&'static str, Hash)>,
    host: Uuid,
    to_host: Uuid,
    address: String,
}

/// A kernel or a root file system on this host.
#[derive(Debug)]
pub(in crate::vms) struct Found {
    pub(in crate::vms) file: (PathBuf, FileId),
    /// If it came from another host, it stays for as long as this.
    pub(in crate::vms) held: Option<Held>,
}

impl FetchCall {
    /// The host that calls.
    #[must_use]
    pub fn host(&self) -> Uuid {
        self.host
    }

    /// Checks what came.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(call: FetchImagesRequest) -> Result<Self, ReceiveError> {
        let image = |wanted: &WantedImage| {
            let field = match wanted.kind() {
                ImageKind::Kernel => "kernel",
                ImageKind::Rootfs => "rootfs",
                ImageKind::Unspecified => return Err(ReceiveError::field("kind of an image", "")),
            };
            Ok((field, digest(&wanted.digest)?))
        };
        if !(1..=IMAGES_MAX).contains(&call.images.len()) {
            return Err(ReceiveError::field("number of images", &call.images.len().to_string()));
        }
        Ok(Self {
            images: call.images.iter().map(image).collect::<Result<_, _>>()?,
            host: ReceiveError::uuid("host", &call.host_id)?,
            to_host: ReceiveError::uuid("called host", &call.to_host_id)?,
            address: call.address,
        })
    }
}

/// A digest in a call.
///
/// # Errors
/// It has another length.
pub fn digest(bytes: &[u8]) -> Result<Hash, ReceiveError> {
    let found = || ReceiveError::field("digest of an image", &format!("{} bytes", bytes.len()));
    Ok(Hash::from_bytes(bytes.try_into().map_err(|_| found())?))
}

impl Host {
    /// Gets what this host lacks. The answers say how far it is; the last one says that it failed,
    /// if it did.
    ///
    /// # Errors
    /// The call was for another host.
    pub(crate) async fn fetch_images(
        self: &Arc<Self>,
        call: FetchCall,
    ) -> Result<mpsc::Receiver<Result<FetchImagesResponse, Status>>, Error> {
        self.adopted(PATIENCE).await?;
        self.check_called(call.to_host)?;
        let (told, answers) = mpsc::channel(QUEUE);
        let host = Arc::clone(self);
        tokio::spawn(async move {
            for number in 0..call.images.len() {
                let got = tokio::select! {
                    got = host.get_image(&call, number, &told) => got,
                    // Nobody waits any more. What is being fetched comes all the same.
                    () = told.closed() => return,
                };
                if let Err(error) = got {
                    tracing::warn!(host = %call.host, error = %chain(&error), "a file does not come from another host");
                    let answered = told.send(Err(error.into())).await;
                    best_effort(answered, "a caller that is gone wants no answer");
                    return;
                }
            }
        });
        Ok(answers)
    }

    /// Gets one file, unless it is here.
    async fn get_image(
        self: &Arc<Self>,
        call: &FetchCall,
        number: usize,
        told: &mpsc::Sender<Result<FetchImagesResponse, Status>>,
    ) -> Result<(), Error> {
        let (field, digest) = call.images[number];
        while !self.has_image(field, digest).await? {
            let failed =
                |why| FetchError { field, digest, host: call.host, address: call.address.clone(), why };
            let (mut progress, first) =
                self.under_way.join(digest).ok_or_else(|| Arc::new(failed(FetchFault::Busy)))?;
            let is_first = first.is_some();
            if let Some(fetching) = first {
                tokio::spawn(Arc::clone(self).fetch(fetching, failed(FetchFault::Stopping)));
            }
            let end = loop {
                let now = progress.borrow_and_update().clone();
                let answer = FetchImagesResponse {
                    number: u32::try_from(number).unwrap_or(u32::MAX),
                    done_bytes: now.done,
                    total_bytes: now.total,
                };
                if told.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
                if let Some(end) = now.end {
                    break end;
                }
                if progress.changed().await.is_err() {
                    break Err(Arc::new(failed(FetchFault::Stopping)));
                }
            };
            match end {
                // It was fetched from another host, or for another reason: this caller may do
                // better.
                Err(_) if !is_first => {}
                end => return Ok(end?),
            }
        }
        Ok(())
    }

    /// Fetches one file, and tells of it.
    async fn fetch(self: Arc<Self>, fetching: Fetching, of: FetchError) {
        let got = timeout(FETCH_MAX, self.read_from_host(&fetching, &of)).await;
        let end = match got.unwrap_or(Err(FetchFault::Late)) {
            Ok(bytes) => {
                let FetchError { field, digest, host, .. } = of;
                tracing::info!(field, %digest, %host, bytes, "a file has come from another host");
                self.known_images.look_again();
                Ok(())
            }
            Err(why) => Err(Arc::new(FetchError { why, ..of })),
        };
        fetching.end(end);
    }

    /// Reads a file from the host that has it, to the shelf. Returns its length.
    async fn read_from_host(
        self: &Arc<Self>,
        fetching: &Fetching,
        of: &FetchError,
    ) -> Result<u64, FetchFault> {
        let refused = |status| FetchFault::Refused(Box::new(status));
        let mut client = self.settings.peers.client(&of.address)?;
        let request = ReadImageRequest {
            digest: of.digest.as_bytes().to_vec(),
            host_id: self.tickets.host_id().to_owned(),
            to_host_id: of.host.to_string(),
        };
        let parts = timeout(STALL, client.read_image(request)).await.map_err(|_| FetchFault::Silent)?;
        let parts = parts.map_err(refused)?.into_inner();
        let (host, digest) = (Arc::clone(self), of.digest);
        arrive(parts, move |bytes| host.begin_image(digest, bytes), fetching).await
    }

    /// Makes room for a file. May block.
    fn begin_image(&self, digest: Hash, bytes: u64) -> Result<Coming, ShelfError> {
        let used = self.used_images();
        self.shelf.begin(digest, bytes, &|path| used.contains(path))
    }

    /// The kernels and root file systems of the VMs that run here.
    pub(in crate::vms) fn used_images(&self) -> HashSet<PathBuf> {
        let files = |record: &Record| [record.kernel.clone(), record.rootfs.clone()];
        let vms = self.table.all();
        let runs = vms.iter().filter(|vm| !matches!(vm.status().phase, Phase::Ended(_)));
        let mut used: HashSet<_> = runs.flat_map(|vm| files(&vm.record)).collect();
        // Of what cannot be looked at nobody knows that it has ended.
        let broken = self.table.broken();
        used.extend(broken.iter().filter_map(|(_, broken)| broken.record.as_ref()).flat_map(files));
        used
    }

    /// Looks which kernels and root file systems are here, again and again, for the scheduler.
    pub fn keep_looking_at_images(self: &Arc<Self>) {
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(host) = host.upgrade() {
                let looks = Arc::clone(&host);
                let look = move || {
                    looks.look_at_images();
                    Ok(())
                };
                // It is looked again.
                best_effort(host.image_disks.blocking(look).await, "disks that do not answer now may later");
                host.known_images.stale().await;
            }
        });
    }

    /// May block.
    fn look_at_images(&self) {
        let own = [&self.settings.images.kernel, &self.settings.images.rootfs];
        let digest = |path: &PathBuf| {
            let (file, _) = images::open_rootfs(path).ok()?;
            Some(self.digests.of(&file).ok()?.0)
        };
        // What came from other hosts is named by its content, which is compared when it is used.
        self.known_images.set(own.into_iter().filter_map(digest).chain(self.shelf.digests()).collect());
    }

    async fn has_image(self: &Arc<Self>, field: &'static str, digest: Hash) -> Result<bool, Error> {
        let host = Arc::clone(self);
        let wanted = ImageRef { digest, path: host.own_image(field).to_owned() };
        let find = move || match host.find_image_of_peer(Path::new("-"), field, &wanted) {
            Ok(_) => Ok(true),
            Err(Error::Receive(ReceiveError::NoImage { .. })) => Ok(false),
            Err(error) => Err(error),
        };
        self.image_disks.blocking(find).await
    }

    /// The file of VMs that name none.
    pub(in crate::vms) fn own_image(&self, field: &'static str) -> &Path {
        match field {
            "kernel" => &self.settings.images.kernel,
            _ => &self.settings.images.rootfs,
        }
    }

    /// Finds the file with the content that a VM of another host has: where it is there, or the
    /// host's own, or one that came from another host. May block.
    pub(in crate::vms) fn find_image_of_peer(
        &self,
        place: &Path,
        field: &'static str,
        wanted: &ImageRef,
    ) -> Result<Found, Error> {
        let here = self.find_image_by_content(place, (field, wanted), None, self.own_image(field));
        let tried = match here {
            Ok(file) => return Ok(Found { file, held: None }),
            Err(SnapshotError::NoImage { tried, .. }) => tried,
            Err(error) => return Err(error.into()),
        };
        let digest = wanted.digest;
        if let Some(held) = self.shelf.hold(digest) {
            if self.open_as(held.path(), digest).is_none() {
                self.shelf.discard(digest);
                return Err(ReceiveError::NoImage { field, wanted: digest, tried }.into());
            }
            // One that is no kernel is not wanted as one, and stays.
            let fetched = ImageRef { digest, path: held.path().to_owned() };
            match self.find_image_by_content(place, (field, &fetched), Some(held.path()), held.path()) {
                Ok(file) => return Ok(Found { file, held: Some(held) }),
                Err(SnapshotError::NoImage { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ReceiveError::NoImage { field, wanted: digest, tried }.into())
    }
}
