//! Answers questions about the ledger from what is stored.

use super::{Worker, send};
use crate::{
    core::{
        Core,
        api::{CoreError, Named},
        ticket::{State, Ticket},
    },
    engine::message::{Page, Query, Refusal, Seen},
};
use std::sync::Arc;

impl Worker {
    /// A ticket with what is known beside it.
    pub(super) fn see(&self, ticket: Ticket) -> Seen {
        let live = self.core.as_ref().map_or(0, |core| core.live(&ticket));
        let name = |host| self.host_names.get(host).cloned().unwrap_or_default();
        let host_names = ticket.places.keys().map(name).collect();
        let is_granted = ticket.state == State::Granted || ticket.vms_to_come() > 0;
        let expires_in_ms = ticket.expires_unix_ms.saturating_sub(self.clock.now());
        Seen { ticket, live, host_names, expires_in_ms: if is_granted { expires_in_ms.max(1) } else { 0 } }
    }

    pub(super) fn answer_query(&mut self, query: Query) {
        match query {
            Query::Ticket(named, reply) => send(reply, self.ticket(named).map(|ticket| self.see(ticket))),
            Query::Tickets(of, reply) => {
                let page = self.readable().map(|core| {
                    let tickets = core.tickets(&of).into_iter().cloned();
                    Page { tickets: tickets.map(|ticket| self.see(ticket)).collect(), batch: self.batches }
                });
                send(reply, page);
            }
            Query::Hosts(reply) => send(reply, self.readable().map(Core::hosts)),
            Query::Family(family, reply) => send(reply, self.readable().map(|core| core.family(family))),
            Query::Speaks { host, family, reply } => {
                send(reply, self.readable().map(|core| core.may_speak(host, family)));
            }
            Query::Counts(reply) => send(reply, self.readable().map(Core::counts)),
            Query::Data { ticket, vmid, reply } => send(reply, self.data(ticket, vmid)),
        }
    }

    fn data(&mut self, named: Named, vmid: u32) -> Result<Vec<u8>, Refusal> {
        let ticket = self.ticket(named)?;
        match ticket.results.get(&vmid) {
            None => return Err(CoreError::UnknownVm { ticket: named.id, vmid }.into()),
            Some(left) if left.is_dropped() => {
                return Err(CoreError::DataDropped { ticket: named.id, vmid }.into());
            }
            Some(_) => {}
        }
        let data = self.store.join_data(named.id, vmid).map_err(|error| Refusal::Store(Arc::new(error)))?;
        Ok(data.unwrap_or_default())
    }

    fn ticket(&self, named: Named) -> Result<Ticket, Refusal> {
        Ok(self.readable()?.ticket(named)?.clone())
    }

    fn readable(&self) -> Result<&Core, Refusal> {
        match (&self.core, &self.failed) {
            (Some(core), _) => Ok(core),
            (None, Some((_, error))) => Err(Refusal::Store(Arc::clone(error))),
            (None, None) => Err(Refusal::Stopped),
        }
    }
}
