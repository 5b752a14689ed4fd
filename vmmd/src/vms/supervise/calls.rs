//! Calls of a VM's guest. They are answered concurrently with the supervisor's other work, and
//! cancelled if nobody waits for them any more.

use super::Supervisor;
use crate::vms::{host::GuestCall, vm::EndsWhenLeft};
use patina_abi::{
    args::Args,
    link::{Answer, CallError, REQUESTS_MAX},
};
use patina_control::{messages::ToVmm, monotonic_ns};
use patina_daemon::chain;
use std::sync::Arc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// What the guest may cancel.
pub(super) enum Cancel {
    Call(AbortHandle),
    /// It is told what came of it.
    Clone(CancellationToken),
}

impl Cancel {
    pub(super) fn cancel(self) {
        match self {
            Self::Call(call) => call.abort(),
            Self::Clone(abandoned) => abandoned.cancel(),
        }
    }
}

impl Supervisor {
    /// Answers a call of the guest, beside whatever else is to be done.
    pub(super) fn call(&mut self, id: u64, verb: String, args: Args) {
        let orders = self.orders.clone();
        if self.calls.len() >= REQUESTS_MAX {
            let message = format!("{REQUESTS_MAX} calls of this VM are not answered yet");
            let answer = Answer::Error(CallError { code: libc::EAGAIN, message });
            if let Err(error) = orders.try_send(ToVmm::GuestReply { id, answer }) {
                tracing::warn!(error = %chain(&error), "answer a guest's call");
            }
            return;
        }
        let (host, vm) = (Arc::clone(&self.host), Arc::clone(&self.handle));
        let abandoned = CancellationToken::new();
        let clone = (verb == "clone").then(|| abandoned.clone());
        let call = GuestCall { verb, args, arrived_ns: monotonic_ns(), abandoned };
        let answer = async move {
            // Until the answer is on its way.
            let _ends = EndsWhenLeft(Arc::clone(&vm));
            let answer = host.calls.answer(&host, &vm, call).await;
            host.metrics.guest_call(matches!(answer, Answer::Ok(_)));
            if let Err(error) = orders.send(ToVmm::GuestReply { id, answer }).await {
                tracing::warn!(error = %chain(&error), "answer a guest's call");
            }
            id
        };
        let call = self.calls.spawn(answer.in_current_span());
        self.cancels.insert(id, clone.map_or(Cancel::Call(call), Cancel::Clone));
    }

    /// Nobody waits for the answers any more. What cannot be cut short, as a clone from its freeze
    /// on, is finished in a task of its own.
    pub(super) fn forget_calls(&mut self) {
        self.cancels.drain().for_each(|(_, call)| call.cancel());
    }
}
