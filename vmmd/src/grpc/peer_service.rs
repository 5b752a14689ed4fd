//! The calls of `patina.v1.HostPeer`, which other hosts make.

use super::{Answers, convert};
use crate::vms::{
    Host,
    error::Error,
    members_data::told::Told,
    remote::{fetch::FetchCall, give::ReadCall, lend::LendCall, receive::SpawnCall},
    remote_data::error::ReceiveError,
};
use patina_control::{messages::STATE_MAX_BYTES, monotonic_ns};
use patina_daemon::peer::Peer;
use patina_proto::v1::{
    FamilyVmState, FetchImagesRequest, FetchImagesResponse, LayerHolder, LendLayersRequest,
    LendLayersResponse, ListStatesRequest, ListStatesResponse, ReadImageRequest, ReadImageResponse,
    SpawnClonesRequest, SpawnClonesResponse, TellFamilyRequest, TellFamilyResponse,
    host_peer_server::HostPeer, spawn_clones_request::Part,
};
use patina_snapshot::manifest::MANIFEST_MAX_BYTES;
use scheduler::grpc::access::speaks_for;
use std::{sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a host may take to send a generation's description.
const PATIENCE: Duration = Duration::from_secs(30);

/// The service.
#[derive(Debug)]
pub struct PeerService {
    host: Arc<Host>,
}

impl PeerService {
    /// Serves a host.
    #[must_use]
    pub fn new(host: Arc<Host>) -> Self {
        Self { host }
    }
}

#[tonic::async_trait]
impl HostPeer for PeerService {
    async fn spawn_clones(
        &self,
        request: Request<Streaming<SpawnClonesRequest>>,
    ) -> Result<Response<SpawnClonesResponse>, Status> {
        let arrived_ns = monotonic_ns();
        let peer = request.extensions().get::<Peer>().cloned();
        let received = timeout(PATIENCE, receive(request.into_inner())).await;
        let silent = |_| Status::deadline_exceeded(format!("spawn clones: nothing came for {PATIENCE:?}"));
        let (call, holders) = received.map_err(silent)??;
        speaks_for(peer.as_ref(), call.host())?;
        let family = call.family();
        tracing::debug!(%family, from = %call.host(), "another host asks for clones");
        let host = Arc::clone(&self.host);
        // In a task of its own: if the calling host fails now, the others are needed.
        let made = tokio::spawn(async move {
            let outcomes = host.spawn_here(call, arrived_ns).await?;
            // Only now: the ticket shows that the calling host may speak of the family.
            host.hear_of_holders(family, holders);
            Ok::<_, Error>(outcomes)
        });
        let outcomes = made.await.map_err(|_| Error::Stopping)??;
        Ok(Response::new(SpawnClonesResponse {
            clones: outcomes.into_iter().map(convert::outcome).collect(),
            members: self.host.members_of(family),
            took_us: monotonic_ns().saturating_sub(arrived_ns) / 1000,
        }))
    }

    async fn tell_family(
        &self,
        request: Request<TellFamilyRequest>,
    ) -> Result<Response<TellFamilyResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let TellFamilyRequest { members, to_host_id } = request.into_inner();
        let told = Told::check(members.unwrap_or_default()).map_err(Error::from)?;
        speaks_for(peer.as_ref(), told.speaker.host)?;
        let members = self.host.hear(told, &to_host_id).await?;
        Ok(Response::new(TellFamilyResponse { members: Some(members) }))
    }

    async fn list_states(
        &self,
        request: Request<ListStatesRequest>,
    ) -> Result<Response<ListStatesResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let ListStatesRequest { family, host_id, to_host_id } = request.into_inner();
        let id = |field, text: &str| ReceiveError::uuid(field, text).map_err(Error::from);
        let (family, host, to) =
            (id("family", &family)?, id("host", &host_id)?, id("called host", &to_host_id)?);
        speaks_for(peer.as_ref(), host)?;
        let states = self.host.states_here(family, to).await?.into_iter();
        let vms = states.map(|(vmid, state)| FamilyVmState { vmid, state: state.into() }).collect();
        Ok(Response::new(ListStatesResponse { vms }))
    }

    async fn lend_layers(
        &self,
        request: Request<LendLayersRequest>,
    ) -> Result<Response<LendLayersResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let call = LendCall::check(request.into_inner()).map_err(Error::from)?;
        speaks_for(peer.as_ref(), call.host())?;
        Ok(Response::new(self.host.lend_layers(call).await?))
    }

    type FetchImagesStream = Answers<FetchImagesResponse>;

    async fn fetch_images(
        &self,
        request: Request<FetchImagesRequest>,
    ) -> Result<Response<Self::FetchImagesStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let call = FetchCall::check(request.into_inner()).map_err(Error::from)?;
        speaks_for(peer.as_ref(), call.host())?;
        let answers = self.host.fetch_images(call).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type ReadImageStream = Answers<ReadImageResponse>;

    async fn read_image(
        &self,
        request: Request<ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let call = ReadCall::check(request.get_ref()).map_err(Error::from)?;
        speaks_for(peer.as_ref(), call.host())?;
        let answers = self.host.read_image(call).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// Puts the parts of a call together. All of it is bounded.
async fn receive(mut parts: Streaming<SpawnClonesRequest>) -> Result<(SpawnCall, Vec<LayerHolder>), Status> {
    let invalid = |text: &str| Status::invalid_argument(format!("spawn clones: {text}"));
    let (mut clones, mut manifest, mut state) = (None, Vec::new(), Vec::new());
    while let Some(SpawnClonesRequest { part }) = parts.message().await? {
        match part {
            Some(Part::Clones(part)) if clones.is_none() => clones = Some(part),
            Some(Part::Clones(_)) => return Err(invalid("they are named twice")),
            Some(Part::Manifest(part)) => append(&mut manifest, part, MANIFEST_MAX_BYTES, "manifest")?,
            Some(Part::State(part)) => append(&mut state, part, STATE_MAX_BYTES, "state")?,
            // Of a newer release.
            None => {}
        }
    }
    let mut clones = clones.ok_or_else(|| invalid("the first message names none"))?;
    let holders = std::mem::take(&mut clones.holders);
    // Digests over all of it.
    let checked = spawn_blocking(move || SpawnCall::check(clones, &manifest, state)).await;
    let checked = checked.map_err(|_| Status::from(Error::Stopping))?;
    Ok((checked.map_err(Error::from)?, holders))
}

fn append(to: &mut Vec<u8>, part: Vec<u8>, max_bytes: u64, what: &str) -> Result<(), Status> {
    if (to.len() + part.len()) as u64 > max_bytes {
        let text = format!("spawn clones: its {what} is longer than {max_bytes} bytes");
        return Err(Status::invalid_argument(text));
    }
    to.extend(part);
    Ok(())
}
