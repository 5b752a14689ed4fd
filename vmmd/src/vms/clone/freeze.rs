//! Freezes a VM into a generation.
//!
//! A VM whose agent does not prepare is frozen while the scheduler decides. If the decision takes
//! long, the VM is frozen again, so that its clones do not start from an outdated state.

use crate::{
    plan::lifecycle::Phase,
    process::{
        control_client::{self, ControlError},
        filling::FillingLayers,
        generation::Generation,
    },
    vms::{
        error::Error,
        host::Host,
        images,
        snapshot_data::{describe::PREPARE, error::SnapshotError},
        vm::Vm,
    },
};
use patina_control::{
    messages::{Frozen, Prepare},
    monotonic_ns,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a guest may take to prepare, and be frozen: its pre-clone hook has 60 s, holding its
/// processes 2.
const FREEZE_PATIENCE: Duration = Duration::from_secs(75);

/// The same for a VM that has just booted, whose first caller waits.
const BOOTED_PATIENCE: Duration = Duration::from_secs(15);

/// How long before its clones are granted a VM may have been frozen, ns.
const EARLY_MAX_NS: u64 = 100_000_000;

/// A VM that was frozen, or could not be.
pub(in crate::vms) struct Freezing {
    pub(in crate::vms) result: Result<(Frozen, Generation), Error>,
    /// When it began: [`monotonic_ns`].
    pub(in crate::vms) asked_ns: u64,
    ended_ns: u64,
}

impl Freezing {
    pub(in crate::vms) fn took(&self) -> Duration {
        Duration::from_nanos(self.ended_ns.saturating_sub(self.asked_ns))
    }

    /// Whether clones that are granted now may start from it.
    pub(super) fn is_fresh(&self, granted_ns: u64) -> bool {
        granted_ns.saturating_sub(self.asked_ns) <= EARLY_MAX_NS
    }
}

impl Host {
    /// Freezes a VM, and writes down meanwhile which vmids are taken. Whoever asked may leave until
    /// then.
    pub(in crate::vms) async fn freeze(
        self: &Arc<Self>,
        parent: &Vm,
        prepare: Option<Prepare>,
        abandoned: &CancellationToken,
    ) -> Freezing {
        let abandon = || Error::Abandoned(parent.record.name.clone());
        let freeze = async {
            let known = self.pager.known();
            let freeze = parent.freeze(prepare, &known);
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
        let result = written.and(frozen);
        tracing::debug!(vm = parent.record.name, is_frozen = result.is_ok(), "the freeze has ended");
        Freezing { result, asked_ns, ended_ns: monotonic_ns() }
    }
}

impl Vm {
    /// Whether the VM can be cloned, as far as can be told without asking it. The vmm of one that
    /// was taken over may not have said its version yet: that is waited for, for so long.
    pub(in crate::vms) async fn check_clonable(&self, patience: Duration) -> Result<(), Error> {
        let name = || self.record.name.clone();
        self.check_ready()?;
        let mut status = self.watch();
        let known = status.wait_for(|now| now.vmm_version.is_some() || now.phase != Phase::Ready);
        match timeout(patience, known).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Error::Stopping),
            Err(_) => return Err(Error::MuteVmm { name: name(), patience }),
        }
        // It may have ended meanwhile.
        self.check_ready()?;
        let status = self.status();
        if let Some(problem) = status.problem() {
            let (name, is_older) = (name(), status.is_too_old());
            return Err(if is_older {
                Error::OlderVmm { name, problem }
            } else {
                Error::NewerVmm { name, problem }
            });
        }
        images::check_rootfs_again(&self.record.rootfs, self.record.rootfs_file)
            .map_err(|source| Error::CloneRootfs { name: name(), source })
    }

    fn check_ready(&self) -> Result<(), Error> {
        match self.status().phase {
            Phase::Ready => Ok(()),
            phase => Err(Error::NotReady { name: self.record.name.clone(), state: phase.word() }),
        }
    }

    /// Freezes the VM and lets it continue. The caller must have its turn to clone the VM.
    async fn freeze(
        &self,
        prepare: Option<Prepare>,
        own: &dyn FillingLayers,
    ) -> Result<(Frozen, Generation), Error> {
        // It may have ended while this call waited for its turn.
        self.check_ready()?;
        self.freeze_within(prepare, own, FREEZE_PATIENCE).await
    }

    /// Freezes a VM whose agent is ready although nobody else knows that yet, and lets it continue.
    pub(in crate::vms) async fn freeze_booted(
        &self,
        own: &dyn FillingLayers,
    ) -> Result<(Frozen, Generation), Error> {
        let name = || self.record.name.clone();
        let status = self.status();
        if let Some(problem) = status.problem() {
            return Err(Error::NewerVmm { name: name(), problem });
        }
        images::check_rootfs_again(&self.record.rootfs, self.record.rootfs_file)
            .map_err(|source| Error::CloneRootfs { name: name(), source })?;
        self.freeze_within(Some(PREPARE), own, BOOTED_PATIENCE).await
    }

    async fn freeze_within(
        &self,
        prepare: Option<Prepare>,
        own: &dyn FillingLayers,
        patience: Duration,
    ) -> Result<(Frozen, Generation), Error> {
        let name = || self.record.name.clone();
        let spare = self.spare.lock().await.take();
        let frozen = async {
            let stream = match spare {
                Some(stream) => stream,
                None => control_client::connect(&self.dir).await?,
            };
            let (frozen, sent) = control_client::freeze(stream, prepare, patience).await?;
            Ok((frozen, Generation::check(sent, self.record.memory_mib, own)?))
        };
        match frozen.await {
            Ok(frozen) => Ok(frozen),
            Err(ControlError::Refused(reason)) => Err(Error::NotFrozen { name: name(), reason }),
            Err(ControlError::OldAgent(abi)) => Err(SnapshotError::OldAgent { name: name(), abi }.into()),
            Err(ControlError::NotPrepared(source)) => Err(Error::NotPrepared { name: name(), source }),
            Err(ControlError::Timeout(patience)) => Err(Error::Silent { name: name(), patience }),
            Err(source) => Err(self.unavailable(source).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::lifecycle::Ended,
        store::{VmDir, record::tests::sample},
        vms::vm::Status,
    };
    use futures::FutureExt as _;
    use patina_control::{
        CLONABLE_OLDEST, VERSION,
        end::{End, EndKind},
    };
    use std::pin::pin;
    use tokio::sync::{mpsc, watch};

    const LONG: Duration = Duration::from_secs(30);

    /// A VM that was taken over, whose vmm has said nothing yet.
    fn taken_over() -> (Vm, watch::Sender<Status>) {
        let status =
            Status { phase: Phase::Ready, ready_after_us: Some(5), vmm_version: None, ports: Vec::new() };
        let (sender, status) = watch::channel(status);
        (
            Vm::new(sample("web"), VmDir::at("/nowhere"), status, mpsc::channel(1).0, mpsc::channel(1).0),
            sender,
        )
    }

    #[tokio::test]
    async fn a_vm_is_not_cloned_before_its_vmms_version_is_known() {
        let (vm, status) = taken_over();
        let mut checked = pin!(vm.check_clonable(LONG));
        assert!(checked.as_mut().now_or_never().is_none(), "it waits");
        status.send_modify(|status| status.vmm_version = Some(9));
        assert!(matches!(checked.await, Err(Error::NewerVmm { .. })));
        // One that is known is checked at once. The sample's disk is nowhere.
        for older in 0..CLONABLE_OLDEST {
            status.send_modify(|status| status.vmm_version = Some(older));
            let error = vm.check_clonable(LONG).await.unwrap_err();
            assert!(matches!(error, Error::OlderVmm { .. }), "{error}");
            assert!(error.to_string().ends_with("but not cloned; boot it anew"), "{error}");
        }
        status.send_modify(|status| status.vmm_version = Some(VERSION));
        let checked = vm.check_clonable(LONG).now_or_never().expect("at once");
        assert!(matches!(checked, Err(Error::CloneRootfs { .. })), "{checked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_whose_vmm_does_not_say_its_version_is_refused_for_now() {
        let (vm, status) = taken_over();
        let error = vm.check_clonable(LONG).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("its vmm has sent nothing for 30s") && text.contains("vmctl kill web"),
            "{text}"
        );
        let refused = tonic::Status::from(error);
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        let info = tonic_types::StatusExt::get_details_error_info(&refused).expect("a reason");
        assert_eq!(info.reason, "VM_DOES_NOT_ANSWER");
        let mut checked = pin!(vm.check_clonable(LONG));
        assert!(checked.as_mut().now_or_never().is_none());
        let end = End { kind: EndKind::Killed, reason: "enough".into() };
        status.send_modify(|status| status.phase = Phase::Ended(Ended { end, unix_ms: 1 }));
        assert!(matches!(checked.await, Err(Error::NotReady { state: "ended", .. })));
    }
}
