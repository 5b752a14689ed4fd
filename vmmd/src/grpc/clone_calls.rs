//! Calls for clones that may be repeated: a call with a number that came before gets the answer of
//! the first one.

use crate::vms::error::Error;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use patina_daemon::lock;
use patina_proto::v1::CloneVmResponse;
use std::sync::{Arc, Mutex};
use tonic::Status;
use uuid::Uuid;

/// Most calls that are remembered, those under way included.
pub const CALLS_MAX: usize = 256;
/// Most characters of a number.
pub const REQUEST_MAX_CHARS: usize = 64;

/// Which call: the family and vmid of the VM that is cloned, and the caller's number.
pub type Key = (Uuid, u32, String);

type Answer = Shared<BoxFuture<'static, Result<CloneVmResponse, Status>>>;

#[derive(Debug)]
struct Call {
    key: Key,
    answer: Answer,
    has_ended: bool,
}

/// The calls, the oldest first.
#[derive(Debug, Clone, Default)]
pub struct CloneCalls(Arc<Mutex<Vec<Call>>>);

impl CloneCalls {
    /// The answer of the call with this number: of `call`, if none came before. It goes on if the
    /// caller leaves. One that fails is forgotten: nothing was made.
    ///
    /// # Errors
    /// Those of the call; or too many are under way.
    pub async fn answer(
        &self,
        key: Key,
        call: impl Future<Output = Result<CloneVmResponse, Status>> + Send + 'static,
    ) -> Result<CloneVmResponse, Status> {
        let answer = self.begun(key, call)?;
        answer.await
    }

    fn begun(
        &self,
        key: Key,
        call: impl Future<Output = Result<CloneVmResponse, Status>> + Send + 'static,
    ) -> Result<Answer, Status> {
        let mut calls = lock(&self.0);
        if let Some(known) = calls.iter().find(|known| known.key == key) {
            return Ok(known.answer.clone());
        }
        if calls.len() >= CALLS_MAX {
            let Some(oldest) = calls.iter().position(|known| known.has_ended) else {
                return Err(Status::resource_exhausted(format!(
                    "clone with a number: {CALLS_MAX} such calls are under way, the most; try again when one has ended"
                )));
            };
            calls.remove(oldest);
        }
        let (all, of_call) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            let answered = call.await;
            all.ended(&of_call, answered.is_ok());
            answered
        });
        let answer = async { task.await.unwrap_or_else(|_| Err(Error::Stopping.into())) };
        let answer = answer.boxed().shared();
        calls.push(Call { key, answer: answer.clone(), has_ended: false });
        Ok(answer)
    }

    fn ended(&self, key: &Key, is_kept: bool) {
        let mut calls = lock(&self.0);
        let Some(at) = calls.iter().position(|call| call.key == *key) else { return };
        if is_kept {
            calls[at].has_ended = true;
        } else {
            calls.remove(at);
        }
    }
}

#[cfg(test)]
#[path = "clone_calls_test.rs"]
mod tests;
