//! The calls of `patina.v1.HostScheduler`.

use super::{
    access,
    check::{self, Check},
    convert, host,
    service::{Answer, STREAM_BUFFER},
};
use crate::{
    core::api::{Command, Usage},
    engine::Engine,
};
use patina_proto::v1::{self, host_scheduler_server::HostScheduler};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub struct HostService {
    engine: Engine,
}

impl HostService {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl HostScheduler for HostService {
    type RegisterHostStream = ReceiverStream<Result<v1::HostOrder, Status>>;

    async fn register_host(
        &self,
        request: Request<Streaming<v1::HostMessage>>,
    ) -> Answer<Self::RegisterHostStream> {
        let (out, orders) = mpsc::channel(STREAM_BUFFER);
        let peer = access::peer(&request);
        // A task of its own: it is not dropped with the call, so each registration has its end.
        tokio::spawn(host::serve(self.engine.clone(), peer, request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(orders)))
    }

    async fn use_ticket(&self, request: Request<v1::UseTicketRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let request = request.into_inner();
        let mut check = Check::default();
        let ticket = check.named("id", &request.id, &request.family);
        let host = check.uuid("host_id", &request.host_id);
        let (epoch, host_epoch) = (check::epoch(request.epoch), check::epoch(request.host_epoch));
        let parent_host = check.optional_uuid("parent_host_id", &request.parent_host_id).unwrap_or(host);
        let v1::UseTicketRequest { parent_vmid, vmids, keep_others, .. } = request;
        let () = check.done(())?;
        access::speaks_for(peer.as_ref(), host)?;
        let usage = Usage { ticket, epoch, host, host_epoch, parent_vmid, parent_host, vmids, keep_others };
        let seen = self.engine.ticket_command(|waiter| Command::Use(waiter, usage)).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    async fn unuse_ticket(&self, request: Request<v1::UnuseTicketRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let request = request.into_inner();
        let mut check = Check::default();
        let ticket = check.named("id", &request.id, &request.family);
        let host = check.uuid("host_id", &request.host_id);
        let epoch = check::epoch(request.epoch);
        let () = check.done(())?;
        access::speaks_for(peer.as_ref(), host)?;
        let command = |waiter| Command::Unuse { waiter, ticket, epoch, host };
        let seen = self.engine.ticket_command(command).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    async fn admit_clones(&self, request: Request<v1::AdmitClonesRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let demand = check::clones(request.into_inner())?;
        demand.hosts.iter().try_for_each(|host| access::speaks_for(peer.as_ref(), *host))?;
        access::speaks_for_family(&self.engine, peer.as_ref(), demand.family).await?;
        let seen = self.engine.request(demand).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    async fn reserve_vmids(
        &self,
        request: Request<v1::ReserveVmidsRequest>,
    ) -> Answer<v1::ReserveVmidsResponse> {
        let peer = access::peer(&request);
        let demand = check::vmids(request.into_inner())?;
        access::speaks_for(peer.as_ref(), demand.host)?;
        access::speaks_for_family(&self.engine, peer.as_ref(), demand.family).await?;
        let (first, count) = self.engine.reserve_vmids(demand).await?;
        Ok(Response::new(v1::ReserveVmidsResponse { first, count }))
    }

    async fn list_family(&self, request: Request<v1::ListFamilyRequest>) -> Answer<v1::ListFamilyResponse> {
        let peer = access::peer(&request);
        let v1::ListFamilyRequest { family, host_id } = request.into_inner();
        let mut check = Check::default();
        let (family, host) = (check.uuid("family", &family), check.uuid("host_id", &host_id));
        let () = check.done(())?;
        access::speaks_for(peer.as_ref(), host)?;
        access::speaks_for_family(&self.engine, peer.as_ref(), family).await?;
        let vms = self.engine.family(family).await?.into_iter();
        Ok(Response::new(v1::ListFamilyResponse { vms: vms.map(convert::family_vm).collect() }))
    }
}
