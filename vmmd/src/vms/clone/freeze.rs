//! Freezes a VM into a generation.
//!
//! A VM whose agent does not prepare is frozen while the scheduler decides. If the decision takes long,
//! the VM is frozen again, so that its clones do not start from an outdated state.

use crate::{
    plan::lifecycle::Phase,
    process::{
        generation::Generation,
        link::{self, LinkError},
    },
    vms::{error::Error, host::Host, images, vm::Vm},
};
use patina_control::{
    messages::{Frozen, Prepare},
    monotonic_ns,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long a guest may take to prepare, and be frozen: its pre-clone hook has 60 s, holding its processes 2.
const FREEZE_PATIENCE: Duration = Duration::from_secs(75);

/// How long before its clones are granted a VM may have been frozen, ns.
const EARLY_MAX_NS: u64 = 100_000_000;

/// A VM that was frozen, or could not be.
pub(super) struct Freezing {
    pub(super) result: Result<(Frozen, Generation), Error>,
    /// When it began: [`monotonic_ns`].
    pub(super) asked_ns: u64,
    ended_ns: u64,
}

impl Freezing {
    pub(super) fn took(&self) -> Duration {
        Duration::from_nanos(self.ended_ns.saturating_sub(self.asked_ns))
    }

    /// Whether clones that are granted now may start from it.
    pub(super) fn is_fresh(&self, granted_ns: u64) -> bool {
        granted_ns.saturating_sub(self.asked_ns) <= EARLY_MAX_NS
    }
}

impl Host {
    /// Freezes a VM, and writes down meanwhile which vmids are taken. Whoever asked may leave until then.
    pub(super) async fn freeze(
        self: &Arc<Self>,
        parent: &Vm,
        prepare: Option<Prepare>,
        abandoned: &CancellationToken,
    ) -> Freezing {
        let abandon = || Error::Abandoned(parent.record.name.clone());
        let freeze = async {
            let freeze = parent.freeze(prepare);
            match prepare {
                // A vmm whose caller leaves while the agent prepares does not freeze.
                Some(Prepare::Ask { .. }) => {
                    abandoned.run_until_cancelled(freeze).await.ok_or_else(abandon)?
                }
                _ if abandoned.is_cancelled() => Err(abandon()),
                _ => freeze.await,
            }
        };
        let asked_ns = monotonic_ns();
        let (frozen, written) = tokio::join!(freeze, self.write_vmids(&parent.record));
        Freezing { result: written.and(frozen), asked_ns, ended_ns: monotonic_ns() }
    }
}

impl Vm {
    /// Whether the VM can be cloned, as far as can be told without asking it.
    pub(super) fn check_clonable(&self) -> Result<(), Error> {
        let name = || self.record.name.clone();
        let phase = self.status().phase;
        if phase != Phase::Ready {
            return Err(Error::NotReady { name: name(), state: phase.word() });
        }
        if let Some(problem) = self.status().problem() {
            return Err(Error::NewerVmm { name: name(), problem });
        }
        images::check_rootfs_again(&self.record.rootfs, self.record.rootfs_file)
            .map_err(|source| Error::CloneRootfs { name: name(), source })
    }

    /// Freezes the VM and lets it go on. Who clones it has his turn.
    async fn freeze(&self, prepare: Option<Prepare>) -> Result<(Frozen, Generation), Error> {
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
