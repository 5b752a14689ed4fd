//! VMs that start while their memory arrives.

use crate::{
    pager::book::LazyMemory,
    process::{
        control_client::{self, ControlError, PATIENCE},
        filling::{Filling, LAZY_VERSION},
        generation::Generation,
    },
    store::record::Record,
    vms::{host::Host, warm::Warm},
};
use patina_control::end::{End, EndKind};

impl Host {
    /// Has the pager serve a VM that is about to start from a generation, if some of that is still
    /// being filled.
    pub(in crate::vms) async fn serve_memory(
        &self,
        warm: &Warm,
        record: &Record,
        generation: &Generation,
    ) -> Result<(Option<Filling>, Option<LazyMemory>), ControlError> {
        if !generation.filling().is_empty() && warm.version < LAZY_VERSION {
            return Err(ControlError::Older(warm.version));
        }
        let served = self.pager.serve(record.uuid, warm.dir(), generation).await;
        served.map_err(|error| ControlError::Memory(patina_daemon::chain(&error)))
    }
}

/// When the VM entered its guest, as [`control_client::started`] says; or that memory which it
/// needs for that is lost.
pub(in crate::vms) async fn started(
    warm: &Warm,
    memory: &mut Option<LazyMemory>,
) -> Result<u64, ControlError> {
    let started = control_client::started(&warm.start, PATIENCE);
    let Some(memory) = memory else { return started.await };
    tokio::select! {
        started = started => {
            if started.is_ok() {
                memory.has_started();
            }
            started
        }
        End { kind, reason } = memory.lost() => Err(match kind {
            EndKind::DataLoss => ControlError::Lost(reason),
            _ => ControlError::Memory(reason),
        }),
    }
}
