//! The tickets of a family: requested, listed, and given back at its end.

use super::{
    error::Error,
    host::Host,
    tickets::{Granted, number, view},
    vm::Vm,
};
use crate::store::record::Record;
use patina_abi::link::{TicketArgs, TicketView};
use patina_daemon::chain;
use patina_proto::v1::{ListTicketsRequest, RequestTicketRequest, TicketState};
use scheduler::client::Client;
use std::time::Duration;
use uuid::Uuid;

/// Most tickets on a page for a guest: so many fit on a line.
pub(super) const LIST_MAX: u32 = 480;

impl Host {
    /// Requests a ticket for a guest.
    ///
    /// # Errors
    /// It cannot be had, in this time or ever, or the scheduler does not answer.
    pub(super) async fn request_ticket(&self, vm: &Vm, args: TicketArgs) -> Result<TicketView, Error> {
        let Record { family, vcpus, memory_mib, net, .. } = vm.record;
        let request = RequestTicketRequest {
            family: family.to_string(),
            // A ticket without a request id is released if the guest does not wait for it.
            request_id: args.request_id.unwrap_or_default(),
            max_cpus: args.max_cpus,
            min_vms: args.min_vms,
            min_cpus_per_vm: args.min_cpus_per_vm,
            vcpus: vcpus.into(),
            memory_mib,
            timeout_ms: args.timeout_ms,
            // Clones start where their parent is.
            host_ids: vec![self.tickets.host_id().to_owned()],
            ..RequestTicketRequest::default()
        };
        let ticket = self.tickets.0.admission.request(request).await;
        let ticket =
            ticket.map_err(|failed| self.tickets.failed("request a ticket", failed.into_status()))?;
        if ticket.state() == TicketState::Granted {
            self.tickets.granted().insert(number(&ticket.id)?, Granted::new(family, &ticket));
            tracing::info!(%family, ticket = ticket.id, vms = ticket.vms, "a ticket is granted");
            self.table.wake_pool(net.index, family);
        }
        Ok(view(&ticket))
    }

    /// A page of the tickets of a family that somebody asked for, as the scheduler has them, and
    /// where the next page begins.
    ///
    /// # Errors
    /// The scheduler does not answer.
    pub(super) async fn list_tickets(
        &self,
        family: Uuid,
        page_token: String,
    ) -> Result<(Vec<TicketView>, Option<String>), Error> {
        let request = ListTicketsRequest {
            family: family.to_string(),
            page_size: LIST_MAX,
            page_token,
            asked_for: true,
            ..ListTicketsRequest::default()
        };
        let list = |mut client: Client, _| {
            let request = request.clone();
            async move { client.list_tickets(request).await }
        };
        let listed = self.tickets.ask("list tickets", Duration::ZERO, list).await?;
        let tickets = listed.tickets.iter().map(view).collect();
        Ok((tickets, Some(listed.next_page_token).filter(|token| !token.is_empty())))
    }

    /// A family has ended: what it was granted is for others.
    pub(super) fn forget_tickets(&self, family: Uuid) {
        let mut granted = self.tickets.granted();
        for (id, _) in granted.extract_if(|_, granted| granted.family == family) {
            let admission = self.tickets.0.admission.clone();
            tokio::spawn(async move {
                if let Err(error) = admission.release(&id.to_string(), &family.to_string()).await {
                    tracing::warn!(ticket = %id, error = %chain(&error), "a ticket of a family that has ended stays until it expires");
                }
            });
        }
    }
}
