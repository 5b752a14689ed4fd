//! Cloning a VM: it is frozen into a generation and goes on; each clone is a VM of the family that starts there.
//!
//! ```text
//!  ready? room? ▶ freeze ▶ vmids ▶ for each clone: name ▶ folder ▶ tap ▶ record ▶ process ▶ record
//! ```
//!
//! From the vmids on each clone has its own outcome: one that fails leaves nothing behind but its vmid, and its
//! siblings do not notice.

use super::{
    Host, Vm, blocking,
    create::{Files, open_kvm},
    error::Error,
    images,
    supervise::{Supervised, supervise},
    unix_ms,
};
use crate::{
    plan::{
        lifecycle::{Lifecycle, Phase},
        names::VmName,
    },
    process::{
        generation::Generation,
        link::{self, LinkError},
        spawn::Start,
    },
    store::record::{Origin, Record},
};
use futures::{StreamExt, stream};
use std::{
    fs::File,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How many clones one call makes.
pub const COUNT: RangeInclusive<u32> = 1..=256;
/// How many clones are started at the same time. Each takes a thread while its process is made.
const AT_ONCE: usize = 16;

/// What came of a call.
#[derive(Debug)]
pub struct Clones {
    /// From asking the vmm to having the generation.
    pub freeze: Duration,
    /// By vmid.
    pub outcomes: Vec<(u32, Result<Arc<Vm>, Error>)>,
}

impl Host {
    /// Makes `count` clones of a VM.
    ///
    /// # Errors
    /// The VM is not there, not ready, or cannot be frozen; the family has no room. What fails for one clone only is in
    /// its outcome.
    pub async fn clone_vm(self: &Arc<Self>, name: String, count: u32) -> Result<Clones, Error> {
        // In a task of its own: a client that goes away does not leave some clones made and the others not undone.
        let host = Arc::clone(self);
        tokio::spawn(host.clone_whole(name, count)).await.map_err(|_| Error::Stopping)?
    }

    async fn clone_whole(self: Arc<Self>, name: String, count: u32) -> Result<Clones, Error> {
        let parent = self.table.find(&name)?;
        // What can be refused is refused before the VM is disturbed.
        self.table.check_room(&parent.record, count)?;
        let record = parent.record.clone();
        blocking(move || open_rootfs(&record)).await?;
        let before = Instant::now();
        let generation = parent.freeze().await?;
        let freeze = before.elapsed();
        let vmids = self.number_clones(&parent.record, count).await?;
        tracing::info!(vm = name, ?vmids, freeze_us = freeze.as_micros(), "cloned");
        let make = async |vmid| (vmid, self.make_clone(&parent.record, &generation, vmid).await);
        let outcomes = stream::iter(vmids).map(make).buffered(AT_ONCE).collect().await;
        Ok(Clones { freeze, outcomes })
    }

    async fn make_clone(
        self: &Arc<Self>,
        parent: &Record,
        generation: &Arc<Generation>,
        vmid: u32,
    ) -> Result<Arc<Vm>, Error> {
        let made = self.start_clone(parent, Arc::clone(generation), vmid).await;
        if let Err(error) = &made {
            tracing::warn!(family = %parent.family, vmid, %error, "a clone was not made");
            self.leave_family(parent.net, parent.family).await;
        }
        made
    }

    async fn start_clone(
        self: &Arc<Self>,
        parent: &Record,
        generation: Arc<Generation>,
        vmid: u32,
    ) -> Result<Arc<Vm>, Error> {
        let record = record(parent, vmid);
        let reservation = self.table.reserve(&record.name)?;
        let of = record.clone();
        let files = blocking(move || {
            let failed = |source| Error::Generation { name: of.name.clone(), source };
            let (state, memory) = generation.open().map_err(failed)?;
            let start = Start::Generation { state, memory };
            Ok(Files { kvm: open_kvm()?, start, rootfs: open_rootfs(&of)? })
        });
        let (dir, record, process) = self.start(record, files.await?).await?;
        let life = Lifecycle::running(None);
        let vm = supervise(self, Supervised { dir, record, process, life, published: None });
        reservation.fill(Arc::clone(&vm));
        Ok(vm)
    }
}

impl Vm {
    /// Freezes the VM, which must be ready, and lets it go on.
    ///
    /// # Errors
    /// It is not ready, its vmm refuses or does not answer.
    async fn freeze(&self) -> Result<Arc<Generation>, Error> {
        let name = || self.record.name.clone();
        // Held until the generation is in its place: two who clone the same VM take turns.
        let mut kept = self.generation.lock().await;
        let phase = self.status().phase;
        if phase != Phase::Ready {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        let frozen = link::freeze(&self.dir, super::PATIENCE).await.and_then(|(state, memory)| {
            Generation::check(state, memory, self.record.memory_mib).map_err(LinkError::from)
        });
        let generation = Arc::new(frozen.map_err(|source| match source {
            LinkError::Refused(reason) => Error::NotFrozen { name: name(), reason },
            source => Error::Unavailable { name: name(), source },
        })?);
        *kept = Some(Arc::clone(&generation));
        Ok(generation)
    }
}

/// The disk that a VM, and every clone of it, reads.
fn open_rootfs(record: &Record) -> Result<File, Error> {
    images::open_rootfs_again(&record.rootfs, record.rootfs_file)
        .map_err(|source| Error::CloneRootfs { name: record.name.clone(), source })
}

/// A clone's record: of the same kind as its parent, but for what makes it another VM.
fn record(parent: &Record, vmid: u32) -> Record {
    let master = parent.master();
    Record {
        name: VmName::of_clone(master, vmid),
        uuid: Uuid::new_v4(),
        vmid,
        origin: Some(Origin { parent_vmid: parent.vmid, master: master.to_owned() }),
        // A port of the host leads to one VM: it stays with the parent.
        ports: Vec::new(),
        created_unix_ms: unix_ms(),
        process: None,
        ready_after_us: None,
        ended: None,
        ..parent.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::sample;

    #[test]
    fn a_clone_is_of_its_family_and_has_what_is_its_own() {
        let master = Record { ready_after_us: Some(5), ..sample("web") };
        let first = record(&master, 1);
        assert_eq!((first.name.as_str(), first.vmid, first.family), ("web.1", 1, master.family));
        assert_eq!((first.net, &first.rootfs, first.memory_mib), (master.net, &master.rootfs, 256));
        assert!(first.ports.is_empty() && first.uuid != master.uuid);
        assert_eq!((&first.process, first.ready_after_us, &first.ended), (&None, None, &None));
        let second = record(&first, 2);
        assert_eq!(second.name, "web.2", "named after the master, whoever was cloned");
        assert_eq!(second.origin, Some(Origin { parent_vmid: 1, master: "web".into() }));
    }
}
