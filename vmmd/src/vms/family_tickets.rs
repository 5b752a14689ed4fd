//! The tickets of a family: requested, listed, and given back at its end.

use super::{
    error::Error,
    host::Host,
    tickets::{Granted, number, view},
    vm::Vm,
};
use crate::{options::TicketHosts, process::host_check, store::record::Record};
use patina_abi::link::{TicketArgs, TicketView};
use patina_daemon::chain;
use patina_proto::v1::{ListTicketsRequest, RequestTicketRequest, TicketState};
use scheduler::{client::Client, host::facts::message};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// Most tickets on a page for a guest: so many fit on a line.
pub(super) const LIST_MAX: u32 = 480;

/// What a VM of this host asks for.
fn request(of: &Record, args: TicketArgs, own_host: &str, hosts: TicketHosts) -> RequestTicketRequest {
    let own_host = own_host.to_owned();
    RequestTicketRequest {
        family: of.family.to_string(),
        // A ticket without a request id is released if the guest does not wait for it.
        request_id: args.request_id.unwrap_or_default(),
        max_cpus: args.max_cpus,
        min_vms: args.min_vms,
        min_cpus_per_vm: args.min_cpus_per_vm,
        vcpus: of.vcpus.into(),
        memory_mib: of.memory_mib,
        timeout_ms: args.timeout_ms,
        host_ids: match hosts {
            TicketHosts::Own => vec![own_host.clone()],
            TicketHosts::Any => Vec::new(),
        },
        // Here a clone has all its memory at once.
        prefer_host_id: own_host.clone(),
        parent_host_id: own_host,
        parent_needs: of.needs.as_ref().map(|needs| message(needs, true)),
        ..RequestTicketRequest::default()
    }
}

impl Host {
    /// Requests a ticket for a guest.
    ///
    /// # Errors
    /// It cannot be had, in this time or ever, or the scheduler does not answer.
    pub(super) async fn request_ticket(
        self: &Arc<Self>,
        vm: &Vm,
        args: TicketArgs,
    ) -> Result<TicketView, Error> {
        let Record { family, net, .. } = vm.record;
        // A host of which nobody knows what its VMs rely on gives them to no other.
        let hosts = host_check::facts().map_or(TicketHosts::Own, |_| self.settings.ticket_hosts);
        let request = request(&vm.record, args, self.tickets.host_id(), hosts);
        let image_digests = self.digests_for(&vm.record, hosts).await;
        let request = RequestTicketRequest { image_digests, ..request };
        let ticket = self.tickets.0.admission.request(request).await;
        let ticket =
            ticket.map_err(|failed| self.tickets.failed("request a ticket", failed.into_status()))?;
        if ticket.state() == TicketState::Granted {
            self.tickets
                .granted()
                .insert(number(&ticket.id)?, Granted::new(family, &ticket, self.tickets.host_id()));
            tracing::info!(%family, ticket = ticket.id, vms = ticket.vms, "a ticket is granted");
            self.table.wake_pool(net.index, family);
        }
        Ok(view(&ticket))
    }

    /// The VM's kernel and root file system, where it matters which hosts have them.
    async fn digests_for(self: &Arc<Self>, of: &Record, hosts: TicketHosts) -> Vec<Vec<u8>> {
        if hosts == TicketHosts::Own || self.tickets.address().is_empty() {
            return Vec::new();
        }
        match self.images_of(of).await {
            Ok(images) => images.iter().map(|image| image.digest.as_bytes().to_vec()).collect(),
            Err(error) => {
                // A host without them is as good then.
                tracing::warn!(name = of.name, error = %chain(&error), "name the VM's kernel and root file system to the scheduler");
                Vec::new()
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::sample;
    use patina_control::config::KvmKind;
    use patina_proto::v1;
    use patina_snapshot::facts::HostFacts;

    #[test]
    fn a_guest_s_ticket_is_for_hosts_that_can_go_on_with_its_vm_and_here_first() {
        let record = sample("m");
        let args =
            || TicketArgs { max_cpus: 8, min_vms: 2, min_cpus_per_vm: 1, timeout_ms: 0, request_id: None };
        let any = request(&record, args(), "a", TicketHosts::Any);
        assert_eq!((any.prefer_host_id.as_str(), any.parent_host_id.as_str()), ("a", "a"));
        assert_eq!((any.host_ids.len(), any.max_cpus, any.min_vms), (0, 8, 2));
        assert_eq!((any.vcpus, any.memory_mib), (record.vcpus.into(), record.memory_mib));
        let own = request(&record, args(), "a", TicketHosts::Own);
        assert_eq!((own.host_ids, own.parent_host_id.as_str()), (vec!["a".to_owned()], "a"));
        assert_eq!(own.parent_needs, None);
        // Of a VM with a CPU baseline.
        let needs = HostFacts { model: 7, ..HostFacts::of_cpuid(KvmKind::Vmx, Vec::new()) };
        let less = Record { needs: Some(Box::new(needs)), ..sample("m") };
        let needs = request(&less, args(), "a", TicketHosts::Any).parent_needs.unwrap();
        assert_eq!((needs.cpu_model, needs.kvm_kind()), (7, v1::KvmKind::Vmx));
    }
}
