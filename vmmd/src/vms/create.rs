//! Creating a VM: all steps succeed, or all are undone.
//!
//! ```text
//!  check images ▶ name ▶ ports ▶ /dev/kvm ▶ family number, bridge ▶ folder ▶ tap ▶ record
//!      ▶ process ▶ record
//! ```
//!
//! The record is written twice. If `vmmd` is killed before the second time, the next one finds a
//! half-made VM and removes it; no caller has seen it yet.

use super::{
    blocking::blocking,
    booted::keep::Keep,
    error::Error,
    host::Host,
    image_cache::{
        cache::Making,
        way::{Files as Opened, Way},
    },
    images,
    parts::parts,
    supervise::{Supervised, supervise},
    table::HeldName,
    vm::Vm,
};
use crate::{
    clock::unix_ms,
    net::ports::Bound,
    plan::{
        address::FamilyNet,
        baseline::Baseline,
        lifecycle::Lifecycle,
        spec::{Port, Spec},
    },
    process::{
        Process,
        control_client::PATIENCE,
        spawn::{self, Start},
        urgency::Urgency,
    },
    store::{
        Lasting, VmDir,
        record::{FORMAT, FileId, Record},
    },
};
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use patina_snapshot::{facts::HostFacts, manifest::ImageRef};
use std::{fs::File, path::PathBuf, sync::Arc};
use uuid::Uuid;

/// The vmid of a family's first VM.
pub(super) const MASTER: u32 = 0;

/// What a master needs from the host's files.
struct Files {
    kvm: File,
    start: Start,
    rootfs: File,
}

impl Files {
    fn to_boot(kvm: File, spec: Spec, files: Opened, cpu_baseline: Option<Box<HostFacts>>) -> Self {
        let Opened { kernel: (kernel, _), rootfs: (rootfs, _) } = files;
        Self { kvm, start: Start::Boot { kernel, cmdline: spec.cmdline, cpu_baseline }, rootfs }
    }
}

impl Host {
    /// Makes the master of a new family and starts it.
    ///
    /// # Errors
    /// A step failed; nothing of the VM is left.
    pub async fn create(self: &Arc<Self>, spec: Spec) -> Result<Arc<Vm>, Error> {
        // In a task of its own: a client that goes away does not cut the steps, or their undoing,
        // in half.
        let host = Arc::clone(self);
        tokio::spawn(host.create_whole(spec)).await.map_err(|_| Error::Stopping)?
    }

    async fn create_whole(self: Arc<Self>, spec: Spec) -> Result<Arc<Vm>, Error> {
        self.adopted(PATIENCE).await?;
        let held_name = match &spec.name {
            Some(name) => self.table.reserve(name.as_str())?,
            None => self.table.reserve_any(random)?,
        };
        let baseline = match &spec.cpu_baseline {
            Some(hosts) => Some(self.baseline(hosts).await?),
            None => None,
        };
        let (needs, cpu_baseline) = baseline.map(|Baseline { needs, hosts }| (needs, hosts)).unzip();
        let (host, of) = (Arc::clone(&self), needs.clone());
        let open = move || {
            let (spec, kvm, files) = open_files(spec)?;
            let way = host.way(&spec, of.as_deref(), &files);
            Ok((spec, kvm, files, way))
        };
        let (spec, kvm, files, way) = self.image_disks.blocking(open).await?;
        let bound = Bound::bind(&spec.ports).await?;
        let family = Uuid::new_v4();
        let net = self.claim_family(family).await?;
        let master = Master {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            cmdline: spec.cmdline.clone(),
            ports: spec.ports.clone(),
            kernel: (spec.kernel.clone(), files.kernel.1),
            rootfs: (spec.rootfs.clone(), files.rootfs.1),
            snapshot: None,
            cpu_baseline: cpu_baseline.unwrap_or_default(),
            needs: needs.clone(),
        };
        let record = record(held_name.name(), family, net, master);
        self.load_prefault_list(&record).await;
        let keep = match way {
            Way::Image(key, snapshot, images) => match self.begin_from_image(&record, (key, &snapshot)).await
            {
                Ok(began) => {
                    return Ok(self.present_from_image(began, held_name, bound, (key, snapshot)));
                }
                Err(error) => {
                    let making = self.note_failed_image(&record.name, (key, snapshot), &error).await;
                    making.map(|making| (making, images))
                }
            },
            Way::Keep(making, images) => Some((making, images)),
            Way::Boot => None,
        };
        self.boot(record, held_name, bound, Files::to_boot(kvm, spec, files, needs), keep).await
    }

    /// Boots the master of a new family; on an error nothing of that is left.
    async fn boot(
        self: Arc<Self>,
        record: Record,
        held_name: HeldName,
        bound: Bound,
        files: Files,
        keep: Option<(Making, [ImageRef; 2])>,
    ) -> Result<Arc<Vm>, Error> {
        let (net, family) = (record.net, record.family);
        let (dir, record, process) = match self.start(record, files).await {
            Ok(started) => started,
            Err(error) => {
                self.leave_family(net, family, MASTER).await;
                return Err(error);
            }
        };
        let life = Lifecycle::running(None);
        let (published, keep) = match keep {
            Some((making, images)) => (None, Some(Keep::new(making, images, bound))),
            None => (net.ip(MASTER).map(|ip| bound.serve(ip)), None),
        };
        let (control, vmm_version, reservation) = (None, None, None);
        let started = Supervised {
            dir,
            record,
            process,
            life,
            published,
            control,
            vmm_version,
            memory: None,
            reservation,
            keep,
        };
        let vm = supervise(&self, started);
        held_name.fill(Arc::clone(&vm));
        self.tell(
            &vm.record,
            EventKind::Created,
            format!("{} MiB, {} vCPUs", vm.record.memory_mib, vm.record.vcpus),
        );
        Ok(vm)
    }

    /// Takes the first number whose bridge can be made on this machine.
    pub(super) async fn claim_family(&self, family: Uuid) -> Result<FamilyNet, Error> {
        let range = &self.settings.range;
        let mut from = 0;
        loop {
            let full = || Error::NoFamily(range.families());
            let net = self.table.number_family(range, from, family).ok_or_else(full)?;
            match self.net.claim(net, &family.to_string()).await {
                Ok(()) => return Ok(net),
                Err(error) => {
                    self.table.forget_family(net.index);
                    if !error.exists() {
                        return Err(error.into());
                    }
                    // Another vmmd of this machine has it.
                    from = net.index + 1;
                }
            }
        }
    }

    /// Makes the folder and the tap of a VM and starts its process; on an error nothing of them is
    /// left.
    async fn start(&self, record: Record, files: Files) -> Result<(VmDir, Record, Process), Error> {
        let dir = self.state.create_vm(&record.name)?;
        let started = self.start_in(dir.clone(), record, files).await;
        if started.is_err()
            && let Err(error) = dir.delete()
        {
            tracing::error!(folder = %dir.path().display(), error = %chain(&error), "files of a VM that was not made stay behind");
        }
        started
    }

    async fn start_in(
        &self,
        dir: VmDir,
        record: Record,
        files: Files,
    ) -> Result<(VmDir, Record, Process), Error> {
        let tap = self.net.tap(record.net, record.vmid).await?;
        let program = self.settings.vmm.clone();
        let neighbours = self.net.neighbours(record.net);
        let spawned = blocking(move || {
            dir.save(&record, Lasting::Process)?;
            let Files { kvm, start, rootfs } = files;
            let parts = parts(&record, start, (kvm, rootfs, tap), neighbours, Urgency::Normal);
            let process = spawn::spawn(&program, &record.name, &dir, parts)?;
            let record = Record { process: Some(process.id().clone()), ..record };
            Ok((dir, record, process))
        });
        let (dir, record, process) = spawned.await?;
        write_down(&dir, &record, process).await.map(|process| (dir, record, process))
    }
}

/// Writes the started process into the record; if that cannot be done, the process ends.
async fn write_down(dir: &VmDir, record: &Record, mut process: Process) -> Result<Process, Error> {
    let (to, what) = (dir.clone(), record.clone());
    let Err(error) = blocking(move || Ok(to.save(&what, Lasting::Host)?)).await else { return Ok(process) };
    if let Err(kill) = process.kill() {
        tracing::error!(pid = process.id().pid, error = %kill, "kill a vmm that has no record");
    } else if process.gone().await.is_ok() {
        process.exit();
    }
    Err(error)
}

fn open_files(mut spec: Spec) -> Result<(Spec, File, Opened), Error> {
    // Snapshots and clones open them again: a link may lead to another file by then.
    spec.kernel = images::real_path("kernel", &spec.kernel)?;
    let kernel = images::open_kernel(&spec.kernel)?;
    spec.rootfs = images::real_path("rootfs", &spec.rootfs)?;
    let rootfs = images::open_rootfs_for(&spec.rootfs, &kernel.0)?;
    Ok((spec, spawn::open_kvm()?, Opened { kernel, rootfs }))
}

/// What a master is to be.
pub(super) struct Master {
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) cmdline: String,
    pub(super) ports: Vec<Port>,
    pub(super) kernel: (PathBuf, FileId),
    pub(super) rootfs: (PathBuf, FileId),
    /// The snapshot that it is restored from. None: it boots.
    pub(super) snapshot: Option<PathBuf>,
    /// The hosts of its CPU baseline, if it has one.
    pub(super) cpu_baseline: Vec<String>,
    /// What it needs of a host. None: what this one offers.
    pub(super) needs: Option<Box<HostFacts>>,
}

/// The record of the master of a new family, before its process is started.
pub(super) fn record(name: &str, family: Uuid, net: FamilyNet, master: Master) -> Record {
    let ((kernel, kernel_file), (rootfs, rootfs_file)) = (master.kernel, master.rootfs);
    Record {
        format: FORMAT,
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        family,
        net,
        vmid: MASTER,
        origin: None,
        vcpus: master.vcpus,
        memory_mib: master.memory_mib,
        cmdline: master.cmdline,
        ports: master.ports,
        kernel,
        rootfs,
        rootfs_file: Some(rootfs_file),
        kernel_file: Some(kernel_file),
        snapshot: master.snapshot,
        image: None,
        cpu_baseline: master.cpu_baseline,
        needs: master.needs,
        ticket: None,
        created_unix_ms: unix_ms(),
        process: None,
        ready_after_us: None,
        ended: None,
    }
}

pub(super) fn random() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}
