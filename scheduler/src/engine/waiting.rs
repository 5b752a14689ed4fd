//! A caller that waits for an answer, and what happens if its future is dropped.

use super::{Answer, Engine, Refusal, message::Gone};
use crate::core::{
    api::{Command, Waiter},
    ticket::HostId,
};
use tokio::sync::oneshot;

/// What nobody must hold without knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// A new ticket. With a request id it is kept: its caller asks again.
    Ticket,
    /// A host's registration.
    Host(HostId),
    /// Nothing has to be taken back.
    Nothing,
}

impl Takes {
    pub(super) fn of(command: &Command) -> Self {
        match command {
            Command::Request { demand, .. } if demand.request_id.is_none() => Self::Ticket,
            Command::HostUp { info, .. } => Self::Host(info.id),
            _ => Self::Nothing,
        }
    }

    /// What has to be taken back if the caller does not get the answer.
    pub(super) fn unheard(self, answer: Answer) -> Option<Gone> {
        match (self, answer) {
            (Self::Ticket, Answer::Ticket(seen)) => Some(Gone::Ticket(Box::new(seen.ticket))),
            (Self::Host(host), Answer::Registered(epoch)) => Some(Gone::Host(host, epoch)),
            _ => None,
        }
    }
}

/// Tells the engine when it is dropped before the answer was taken.
pub(super) struct Waiting<'a> {
    engine: &'a Engine,
    waiter: Waiter,
    takes: Takes,
    /// Where the answer comes; None: it was taken.
    answer: Option<oneshot::Receiver<Result<Answer, Refusal>>>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        waiter: Waiter,
        command: &Command,
        answer: oneshot::Receiver<Result<Answer, Refusal>>,
    ) -> Self {
        Self { engine, waiter, takes: Takes::of(command), answer: Some(answer) }
    }

    pub(super) async fn answer(mut self) -> Result<Answer, Refusal> {
        let Some(answer) = self.answer.as_mut() else { return Err(Refusal::Confused) };
        let answer = answer.await.unwrap_or(Err(Refusal::Stopped));
        self.answer = None;
        answer
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(mut answer) = self.answer.take() else { return };
        // Nothing can be answered after this: what is there now is all that there will be.
        answer.close();
        let gone = match answer.try_recv() {
            Ok(Ok(answer)) => self.takes.unheard(answer),
            Ok(Err(_)) => None,
            Err(_) => Some(Gone::Waiter(self.waiter)),
        };
        if let Some(gone) = gone {
            self.engine.gone(gone);
        }
    }
}
