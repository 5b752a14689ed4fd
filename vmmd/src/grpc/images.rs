//! Converts images to messages.

use super::snapshots::{PAGE_MAX, listed};
use crate::plan::lifecycle::Phase;
use crate::vms::{Vm, booted::shelf::Pruned, image_cache::cache::Stored};
use patina_proto::v1;
use patina_snapshot::directory::Listed;
use std::{sync::Arc, time::UNIX_EPOCH};

const KIB: u64 = 1024;

/// A page of images, which are in the order of their ids: from the first after the id `token`. The
/// host has these VMs.
#[must_use]
pub fn page(all: Vec<Stored>, vms: &[Arc<Vm>], token: &str, asked: u32) -> v1::ListImagesResponse {
    let size = match usize::try_from(asked) {
        Ok(0) | Err(_) => PAGE_MAX,
        Ok(asked) => asked.min(PAGE_MAX),
    };
    let after = |stored: &Stored| stored.key.to_string().as_str() > token;
    let mut rest = all.into_iter().filter(after).map(|stored| image(stored, vms));
    let images: Vec<_> = rest.by_ref().take(size).collect();
    let next = images.last().filter(|_| rest.next().is_some()).map(|last| last.id.clone());
    v1::ListImagesResponse { images, next_page_token: next.unwrap_or_default() }
}

fn image(stored: Stored, vms: &[Arc<Vm>]) -> v1::Image {
    let Stored { key, place, used, found } = stored;
    let id = key.to_string();
    let is_of = |vm: &&Arc<Vm>| {
        vm.record.image.as_ref() == Some(&id) && !matches!(vm.status().phase, Phase::Ended(_))
    };
    let used_ms = used.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    v1::Image {
        snapshot: Some(listed(Listed { place, found })),
        used_unix_ms: u64::try_from(used_ms).unwrap_or(u64::MAX),
        vms: u32::try_from(vms.iter().filter(is_of).count()).unwrap_or(u32::MAX),
        id,
    }
}

/// What became of images.
#[must_use]
pub fn pruned(Pruned { removed, in_use, fetched_bytes }: &Pruned) -> v1::PruneImagesResponse {
    v1::PruneImagesResponse {
        removed: removed.iter().map(|stored| stored.key.to_string()).collect(),
        freed_kib: (removed.iter().map(Stored::bytes).sum::<u64>() + fetched_bytes) / KIB,
        in_use: in_use.iter().map(ToString::to_string).collect(),
    }
}
