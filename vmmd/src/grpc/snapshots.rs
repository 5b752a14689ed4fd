//! Converts snapshots to messages.

use super::convert::{outcome, us};
use crate::vms::{
    clone::{Made, Outcome},
    snapshot_data::error::SnapshotError,
    snapshots::{create::Kept, restore::Restored, shelf::Shown},
};
use patina_daemon::chain;
use patina_proto::v1;
use patina_snapshot::{
    directory::{Listed, Report, Usage},
    facts::{self, HostFacts},
    manifest::{ImageRef, Layer, Manifest, RUN_BYTES},
};
use std::path::Path;

/// Most snapshots on a page: the longest fit into the largest message that clients take.
pub(super) const PAGE_MAX: usize = 200;
const KIB: u64 = 1024;

/// What came of keeping a VM.
#[must_use]
pub fn kept(kept: Kept) -> v1::CreateSnapshotResponse {
    let Kept { created, shown: snapshot, freeze, frozen } = kept;
    let written = created.manifest.layers.len().saturating_sub(created.linked);
    let free_bytes = created.all_free_bytes();
    v1::CreateSnapshotResponse {
        snapshot: Some(shown(&snapshot)),
        freeze_us: us(freeze),
        pause_us: frozen.pause_us,
        written_layers: u32::try_from(written).unwrap_or(u32::MAX),
        written_kib: created.read_bytes.saturating_sub(free_bytes) / KIB,
        free_kib: free_bytes / KIB,
    }
}

/// What came of restoring VMs.
#[must_use]
pub fn restored(restored: Restored) -> v1::RestoreSnapshotResponse {
    let Restored { master, times, clones } = restored;
    let first = Outcome { vmid: master.record.vmid, made: Ok((Made::Here(master), times)) };
    v1::RestoreSnapshotResponse { vms: std::iter::once(first).chain(clones).map(outcome).collect() }
}

/// What a snapshot says of itself.
#[must_use]
pub fn shown(Shown { place, manifest, usage, needs }: &Shown) -> v1::Snapshot {
    let host = match needs {
        Ok((needs, refusal)) => host(needs, refusal.as_ref()),
        Err(error) => v1::SnapshotHost { problem: chain(error), ..v1::SnapshotHost::default() },
    };
    v1::Snapshot { host: Some(host), ..of(place, manifest, *usage) }
}

fn host(needs: &HostFacts, refusal: Option<&SnapshotError>) -> v1::SnapshotHost {
    v1::SnapshotHost {
        cpu: needs.cpu(),
        kvm: facts::name(needs.kvm_kind).to_owned(),
        kernel: needs.kernel.clone(),
        tsc_khz: needs.tsc_khz,
        xcr0: needs.xcr0,
        problem: refusal.map(|refusal| chain(refusal)).unwrap_or_default(),
    }
}

/// A snapshot that is whole.
#[must_use]
pub fn verified((snapshot, report): &(Shown, Report)) -> v1::VerifySnapshotResponse {
    v1::VerifySnapshotResponse { snapshot: Some(shown(snapshot)), checked_kib: report.bytes / KIB }
}

/// How many snapshots there are on a page of which a client asks for so many.
#[must_use]
pub fn page_size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => PAGE_MAX,
        Ok(asked) => asked.min(PAGE_MAX),
    }
}

/// A page of `size` snapshots. If `from` has more, which are in the order of their paths, there is
/// a next page.
#[must_use]
pub fn page(from: Vec<Listed>, size: usize) -> v1::ListSnapshotsResponse {
    let mut rest = from.into_iter().map(listed);
    let snapshots: Vec<_> = rest.by_ref().take(size).collect();
    let next = snapshots.last().filter(|_| rest.next().is_some()).map(|last| last.path.clone());
    v1::ListSnapshotsResponse { snapshots, next_page_token: next.unwrap_or_default() }
}

pub(super) fn listed(Listed { place, found }: Listed) -> v1::Snapshot {
    match found {
        Ok((manifest, usage)) => of(&place, &manifest, usage),
        Err(error) => v1::Snapshot {
            path: place.display().to_string(),
            problem: chain(&error),
            ..v1::Snapshot::default()
        },
    }
}

fn of(place: &Path, manifest: &Manifest, usage: Usage) -> v1::Snapshot {
    let of = &manifest.description;
    v1::Snapshot {
        path: place.display().to_string(),
        uuid: of.uuid.to_string(),
        vm: of.name.clone(),
        created_unix_ms: of.created_unix_ms,
        vcpus: of.vcpus.into(),
        memory_mib: of.memory_mib,
        cmdline: of.cmdline.clone(),
        kernel: Some(image(&of.kernel)),
        rootfs: Some(image(&of.rootfs)),
        agent_abi: of.agent_abi,
        layers: manifest.layers.iter().map(|part| layer(part)).collect(),
        problem: String::new(),
        own_kib: usage.own_bytes / KIB,
        shared_kib: usage.shared_bytes / KIB,
        host: None,
    }
}

fn image(ImageRef { digest, path }: &ImageRef) -> v1::SnapshotImage {
    v1::SnapshotImage { digest: digest.to_string(), path: path.display().to_string() }
}

fn layer(layer: &Layer) -> v1::SnapshotLayer {
    v1::SnapshotLayer { id: layer.id().to_string(), data_kib: layer.runs().present() * RUN_BYTES / KIB }
}
