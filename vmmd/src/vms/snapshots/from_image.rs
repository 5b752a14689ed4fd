//! Starts a VM from an image of its kind, if there is one, instead of booting it.
//!
//! The VM is the master of a new family, as a restored one is. An image that cannot be used costs
//! time only: the VM then boots.

use super::restore::Began;
use crate::{
    net::ports::Bound,
    plan::spec::Spec,
    process::control_client::ControlError,
    store::record::{FileId, Record},
    vms::{
        blocking::blocking,
        error::Error,
        host::Host,
        image_cache::{
            cache::{ImageCache, Making},
            key::{Key, Kind},
            way::{Files, Way},
        },
        snapshot_data::error::{Fault, SnapshotError},
        table::HeldName,
        vm::{Until, Vm},
    },
};
use patina_control::monotonic_ns;
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use patina_snapshot::{directory::Snapshot, facts::HostFacts, manifest::ImageRef};
use std::{fs::File, sync::Arc};
use tokio_util::sync::CancellationToken;

impl Host {
    /// How a VM of this kind comes to run; `needs` is what it needs if it has a CPU baseline. To be
    /// called where it may block: files that are not known yet are read whole.
    pub(in crate::vms) fn way(&self, spec: &Spec, needs: Option<&HostFacts>, files: &Files) -> Way {
        let Some(cache) = self.image_cache.as_ref().filter(|_| !spec.cold) else { return Way::Boot };
        match self.look_for_image(cache, (spec, needs), files) {
            Ok(way) => way,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "whether there is an image is not known; the VM boots");
                Way::Boot
            }
        }
    }

    fn look_for_image(
        &self,
        cache: &ImageCache,
        (spec, needs): (&Spec, Option<&HostFacts>),
        files: &Files,
    ) -> Result<Way, SnapshotError> {
        let digest = |field, path, (file, id): &(File, FileId)| {
            let (digest, read) = self.digest_of(field, path, file)?;
            // It was opened a moment ago, and written to since.
            if read == *id { Ok(digest) } else { Err(changed(field, path)) }
        };
        let images = [
            ImageRef { digest: digest("kernel", &spec.kernel, &files.kernel)?, path: spec.kernel.clone() },
            ImageRef { digest: digest("rootfs", &spec.rootfs, &files.rootfs)?, path: spec.rootfs.clone() },
        ];
        let key = self.key_of(&images, &spec.cmdline, (spec.vcpus, spec.memory_mib), needs)?;
        let fits = |snapshot: &Snapshot| {
            let of = &snapshot.manifest().description;
            (of.vcpus, of.memory_mib, of.cmdline.as_str()) == (spec.vcpus, spec.memory_mib, &spec.cmdline)
                && [of.kernel.digest, of.rootfs.digest] == images.each_ref().map(|image| image.digest)
        };
        if let Some(snapshot) = cache.find(key) {
            if fits(&snapshot) {
                return Ok(Way::Image(key, snapshot, images));
            }
            drop(snapshot);
            cache.discard(key, "it is an image of another kind of VM");
        }
        Ok(cache.begin(key).map_or(Way::Boot, |making| Way::Keep(making, images)))
    }

    /// The key of VMs with these images, kernel first. `needs` is what those with a CPU baseline
    /// need.
    pub(in crate::vms) fn key_of(
        &self,
        [kernel, rootfs]: &[ImageRef; 2],
        cmdline: &str,
        (vcpus, memory_mib): (u8, u32),
        needs: Option<&HostFacts>,
    ) -> Result<Key, SnapshotError> {
        let path = &self.settings.vmm;
        let program = File::open(path);
        let program =
            program.map_err(|source| SnapshotError::Digest { field: "vmm", path: path.clone(), source })?;
        let (vmm, _) = self.digest_of("vmm", path, &program)?;
        let host = self.settings.host_kind.as_str();
        let (kernel, rootfs) = (kernel.digest, rootfs.digest);
        Ok(Key::of(&Kind { kernel, rootfs, vmm, cmdline, vcpus, memory_mib, host, needs }))
    }

    /// Starts a VM from an image.
    ///
    /// # Errors
    /// It does not start from it. Nothing of it is left, and it can be booted.
    pub(in crate::vms) async fn begin_from_image(
        self: &Arc<Self>,
        record: &Record,
        (key, snapshot): (Key, &Arc<Snapshot>),
    ) -> Result<Began, Error> {
        if let Some(cache) = &self.image_cache {
            cache.used(key);
        }
        let record = Record { image: Some(key.to_string()), ..record.clone() };
        let master = (&record, self.new_master(&record));
        self.begin_master(master, snapshot, monotonic_ns(), &CancellationToken::new()).await
    }

    /// Makes a VM of what was started from an image.
    pub(in crate::vms) fn present_from_image(
        self: &Arc<Self>,
        began: Began,
        held_name: HeldName,
        bound: Bound,
        (key, snapshot): (Key, Arc<Snapshot>),
    ) -> Arc<Vm> {
        let (vm, times, source) = self.present_master(began, held_name, bound);
        let (memory_mib, vcpus) = (vm.record.memory_mib, vm.record.vcpus);
        let text = format!("{memory_mib} MiB, {vcpus} vCPUs, from image {key}");
        self.tell(&vm.record, EventKind::Created, text);
        tracing::info!(vm = vm.record.name, image = %key, executing_us = times.executing.as_micros(), "started from an image");
        let ended = Arc::clone(&vm);
        tokio::spawn(async move {
            // As long as memory arrives from its files, the image is locked, and so stays.
            tokio::select! {
                completed = source.generation.completed() => if let Err(error) = completed {
                    tracing::debug!(error = %chain(&error), "some of the memory does not arrive");
                },
                _ = ended.wait(Until::Ended) => {}
            }
            drop(snapshot);
        });
        vm
    }

    /// A VM did not start from an image: it boots. If the image is the reason, it goes, and the VM
    /// may be kept as another one.
    pub(in crate::vms) async fn note_failed_image(
        self: &Arc<Self>,
        name: &str,
        (key, snapshot): (Key, Arc<Snapshot>),
        error: &Error,
    ) -> Option<Making> {
        tracing::warn!(vm = name, image = %key, error = %chain(error), "it does not start from the image; it boots");
        drop(snapshot);
        let is_to_blame = match error {
            Error::Snapshot(error) => {
                !matches!(error.fault(), Fault::Host | Fault::NoSpace | Fault::NoMemory | Fault::Cancelled)
            }
            Error::Start { source: ControlError::Died(exit), .. } => !exit.is_kill(),
            Error::Start { source, .. } => {
                matches!(source, ControlError::Refused(_) | ControlError::Memory(_) | ControlError::Lost(_))
            }
            _ => false,
        };
        if !is_to_blame {
            return None;
        }
        self.discard_image(&key.to_string(), "no VM starts from it").await;
        self.image_cache.as_ref()?.begin(key)
    }

    /// Removes an image that turned out to be of no use.
    pub(in crate::vms) async fn discard_image(self: &Arc<Self>, image: &str, why: &'static str) {
        let (host, Some(key)) = (Arc::clone(self), Key::parse(image)) else { return };
        let discarded = blocking(move || {
            if let Some(cache) = &host.image_cache {
                cache.discard(key, why);
            }
            Ok(())
        });
        if discarded.await.is_err() {
            tracing::debug!(image, "vmmd stops; its next VM finds out");
        }
    }

    /// Keeps an image where it is until a VM that an earlier `vmmd` started from it has ended.
    pub(in crate::vms) fn hold_image(self: &Arc<Self>, vm: &Arc<Vm>) {
        let Some((cache, key)) =
            self.image_cache.as_ref().zip(vm.record.image.as_deref().and_then(Key::parse))
        else {
            return;
        };
        let (place, vm) = (cache.place(key), Arc::clone(vm));
        tokio::spawn(async move {
            let held = blocking(move || Ok(Snapshot::open(&place).map_err(SnapshotError::Open)?)).await;
            if held.is_ok() && vm.wait(Until::Ended).await.is_err() {
                tracing::debug!(vm = vm.record.name, "vmmd stops");
            }
        });
    }
}

fn changed(field: &'static str, path: &std::path::Path) -> SnapshotError {
    let source = std::io::Error::other("it was written to since it was opened; try again");
    SnapshotError::Digest { field, path: path.to_owned(), source }
}
