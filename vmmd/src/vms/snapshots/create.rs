//! Keeps a VM in a snapshot.
//!
//! ```text
//!  place free? ▶ ready? ▶ images by content ▶ freeze ▶ the VM goes on ▶ write ▶ note the layers
//! ```
//!
//! The VM is frozen as for clones, and its agent prepares as for clones: no program runs in a
//! restored VM before it has its identity. There are no clones, so nobody is asked for room.

use super::{shelf::Shown, while_wanted};
use crate::{
    process::{
        control_client::PATIENCE,
        generation::{Generation, PrefaultList},
    },
    store::record::{FileId, Record},
    vms::{
        error::Error,
        host::Host,
        images,
        snapshot_data::{
            describe::{PREPARE, check_agent, describe},
            error::SnapshotError,
            known::Users,
        },
        vm::Vm,
    },
};
use patina_control::{PAGE_BYTES, messages::Frozen};
use patina_proto::v1::EventKind;
use patina_snapshot::{
    directory::{self, CreateError, Created},
    manifest::{Description, ImageRef},
};
use rustix::{
    fs::{Access, access},
    io::Errno,
};
use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// What came of a call for a snapshot.
#[derive(Debug)]
pub struct Kept {
    /// What was written.
    pub created: Created,
    /// The same as others see it.
    pub shown: Shown,
    /// How long it took from asking the vmm to having the generation.
    pub freeze: Duration,
    /// What the vmm says of the freeze.
    pub frozen: Frozen,
}

impl Host {
    /// Keeps a VM in a snapshot at `place`. The VM goes on.
    ///
    /// # Errors
    /// Nothing can be made there, the VM cannot be frozen, or the disk is full. Then nothing is
    /// left.
    pub async fn create_snapshot(self: &Arc<Self>, vm: Arc<Vm>, place: PathBuf) -> Result<Kept, Error> {
        // In a task of its own: a client that goes away does not cut the steps in half. It is heard
        // of, though.
        let abandoned = CancellationToken::new();
        let _left = abandoned.clone().drop_guard();
        let host = Arc::clone(self);
        tokio::spawn(host.create_snapshot_whole(vm, place, abandoned)).await.map_err(|_| Error::Stopping)?
    }

    async fn create_snapshot_whole(
        self: Arc<Self>,
        vm: Arc<Vm>,
        place: PathBuf,
        abandoned: CancellationToken,
    ) -> Result<Kept, Error> {
        self.adopted(PATIENCE).await?;
        // What can be refused at once is refused before the VM is disturbed.
        let free = place.clone();
        self.snapshot_disks.blocking(move || Ok(check_place(&free)?)).await?;
        let abandon = || Error::Abandoned(vm.record.name.clone());
        abandoned.run_until_cancelled(vm.check_clonable(PATIENCE)).await.ok_or_else(abandon)??;
        let images = self.images_of(&vm.record).await?;

        let turn = abandoned.run_until_cancelled(vm.cloning.lock()).await.ok_or_else(abandon)?;
        let freezing = self.freeze(&vm, Some(PREPARE), &abandoned).await;
        let freeze = freezing.took();
        // The vmm looks at its last generation: before the next call may freeze the VM, if that is
        // complete.
        let mut free = None;
        if let Ok((frozen, generation)) = &freezing.result
            && generation.filling().is_empty()
        {
            free = Some(self.free_pages(&vm, *frozen).await);
        }
        // The image is complete, or there is none: the next call may freeze the VM while it is
        // written.
        drop(turn);
        vm.connect_ahead();
        let (frozen, generation) = freezing.result?;
        self.metrics
            .pause(Duration::from_micros(frozen.pause_us), frozen.copied_pages.saturating_mul(PAGE_BYTES));
        check_agent(&vm.record, frozen)?;
        // A page that has not arrived yet would be written as one of zeros.
        let completed = abandoned.run_until_cancelled(generation.completed()).await.ok_or_else(abandon)?;
        completed.map_err(SnapshotError::Generation)?;
        let free = match free {
            Some(free) => free,
            None => self.free_pages(&vm, frozen).await,
        };
        let list = self.table.prefault_list(vm.record.net.index, vm.record.family);
        let (host, record) = (Arc::clone(&self), vm.record.clone());
        let write = move || {
            let prefault_list = match list {
                Some(list) => PrefaultList::read(list.open()?.into())?,
                None => Vec::new(),
            };
            let description = describe(&record, images, frozen, prefault_list);
            let image = (&generation, &free[..]);
            let created =
                host.write_snapshot(&place, (&record, &description), image, &while_wanted(&abandoned))?;
            let shown = Shown::at(&created.place)?;
            Ok((created, shown))
        };
        let (created, shown) = self.snapshot_disks.blocking(write).await?;
        let text = format!("{}, paused for {} us", created.place.display(), frozen.pause_us);
        self.tell(&vm.record, EventKind::Snapshot, text);
        tracing::info!(
            vm = vm.record.name,
            place = %created.place.display(),
            freeze_us = freeze.as_micros(),
            frozen.pause_us,
            layers = created.manifest.layers.len(),
            linked = created.linked,
            read_bytes = created.read_bytes,
            free_bytes = created.all_free_bytes(),
            "kept in a snapshot"
        );
        Ok(Kept { created, shown, freeze, frozen })
    }

    pub(in crate::vms) fn write_snapshot(
        &self,
        place: &Path,
        (record, description): (&Record, &Description),
        (generation, free): (&Generation, &[Range<u64>]),
        watch: directory::Watch<'_>,
    ) -> Result<Created, SnapshotError> {
        let opened = generation.open()?;
        let layers: Vec<&File> = opened.layers.iter().collect();
        let found: Vec<_> = layers.iter().map(|layer| self.known_layers.find(layer, record)).collect();
        let mut reuse = |number: usize| found.get(number)?.as_ref().map(|(_, layer)| layer.clone());
        let layers_without = (&layers[..], free);
        let created =
            directory::create(place, description, &opened.state, layers_without, &mut reuse, watch)?;
        for (number, (layer, known)) in layers.into_iter().zip(&created.known).enumerate() {
            let users = match (created.free_bytes.get(number), found.get(number)) {
                (Some(Some(0)), _) => Users::All,
                // The file is the one that was found.
                (Some(None), Some(Some((users, _)))) => *users,
                _ => Users::only(record),
            };
            self.known_layers.note(layer, users, known.clone());
        }
        Ok(created)
    }

    /// Kernel and root file system of a VM, by their content.
    ///
    /// # Errors
    /// They cannot be read, or were changed since the VM was started.
    pub(in crate::vms) async fn images_of(self: &Arc<Self>, record: &Record) -> Result<[ImageRef; 2], Error> {
        let (host, record) = (Arc::clone(self), record.clone());
        self.image_disks.blocking(move || Ok(host.name_images(&record)?)).await
    }

    /// To be called where it may block.
    fn name_images(&self, record: &Record) -> Result<[ImageRef; 2], SnapshotError> {
        let (kernel, kernel_file) = images::open_kernel(&record.kernel)?;
        if record.kernel_file.is_some_and(|was| was != kernel_file) {
            let (name, path) = (record.name.clone(), record.kernel.clone());
            return Err(SnapshotError::KernelChanged { name, path });
        }
        let rootfs = images::open_rootfs_again(&record.rootfs, record.rootfs_file)?;
        Ok([
            ImageRef {
                digest: self.digest_of("kernel", &record.kernel, &kernel)?.0,
                path: record.kernel.clone(),
            },
            ImageRef {
                digest: self.digest_of("rootfs", &record.rootfs, &rootfs)?.0,
                path: record.rootfs.clone(),
            },
        ])
    }

    /// What a file is by its content, and which file it is. To be called where it may block.
    pub(in crate::vms) fn digest_of(
        &self,
        field: &'static str,
        path: &Path,
        file: &File,
    ) -> Result<(blake3::Hash, FileId), SnapshotError> {
        self.digests.of(file).map_err(|source| SnapshotError::Digest { field, path: path.to_owned(), source })
    }
}

/// Whether a snapshot can be made there, as far as can be told before it is written.
fn check_place(place: &Path) -> Result<(), SnapshotError> {
    let bad = |source| SnapshotError::Place { place: place.to_owned(), source };
    let Some(parent) = place.parent() else { return Err(CreateError::Place(place.to_owned()).into()) };
    if !fs::metadata(parent).map_err(bad)?.is_dir() {
        return Err(bad(Errno::NOTDIR.into()));
    }
    match fs::symlink_metadata(place) {
        Ok(_) => return Err(CreateError::Exists(place.to_owned()).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(bad(error)),
    }
    access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| bad(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::record::tests::sample, vms::snapshot_data::error::Fault};
    use patina_abi::ABI_SNAPSHOT;

    #[test]
    fn a_place_that_cannot_be_used_is_refused_before_the_vm_is_frozen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(check_place(&at("new")).is_ok());
        fs::write(at("file"), b"x").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        for (place, fault) in [
            (at("file"), Fault::Exists),
            (at("link"), Fault::Exists),
            (at("none/new"), Fault::Place),
            (at("file/new"), Fault::Place),
            ("/".into(), Fault::Place),
        ] {
            let error = check_place(&place).unwrap_err();
            assert_eq!(error.fault(), fault, "{error}");
        }
    }

    #[test]
    fn a_vm_whose_agent_would_not_notice_is_refused_with_what_to_do() {
        let frozen =
            |agent_abi| Frozen { pause_us: 1, copied_pages: 0, copied_beside_pages: 0, agent_abi, number: 0 };
        assert!(check_agent(&sample("web"), frozen(ABI_SNAPSHOT)).is_ok());
        let error = check_agent(&sample("web"), frozen(ABI_SNAPSHOT - 1)).unwrap_err();
        assert_eq!(error.fault(), Fault::Unfit);
        assert!(
            error.to_string().contains("speaks ABI 3") && error.to_string().contains("build its image anew"),
            "{error}"
        );
        let error = check_agent(&sample("web"), frozen(0)).unwrap_err();
        assert!(error.to_string().contains("boot the VM anew"), "{error}");
    }
}
