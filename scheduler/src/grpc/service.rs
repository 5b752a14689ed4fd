//! The calls of `patina.v1.Scheduler`.

use super::{
    access,
    check::{self, Check},
    convert, status, watch,
};
use crate::{core::api::Targets, engine::Engine};
use patina_daemon::peer::Peer;
use patina_proto::v1::{self, join_request::Side, scheduler_server::Scheduler};
use prost::Message as _;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// Most watchers at once.
const WATCHERS_MAX: usize = 256;
/// What a stream's reader may be behind.
pub(super) const STREAM_BUFFER: usize = 16;
/// A page of tickets ends when it is so long: below the 4 MiB that clients take if they are not
/// told otherwise.
const PAGE_MAX_BYTES: usize = 2 << 20;

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    engine: Engine,
    watchers: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }

    /// Refuses a host that wants to see tickets of families of other hosts.
    async fn check_reader(&self, peer: Option<&Peer>, family: Option<Uuid>) -> Result<(), Status> {
        match family {
            Some(family) => access::speaks_for_family(&self.engine, peer, family).await,
            None => access::speaks_for_all(peer),
        }
    }
}

pub(super) type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Scheduler for Service {
    async fn request_ticket(&self, request: Request<v1::RequestTicketRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let demand = check::demand(request.into_inner())?;
        access::speaks_for_family(&self.engine, peer.as_ref(), demand.family).await?;
        let seen = self.engine.request(demand).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    async fn get_ticket(&self, request: Request<v1::GetTicketRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let v1::GetTicketRequest { id, family } = request.into_inner();
        let mut check = Check::default();
        let named = check.named("id", &id, &family);
        let named = check.done(named)?;
        access::speaks_for_ticket(&self.engine, peer.as_ref(), named).await?;
        let seen = self.engine.ticket(named).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    async fn list_tickets(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Answer<v1::ListTicketsResponse> {
        let peer = access::peer(&request);
        let of = check::listing(&request.into_inner())?;
        self.check_reader(peer.as_ref(), of.family).await?;
        let page = self.engine.tickets(of).await?;
        let (full, mut bytes) = (page.tickets.len() == of.most, 0);
        let all = page.tickets.len();
        let mut tickets: Vec<v1::Ticket> = page.tickets.into_iter().map(convert::ticket).collect();
        let fits = tickets.iter().take_while(|ticket| {
            bytes += ticket.encoded_len();
            bytes <= PAGE_MAX_BYTES
        });
        // One at least, or there would be no end of pages.
        let fits = fits.count().max(1);
        tickets.truncate(fits);
        let next = tickets.last().filter(|_| full || fits < all);
        let next_page_token =
            next.map(|ticket| format!("{}.{}", ticket.granted_unix_ms, ticket.id)).unwrap_or_default();
        Ok(Response::new(v1::ListTicketsResponse { tickets, next_page_token }))
    }

    async fn release_ticket(&self, request: Request<v1::ReleaseTicketRequest>) -> Answer<v1::Ticket> {
        let peer = access::peer(&request);
        let v1::ReleaseTicketRequest { id, family } = request.into_inner();
        let mut check = Check::default();
        let named = check.named("id", &id, &family);
        let named = check.done(named)?;
        access::speaks_for_ticket(&self.engine, peer.as_ref(), named).await?;
        let seen = self.engine.release(named).await?;
        Ok(Response::new(convert::ticket(seen)))
    }

    type WatchTicketsStream = ReceiverStream<Result<v1::TicketEvent, Status>>;

    async fn watch_tickets(
        &self,
        request: Request<v1::WatchTicketsRequest>,
    ) -> Answer<Self::WatchTicketsStream> {
        let peer = access::peer(&request);
        let mut check = Check::default();
        let family = check.optional_uuid("family", &request.into_inner().family);
        let family = check.done(family)?;
        self.check_reader(peer.as_ref(), family).await?;
        let place = Arc::clone(&self.watchers).try_acquire_owned();
        let place = place.map_err(|_| status::too_many_watchers(WATCHERS_MAX))?;
        let (out, events) = mpsc::channel(STREAM_BUFFER);
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let _place = place;
            watch::serve(engine, family, out).await;
        });
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn list_hosts(&self, request: Request<v1::ListHostsRequest>) -> Answer<v1::ListHostsResponse> {
        let v1::ListHostsRequest { page_size, page_token } = request.into_inner();
        let (after, most) = (check::host_token(&page_token)?, check::page_size(page_size));
        let hosts = self.engine.hosts().await?;
        let mut rest =
            hosts.into_iter().filter(|host| after.is_none_or(|after| host.info.id > after)).peekable();
        let page: Vec<_> = rest.by_ref().take(most).collect();
        let next = page.last().filter(|_| rest.peek().is_some()).map(|host| host.info.id.to_string());
        let next_page_token = next.unwrap_or_default();
        let hosts = page.into_iter().map(convert::host).collect();
        Ok(Response::new(v1::ListHostsResponse { hosts, next_page_token }))
    }

    async fn set_host_scheduling(
        &self,
        request: Request<v1::SetHostSchedulingRequest>,
    ) -> Answer<v1::HostChange> {
        let (host, scheduling) = check::scheduling(&request.into_inner())?;
        let change = self.engine.set_scheduling(host, scheduling).await?;
        let (clones, released) = (change.clones.len(), change.released);
        tracing::info!(%host, ?scheduling, clones, released, "an operator has changed what a host is granted");
        Ok(Response::new(convert::host_change(change)))
    }

    async fn fence_host(&self, request: Request<v1::FenceHostRequest>) -> Answer<v1::HostChange> {
        let mut check = Check::default();
        let host = check.uuid("host_id", &request.into_inner().host_id);
        let host = check.done(host)?;
        let change = self.engine.fence_host(host).await?;
        tracing::warn!(%host, "an operator has fenced a host");
        Ok(Response::new(convert::host_change(change)))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Answer<v1::SyncResponse> {
        let peer = access::peer(&request);
        let request = request.into_inner();
        let mut check = Check::default();
        let named = check.named("ticket", &request.ticket, &request.family);
        check.round("after_round", request.after_round);
        let named = check.done(named)?;
        access::speaks_for_ticket(&self.engine, peer.as_ref(), named).await?;
        let timeout = check::timeout(request.timeout_ms);
        let (round, arrived) = self.engine.arrive(named, request.vmid, request.after_round, timeout).await?;
        Ok(Response::new(v1::SyncResponse { round, arrived }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let peer = access::peer(&request);
        let request = request.into_inner();
        let mut check = Check::default();
        let named = check.named("ticket", &request.ticket, &request.family);
        let named = check.done(named)?;
        access::speaks_for_ticket(&self.engine, peer.as_ref(), named).await?;
        let results = match request.side {
            Some(Side::Leave(leave)) => {
                let v1::JoinLeave { vmid, status, data, noreport } = leave;
                self.engine.leave(named, vmid, status, data, !noreport).await?;
                Vec::new()
            }
            Some(Side::Wait(wait)) => {
                let vmid = named.family.map(|_| wait.vmid);
                let seen = self.engine.join(named, vmid, check::timeout(wait.timeout_ms)).await?;
                convert::results(&seen.ticket)
            }
            None => {
                return Err(status::invalid(vec![("side".into(), "say leave or wait".into())]));
            }
        };
        Ok(Response::new(v1::JoinResponse { results }))
    }

    async fn get_join_data(
        &self,
        request: Request<v1::GetJoinDataRequest>,
    ) -> Answer<v1::GetJoinDataResponse> {
        let peer = access::peer(&request);
        let v1::GetJoinDataRequest { ticket, family, vmid } = request.into_inner();
        let mut check = Check::default();
        let named = check.named("ticket", &ticket, &family);
        let named = check.done(named)?;
        access::speaks_for_ticket(&self.engine, peer.as_ref(), named).await?;
        let data = self.engine.join_data(named, vmid).await?;
        Ok(Response::new(v1::GetJoinDataResponse { data }))
    }

    async fn kill(&self, request: Request<v1::KillRequest>) -> Answer<v1::KillResponse> {
        let peer = access::peer(&request);
        let (family, targets, reason) = check::kill(request.into_inner())?;
        let family = match (family, &targets) {
            (Some(family), _) => family,
            // A ticket says whose its clones are.
            (None, Targets::Ticket(id)) => {
                let named = crate::core::api::Named { id: *id, family: None };
                self.engine.ticket(named).await?.ticket.family
            }
            (None, Targets::Vmids(_)) => {
                return Err(status::invalid(vec![("family".into(), "name it".into())]));
            }
        };
        access::speaks_for_family(&self.engine, peer.as_ref(), family).await?;
        let ended = self.engine.kill(family, targets, reason).await?;
        Ok(Response::new(v1::KillResponse { ended }))
    }
}
