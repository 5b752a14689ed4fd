//! Lists and removes images.

use crate::vms::{
    blocking::blocking,
    error::Error,
    host::Host,
    image_cache::{
        cache::{ImageCache, Stored},
        key::Key,
    },
    images,
    snapshot_data::{error::SnapshotError, fit},
};
use patina_daemon::chain;
use patina_snapshot::{
    directory::{RemoveError, Snapshot},
    manifest::{Description, ImageRef},
};
use std::{path::Path, sync::Arc, time::Duration};

/// How often images that are too old are looked for.
const EVICT_EVERY: Duration = Duration::from_secs(3600);

/// What came of removing images.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Those that were removed.
    pub removed: Vec<Stored>,
    /// Those that stay because VMs still read their memory from them.
    pub in_use: Vec<Key>,
    /// How long the kernels and root file systems from other hosts were that were removed, bytes.
    pub fetched_bytes: u64,
}

impl Host {
    /// The images of this host, by key. Without a folder of images there are none.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn images(self: &Arc<Self>) -> Result<Vec<Stored>, Error> {
        let host = Arc::clone(self);
        blocking(move || host.image_cache.as_ref().map_or_else(|| Ok(Vec::new()), list)).await
    }

    /// Removes images: all, or those from which no VM of this host can start any more, because the
    /// kernel, the root file system, the vmm program or the host is another one. With all images go
    /// the kernels and root file systems from other hosts that no VM uses.
    ///
    /// # Errors
    /// The folder cannot be read, or an image cannot be removed.
    pub async fn prune_images(self: &Arc<Self>, all: bool) -> Result<Pruned, Error> {
        let host = Arc::clone(self);
        blocking(move || {
            let mut pruned = Pruned::default();
            if all {
                let used = host.used_images();
                pruned.fetched_bytes = host.shelf.prune(&|path| used.contains(path));
            }
            let Some(cache) = &host.image_cache else { return Ok(pruned) };
            for stored in list(cache)? {
                if !all && !host.is_stale(&stored) {
                    continue;
                }
                match cache.remove(stored.key) {
                    Ok(()) => pruned.removed.push(stored),
                    Err(RemoveError::InUse(_)) => pruned.in_use.push(stored.key),
                    Err(error) => return Err(SnapshotError::Remove(error).into()),
                }
            }
            Ok(pruned)
        })
        .await
    }

    /// Whether no VM can start from it any more.
    fn is_stale(&self, stored: &Stored) -> bool {
        let Ok((manifest, _)) = &stored.found else { return true };
        let Description { kernel, rootfs, cmdline, vcpus, memory_mib, .. } = &manifest.description;
        let now = |field, image: &ImageRef| -> Result<ImageRef, SnapshotError> {
            let path = images::real_path(field, &image.path)?;
            let file = open(field, &path)?;
            Ok(ImageRef { digest: self.digest_of(field, &path, &file)?.0, path })
        };
        let is_current = || -> Result<bool, SnapshotError> {
            let images = [now("kernel", kernel)?, now("rootfs", rootfs)?];
            let key_of = |needs| self.key_of(&images, cmdline, (*vcpus, *memory_mib), needs);
            if key_of(None)? == stored.key {
                return Ok(true);
            }
            // It may be of a VM with a CPU baseline. Its state says what that VM was offered.
            let needs = fit::needs(&Snapshot::open(&stored.place)?)?;
            Ok(key_of(Some(&needs))? == stored.key)
        };
        match is_current() {
            Ok(is_current) => !is_current,
            Err(error) => {
                tracing::debug!(image = %stored.key, error = %chain(&error), "no VM can start from it");
                true
            }
        }
    }

    /// Removes images that are too old, for as long as the program runs.
    pub fn keep_evicting(self: &Arc<Self>) {
        if self.image_cache.is_none() {
            return;
        }
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(host) = host.upgrade() {
                let evicted = blocking(move || {
                    host.image_cache.iter().for_each(ImageCache::evict);
                    Ok(())
                });
                if evicted.await.is_err() {
                    return;
                }
                tokio::time::sleep(EVICT_EVERY).await;
            }
        });
    }
}

/// By key.
fn list(cache: &ImageCache) -> Result<Vec<Stored>, Error> {
    let failed = |source| SnapshotError::List { directory: cache.folder().to_owned(), source };
    let mut stored = cache.list().map_err(failed)?;
    stored.sort_by_key(|stored| stored.key.to_string());
    Ok(stored)
}

fn open(field: &'static str, path: &Path) -> Result<std::fs::File, SnapshotError> {
    Ok(match field {
        "kernel" => images::open_kernel(path)?.0,
        _ => images::open_rootfs(path)?.0,
    })
}
