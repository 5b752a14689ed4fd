//! Freezing a VM into a generation.

use crate::{
    plan::lifecycle::Phase,
    process::{
        generation::Generation,
        link::{self, LinkError},
    },
    vms::{Vm, error::Error, images},
};
use std::{sync::Arc, time::Duration};
use vmm::api::control::{Frozen, Prepare};

/// How long a guest may take to prepare, and be frozen: its pre-clone hook has 60 s, holding its processes 2.
const FREEZE_PATIENCE: Duration = Duration::from_secs(75);

impl Vm {
    /// Whether the VM can be cloned, as far as can be told without asking it.
    pub(super) fn check_clonable(&self) -> Result<(), Error> {
        let name = || self.record.name.clone();
        let phase = self.status().phase;
        if phase != Phase::Ready {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        images::check_rootfs_again(&self.record.rootfs, self.record.rootfs_file)
            .map_err(|source| Error::CloneRootfs { name: name(), source })
    }

    /// Connects to the vmm for the next freeze: that much less is to be done then.
    pub(in crate::vms) fn connect_ahead(self: &Arc<Self>) {
        let vm = Arc::clone(self);
        tokio::spawn(async move {
            let mut spare = vm.spare.lock().await;
            if spare.is_none() {
                // The freeze will say what is wrong, if that is not the VM's end.
                *spare = link::connect(&vm.dir).await.ok();
            }
        });
    }

    /// Freezes the VM and lets it go on. Who clones it has his turn.
    pub(super) async fn freeze(&self, prepare: Option<Prepare>) -> Result<(Frozen, Generation), Error> {
        let name = || self.record.name.clone();
        // It may have ended while another had his turn.
        let phase = self.status().phase;
        if phase != Phase::Ready {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        let spare = self.spare.lock().await.take();
        let frozen = async {
            let stream = match spare {
                Some(stream) => stream,
                None => link::connect(&self.dir).await?,
            };
            let (frozen, sent) = link::freeze(stream, prepare, FREEZE_PATIENCE).await?;
            Ok((frozen, Generation::check(sent, self.record.memory_mib)?))
        };
        match frozen.await {
            Ok(frozen) => Ok(frozen),
            Err(LinkError::Refused(reason)) => Err(Error::NotFrozen { name: name(), reason }),
            Err(LinkError::NotPrepared(source)) => Err(Error::NotPrepared { name: name(), source }),
            Err(LinkError::Timeout(patience)) => Err(Error::Silent { name: name(), patience }),
            Err(source) => Err(self.unavailable(source).await),
        }
    }
}
