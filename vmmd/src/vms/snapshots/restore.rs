//! Starts VMs from a snapshot: the master of a new family, and clones of it.
//!
//! ```text
//!  open ▶ images by content ▶ name, ports, family ▶ granted? ▶┬▶ load ────┬▶ master ▶ clones
//!                                                             └▶ warm VMs ┘
//! ```
//!
//! The master starts as a clone does, from a generation, and has vmid 0 of a new family. If it does
//! not start, nothing is left: no network, no folder, no warm VM. From then on the clones are like
//! those of any other call: each has an outcome of its own.

use super::while_wanted;
use crate::{
    net::ports::Bound,
    plan::place::RestoreSpec,
    process::{
        control_client::PATIENCE,
        generation::{Generation, PrefaultList},
        turns::Turn,
    },
    store::record::{FileId, Record},
    vms::{
        clone::{Outcome, Source, Times},
        create::{MASTER, Master, random, record},
        error::Error,
        host::Host,
        images,
        pool::OnTheWay,
        snapshot_data::{
            error::SnapshotError,
            fit,
            known::Users,
            load::{begin, hold_until_complete, load, missing_bytes},
            room::{self, Taken},
        },
        supervise::{Supervised, supervise},
        table::HeldName,
        tickets::Wanted,
        vm::Vm,
        warm::PoolSlot,
        warm_up::For,
    },
};
use patina_abi::ABI_SNAPSHOT;
use patina_proto::v1::EventKind;
use patina_snapshot::{directory::Snapshot, facts::HostFacts, manifest::ImageRef};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What came of a call that restores VMs.
#[derive(Debug)]
pub struct Restored {
    /// The master.
    pub master: Arc<Vm>,
    /// How it came to run.
    pub times: Times,
    /// What came of each of its clones, in the order of their vmids.
    pub clones: Vec<Outcome>,
}

/// A master that runs, and is not a VM for others yet.
pub(in crate::vms) struct Began {
    started: Supervised,
    turn: Option<Turn>,
    times: Times,
    source: Source,
    way: OnTheWay,
}

/// A snapshot that was opened, and the files of this host that its VMs need.
struct Opened {
    snapshot: Arc<Snapshot>,
    kernel: (PathBuf, FileId),
    rootfs: (PathBuf, FileId),
    needs: Option<Box<HostFacts>>,
}

impl Host {
    /// Starts VMs from a snapshot. The call arrived at `arrived_ns`
    /// ([`patina_control::monotonic_ns`]).
    ///
    /// # Errors
    /// The snapshot cannot be used, there is no room, or the master does not start. Then nothing is
    /// left.
    pub async fn restore(self: &Arc<Self>, spec: RestoreSpec, arrived_ns: u64) -> Result<Restored, Error> {
        // In a task of its own: a client that goes away does not cut the steps, or their undoing,
        // in half. It is heard of until the master starts.
        let abandoned = CancellationToken::new();
        let _left = abandoned.clone().drop_guard();
        let host = Arc::clone(self);
        tokio::spawn(host.restore_whole(spec, arrived_ns, abandoned)).await.map_err(|_| Error::Stopping)?
    }

    async fn restore_whole(
        self: Arc<Self>,
        spec: RestoreSpec,
        arrived_ns: u64,
        abandoned: CancellationToken,
    ) -> Result<Restored, Error> {
        self.adopted(PATIENCE).await?;
        let held_name = match &spec.name {
            Some(name) => self.table.reserve(name.as_str())?,
            None => self.table.reserve_any(random)?,
        };
        let host = Arc::clone(&self);
        let open = move || {
            let opened = host.open_snapshot(&spec)?;
            Ok((spec, opened))
        };
        let (spec, opened) = self.snapshot_disks.blocking(open).await?;
        let bound = Bound::bind(&spec.ports).await?;
        let family = Uuid::new_v4();
        let net = self.claim_family(family).await?;
        let record = record(held_name.name(), family, net, master(&spec, &opened));
        let restored =
            self.restore_family(record, held_name, bound, &opened, (&spec, arrived_ns), &abandoned).await;
        if restored.is_err() {
            self.leave_family(net, family, MASTER).await;
        }
        restored
    }

    /// Makes master and clones; on an error nothing of them is left but the family.
    async fn restore_family(
        self: &Arc<Self>,
        record: Record,
        held_name: HeldName,
        bound: Bound,
        opened: &Opened,
        (spec, arrived_ns): (&RestoreSpec, u64),
        abandoned: &CancellationToken,
    ) -> Result<Restored, Error> {
        // Its clones are granted before it runs.
        let coming = self.coming_masters.expect(record.family);
        let count = spec.count.saturating_sub(1);
        let slots = self.take_clone_slots(&record, count)?;
        let on_the_way = self.on_the_way(count);
        let vmids: Vec<u32> = slots.iter().map(|slot| slot.vmid).collect();
        let (admitted, ticket) = if vmids.is_empty() {
            (None, None)
        } else {
            let admitted = match self.write_vmids(&record).await {
                Ok(()) => self.tickets.admit(&record, Wanted::Count(count), vmids).await,
                Err(error) => Err((error, true)),
            };
            match admitted {
                Ok((admitted, ticket)) => (Some(admitted), Some(ticket)),
                Err((error, is_unused)) => {
                    self.refuse_clone_slots(&record, slots, is_unused).await;
                    return Err(error);
                }
            }
        };
        // Warm VMs are made while the memory is loaded. The master's comes first: if there is one
        // spare vmm only, it is for the master.
        let master_slot = self.new_master(&record);
        let slots = self.fill_clone_slots(&record, slots, For::NewFamily);
        let started = self
            .start_master((&record, master_slot), held_name, bound, opened, (arrived_ns, abandoned))
            .await;
        let (master, times, source) = match started {
            Ok(started) => started,
            Err(error) => {
                let is_unused = match admitted {
                    Some(admitted) => admitted.give_back().await,
                    None => true,
                };
                self.return_clone_slots(&record, slots, is_unused).await;
                return Err(error);
            }
        };
        drop(coming);
        let reservations = admitted.map(|admitted| admitted.into_reservations()).unwrap_or_default();
        let source = Source { ticket, ..source };
        let clones = self.make_clones(&source, slots, reservations, on_the_way).await;
        let failed = clones.iter().filter(|clone| clone.made.is_err()).count();
        self.metrics.clones((clones.len() - failed) as u64, failed as u64);
        tracing::info!(
            vm = record.name,
            family = %record.family,
            place = %spec.place.display(),
            clones = clones.len(),
            failed,
            executing_us = times.executing.as_micros(),
            "restored"
        );
        Ok(Restored { master, times, clones })
    }

    /// Makes the family's master of the snapshot.
    async fn start_master(
        self: &Arc<Self>,
        master: (&Record, PoolSlot),
        held_name: HeldName,
        bound: Bound,
        opened: &Opened,
        (arrived_ns, abandoned): (u64, &CancellationToken),
    ) -> Result<(Arc<Vm>, Times, Source), Error> {
        let began = self.begin_master(master, &opened.snapshot, arrived_ns, abandoned).await?;
        let presented = self.present_master(began, held_name, bound);
        let text = format!("from {}", opened.snapshot.place().display());
        self.tell(&presented.0.record, EventKind::Restored, text);
        Ok(presented)
    }

    /// The warm VM that a new family's master will be.
    pub(in crate::vms) fn new_master(self: &Arc<Self>, record: &Record) -> PoolSlot {
        self.make_warm(record, MASTER, record.name.clone(), For::NewFamily).0
    }

    /// Starts the family's master from the snapshot; on an error nothing of it is left.
    pub(in crate::vms) async fn begin_master(
        self: &Arc<Self>,
        (record, pool_slot): (&Record, PoolSlot),
        snapshot: &Arc<Snapshot>,
        arrived_ns: u64,
        abandoned: &CancellationToken,
    ) -> Result<Began, Error> {
        let way = OnTheWay::new(&self.on_the_way);
        let loaded = self.load(Arc::clone(snapshot), record, abandoned.clone()).await;
        let (generation, prefault_list) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                pool_slot.discard().await;
                return Err(error);
            }
        };
        let warm = pool_slot.warm().await?;
        if abandoned.is_cancelled() {
            warm.discard().await;
            return Err(SnapshotError::Abandoned(snapshot.place().to_owned()).into());
        }
        let parent = record.clone();
        let (parent_host, ticket) = (None, None);
        let source =
            Source { parent, generation, prefault_list, parent_host, ticket, request: None, arrived_ns };
        let (started, turn, times) = self.start_clone(&source, warm, record.clone()).await?;
        Ok(Began { started, turn, times, source, way })
    }

    /// Makes a VM of what was started.
    pub(in crate::vms) fn present_master(
        self: &Arc<Self>,
        began: Began,
        held_name: HeldName,
        bound: Bound,
    ) -> (Arc<Vm>, Times, Source) {
        let Began { started, turn, times, source, way } = began;
        let vm = self.supervise_master(started, bound);
        held_name.fill(Arc::clone(&vm));
        way.until_ready(Arc::clone(&vm), turn);
        (vm, times, source)
    }

    fn supervise_master(self: &Arc<Self>, started: Supervised, bound: Bound) -> Arc<Vm> {
        let published = started.record.net.ip(MASTER).map(|ip| bound.serve(ip));
        supervise(self, Supervised { published, ..started })
    }

    /// Loads the memory, and gives the family the list of pages that its clones write first.
    async fn load(
        self: &Arc<Self>,
        snapshot: Arc<Snapshot>,
        record: &Record,
        abandoned: CancellationToken,
    ) -> Result<(Generation, Arc<PrefaultList>), Error> {
        let host = Arc::clone(self);
        let taken = self.take_room(&snapshot)?;
        let begun = begin(&self.pager, &snapshot).await;
        let loaded = self.snapshot_disks.blocking(move || {
            let generation = match begun {
                Some(begun) => begun,
                None => load(&snapshot, &while_wanted(&abandoned))?,
            };
            host.note_layers(&snapshot, &generation)?;
            let list = &snapshot.manifest().description.prefault_list;
            let list = (!list.is_empty()).then(|| PrefaultList::of(list)).transpose()?;
            Ok((generation, list))
        });
        let (generation, list) = loaded.await?;
        hold_until_complete(taken, &generation);
        if let Some(list) = list {
            self.table.set_prefault_list(record.net.index, record.family, Some(list));
        }
        let list = self.table.prefault_list(record.net.index, record.family);
        Ok((generation, list.unwrap_or_else(|| Arc::clone(&self.no_list))))
    }

    /// Takes the memory that the layers of a snapshot need which are not there already.
    fn take_room(&self, snapshot: &Snapshot) -> Result<Taken, SnapshotError> {
        let place = || snapshot.place().to_owned();
        let available =
            room::available().map_err(|source| SnapshotError::Memory { place: place(), source })?;
        let taken = self.room.take(missing_bytes(&self.pager, snapshot), available);
        taken.map_err(|source| SnapshotError::NoRoom { place: place(), source })
    }

    /// A snapshot of a restored VM need not write what is in this one.
    fn note_layers(&self, snapshot: &Snapshot, generation: &Generation) -> Result<(), SnapshotError> {
        for (number, layer) in generation.open()?.layers.iter().enumerate() {
            if let Some(known) = snapshot.known_layer(number)? {
                self.known_layers.note(layer, Users::All, known);
            }
        }
        Ok(())
    }

    /// Opens a snapshot and finds what its VMs need of this host. To be called where it may block.
    fn open_snapshot(&self, spec: &RestoreSpec) -> Result<Opened, SnapshotError> {
        let snapshot = Snapshot::open(&spec.place)?;
        let of = &snapshot.manifest().description;
        if of.agent_abi < ABI_SNAPSHOT {
            let place = spec.place.clone();
            return Err(SnapshotError::SnapshotOfOldAgent { place, abi: of.agent_abi });
        }
        let needs = fit::needs(&snapshot)?;
        fit::check(&snapshot, &needs)?;
        let images = &self.settings.images;
        let find = |field, wanted, given: &Option<PathBuf>, own| {
            self.find_image_by_content(&spec.place, (field, wanted), given.as_deref(), own)
        };
        let kernel = find("kernel", &of.kernel, &spec.kernel, &images.kernel)?;
        let rootfs = find("rootfs", &of.rootfs, &spec.rootfs, &images.rootfs)?;
        Ok(Opened { snapshot: Arc::new(snapshot), kernel, rootfs, needs: fit::of_record(&needs) })
    }

    /// Finds the file with the content that the VM had: the one that the request names, or else the
    /// one that the VM had, or else the host's own.
    pub(in crate::vms) fn find_image_by_content(
        &self,
        place: &Path,
        (field, wanted): (&'static str, &ImageRef),
        given: Option<&Path>,
        own: &Path,
    ) -> Result<(PathBuf, FileId), SnapshotError> {
        let candidates = match given {
            Some(given) => vec![given],
            None if wanted.path == own => vec![own],
            None => vec![wanted.path.as_path(), own],
        };
        let mut tried = Vec::new();
        for path in candidates {
            match open_image(field, path) {
                Ok((path, file)) => {
                    let (digest, id) = self.digest_of(field, &path, &file)?;
                    if digest == wanted.digest {
                        return Ok((path, id));
                    }
                    tried.push(format!("{} has other content", path.display()));
                }
                Err(error) => tried.push(patina_daemon::chain(&error)),
            }
        }
        let (place, tried) = (place.to_owned(), tried.join(", "));
        Err(SnapshotError::NoImage { place, field, wanted: wanted.digest, tried })
    }
}

/// Opens a kernel or a root file system where links lead to.
fn open_image(field: &'static str, path: &Path) -> Result<(PathBuf, File), images::ImageError> {
    let path = images::real_path(field, path)?;
    let file = match field {
        "kernel" => images::open_kernel(&path)?.0,
        _ => images::open_rootfs(&path)?.0,
    };
    Ok((path, file))
}

fn master(spec: &RestoreSpec, opened: &Opened) -> Master {
    let of = &opened.snapshot.manifest().description;
    Master {
        vcpus: of.vcpus,
        memory_mib: of.memory_mib,
        cmdline: of.cmdline.clone(),
        ports: spec.ports.clone(),
        kernel: opened.kernel.clone(),
        rootfs: opened.rootfs.clone(),
        snapshot: Some(opened.snapshot.place().to_owned()),
        cpu_baseline: Vec::new(),
        needs: opened.needs.clone(),
    }
}
