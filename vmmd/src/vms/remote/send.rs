//! Has clones of a VM of this host made on other hosts.

use super::missing::is_missing_image;
use crate::{
    pager::{book::LazyLayer, error::PagerError, parts},
    process::generation::{Generation, PrefaultList},
    store::record::Record,
    vms::{
        clone::{Made, Outcome, Source, Times},
        error::Error,
        host::Host,
        remote_data::{
            error::{PATIENCE, PrepareError, RemoteError},
            place::{Elsewhere, Others, There},
        },
        snapshot_data::describe::describe,
    },
};
use futures::{future::join_all, stream};
use patina_control::{messages::Frozen, monotonic_ns};
use patina_daemon::chain;
use patina_proto::v1::{
    self, CloneOutcome, FamilyMembers, HostInfo, ListHostsRequest, SpawnClonesRequest, SpawnClonesResponse,
    clone_outcome, host_peer_client::HostPeerClient, spawn_clones_request::Part,
};
use patina_snapshot::{
    directory::digest_layer,
    manifest::{ImageRef, Layer, Manifest, StateRef},
};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    sync::Arc,
    time::Duration,
};
use tokio::time::{error::Elapsed, timeout};
use tonic::{Status, transport::Channel};

/// Most bytes of a message.
const PART_BYTES: usize = 128 * 1024;

/// A generation as other hosts get it.
#[derive(Debug)]
pub(in crate::vms) struct Sendable {
    manifest: Vec<u8>,
    state: Vec<u8>,
    layers: Vec<Arc<LazyLayer>>,
    /// Its kernel and root file system.
    images: [ImageRef; 2],
    /// Who has which VMs of the family.
    members: Option<FamilyMembers>,
}

impl Host {
    /// Clones of a VM are to be made on these hosts: looks for what they need, while the VM is
    /// frozen.
    ///
    /// # Errors
    /// Its kernel or root file system cannot be read.
    pub(in crate::vms) async fn look_at(
        self: &Arc<Self>,
        hosts: &[Elsewhere],
        parent: &Record,
    ) -> Result<Others, Error> {
        let ids = hosts.iter().map(|place| place.host_id.clone()).collect();
        let host = Arc::clone(self);
        let infos = tokio::spawn(async move { host.infos_of(ids).await });
        Ok(Others { images: self.images_of(parent).await?, infos })
    }

    /// Has the clones made on their hosts, side by side. What goes wrong is in their outcomes.
    pub(in crate::vms) async fn make_clones_elsewhere(
        self: &Arc<Self>,
        source: &Source,
        there: &[There],
        Others { images, infos }: Others,
        frozen: Frozen,
    ) -> Vec<Outcome> {
        self.offered.note(&images);
        let failed = |error: RemoteError| {
            let error = Arc::new(error);
            there.iter().flat_map(|there| all_failed(there, &error)).collect()
        };
        let infos = async {
            // Of a host that nothing is known of, no clone is made.
            let infos = infos.await.unwrap_or_default();
            let announced = self.announce(source, there, &infos).await;
            (infos, announced)
        };
        let (sendable, (infos, announced)) = tokio::join!(self.sendable(source, images, frozen), infos);
        let members = match announced {
            Ok(members) => members,
            Err(error) => return failed(RemoteError::Network(chain(&error))),
        };
        let sendable = match sendable {
            Ok(sendable) => Sendable { members, ..sendable },
            Err(error) => {
                join_all(there.iter().map(|there| self.answered(source, there, None))).await;
                return failed(RemoteError::Prepare(error));
            }
        };
        self.note_holders(source.parent.family, infos.values());
        let make = |there| self.make_clones_there(source, there, infos.get(&there.place.host_id), &sendable);
        join_all(there.iter().map(make)).await.into_iter().flatten().collect()
    }

    /// Describes a generation, and has its layers kept for other hosts.
    async fn sendable(
        self: &Arc<Self>,
        source: &Source,
        images: [ImageRef; 2],
        frozen: Frozen,
    ) -> Result<Sendable, PrepareError> {
        let opened = source.generation.open()?;
        let list = source.prefault_list.open()?;
        let (mut layers, mut held) = (Vec::new(), Vec::new());
        for memfd in opened.layers {
            let (layer, lazy) = self.publish(memfd).await?;
            layers.push(layer);
            held.push(lazy);
        }
        let record = source.parent.clone();
        let state = opened.state;
        let named = images.clone();
        let described = tokio::task::spawn_blocking(move || {
            let state = Generation::read_state(state)?;
            let prefault_list = PrefaultList::read(list.into())?;
            let description = describe(&record, images, frozen, prefault_list);
            let of_state = StateRef { bytes: state.len() as u64, digest: blake3::hash(&state) };
            let manifest = Manifest { description, state: of_state, layers, optional: Vec::new() };
            Ok::<_, PrepareError>((manifest.encode()?, state))
        });
        let (manifest, state) = described.await.map_err(|_| PagerError::Stopping)??;
        Ok(Sendable { manifest, state, layers: held, images: named, members: None })
    }

    /// Has the pager keep a layer for other hosts, and describes it.
    async fn publish(&self, memfd: File) -> Result<(Arc<Layer>, Arc<LazyLayer>), PrepareError> {
        let number = parts::number_of(&memfd).map_err(PagerError::Memory)?;
        if let Some(held) = self.pager.find(number) {
            // Its digests are known, even if its pages have not arrived yet.
            return Ok((Arc::new(held.parts().layer()?), held));
        }
        let layer = match self.described.find(number) {
            Some(layer) => layer,
            None => {
                let memfd = memfd.try_clone().map_err(PagerError::Memory)?;
                let digested = tokio::task::spawn_blocking(move || {
                    let bytes = memfd.metadata()?.len();
                    digest_layer(&memfd, bytes)
                });
                let layer = digested.await.map_err(|_| PagerError::Stopping)??;
                self.described.note(number, Arc::clone(&layer));
                layer
            }
        };
        let held = self.pager.publish(&layer, memfd).await?;
        Ok((layer, held))
    }

    async fn make_clones_there(
        self: &Arc<Self>,
        source: &Source,
        there: &There,
        info: Option<&HostInfo>,
        sendable: &Sendable,
    ) -> Vec<Outcome> {
        let host = || there.place.host.clone();
        let answer = self.call_for_clones(source, there, info, sendable).await;
        let answered = source.after(monotonic_ns());
        let said = answer.as_ref().ok().and_then(|answer| answer.members.clone());
        self.answered(source, there, said).await;
        let (mut answer, clock) = match answer {
            Ok(SpawnClonesResponse { clones, took_us, .. }) => {
                (clones.into_iter().map(|clone| (clone.vmid, clone)).collect(), Clock { answered, took_us })
            }
            Err(error) => {
                tracing::warn!(host = host(), error = %chain(&error), "another host makes no clones");
                return all_failed(there, &Arc::new(error)).collect();
            }
        };
        let outcome = |vmid: &u32| Outcome { vmid: *vmid, made: made(&mut answer, *vmid, &host(), clock) };
        there.vmids.iter().map(outcome).collect()
    }

    async fn call_for_clones(
        self: &Arc<Self>,
        source: &Source,
        there: &There,
        info: Option<&HostInfo>,
        sendable: &Sendable,
    ) -> Result<SpawnClonesResponse, RemoteError> {
        let host = || there.place.host.clone();
        let address = info.ok_or_else(|| RemoteError::NoHost { host: host() })?.address.clone();
        let client = self.settings.peers.client(&address);
        let mut client = client.map_err(|source| RemoteError::Address { host: host(), address, source })?;
        let lease = self.lend(sendable.layers.clone());
        let (lease, credential) = lease.map_err(RemoteError::Prepare)?;
        let clones = v1::SpawnClones {
            family: source.parent.family.to_string(),
            network_index: source.parent.net.index.into(),
            network: source.parent.net.base.to_string(),
            master: source.parent.master().to_owned(),
            parent_vmid: source.parent.vmid,
            ticket: source.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
            ticket_epoch: 0,
            vmids: there.vmids.clone(),
            address: self.settings.peers.own_address().to_owned(),
            lease: lease.to_string(),
            host_id: self.tickets.host_id().to_owned(),
            to_host_id: there.place.host_id.clone(),
            members: sendable.members.clone(),
            lease_certificate: credential.certificate,
            lease_key: credential.key,
            holders: self.holders_beside(source.parent.family, &there.place.host_id),
        };
        let mut answer = spawn_clones(&mut client, there, sendable.parts(clones.clone())).await;
        if let Err(RemoteError::Refused { status, .. }) = &answer
            && is_missing_image(status)
        {
            answer = match self.have_images_fetched(&mut client, there, &sendable.images).await {
                Ok(()) => spawn_clones(&mut client, there, sendable.parts(clones)).await,
                Err(error) => Err(error),
            };
        }
        if answer.is_err() {
            self.leases.end(lease);
        }
        answer
    }

    /// What the scheduler says of these hosts, by their ids.
    async fn infos_of(&self, ids: HashSet<String>) -> HashMap<String, HostInfo> {
        let (mut infos, mut page_token) = (HashMap::new(), String::new());
        loop {
            let request = ListHostsRequest { page_token, ..ListHostsRequest::default() };
            let listed = timeout(PATIENCE, self.tickets.client().list_hosts(request)).await;
            let late = |late: Elapsed| Err(Status::deadline_exceeded(late.to_string()));
            let listed = match listed.unwrap_or_else(late) {
                Ok(listed) => listed.into_inner(),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "list hosts");
                    return infos;
                }
            };
            let wanted = |info: &HostInfo| ids.contains(&info.id);
            let found = listed.hosts.into_iter().filter_map(|host| host.info).filter(wanted);
            infos.extend(found.map(|info| (info.id.clone(), info)));
            if listed.next_page_token.is_empty() || infos.len() == ids.len() {
                return infos;
            }
            page_token = listed.next_page_token;
        }
    }
}

impl Sendable {
    /// A call for clones.
    fn parts(&self, clones: v1::SpawnClones) -> Vec<SpawnClonesRequest> {
        let parts = std::iter::once(Part::Clones(clones))
            .chain(self.manifest.chunks(PART_BYTES).map(|bytes| Part::Manifest(bytes.to_vec())))
            .chain(self.state.chunks(PART_BYTES).map(|bytes| Part::State(bytes.to_vec())));
        parts.map(|part| SpawnClonesRequest { part: Some(part) }).collect()
    }
}

async fn spawn_clones(
    client: &mut HostPeerClient<Channel>,
    there: &There,
    parts: Vec<SpawnClonesRequest>,
) -> Result<SpawnClonesResponse, RemoteError> {
    let host = || there.place.host.clone();
    let answer = timeout(PATIENCE, client.spawn_clones(stream::iter(parts))).await;
    let answer = answer.map_err(|_| RemoteError::Silent { host: host() })?;
    let answer = answer.map_err(|status| RemoteError::Refused { host: host(), status: Box::new(status) });
    Ok(answer?.into_inner())
}

/// The outcomes of clones that are not made on another host, all for one reason.
fn all_failed(there: &There, error: &Arc<RemoteError>) -> impl Iterator<Item = Outcome> {
    let failed = |vmid: &u32| Outcome { vmid: *vmid, made: Err(Arc::clone(error).into()) };
    there.vmids.iter().map(failed)
}

/// By which the times of another host become those of this one, whose clock differs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// When the other host's answer came, after the arrival of the first call here.
    answered: Duration,
    /// How long the other host had its call then, microseconds. 0: unknown.
    took_us: u64,
}

impl Clock {
    /// So long after the arrival of the call there. Nothing there is later than the answer.
    fn here(self, after_us: u64) -> Duration {
        self.answered.saturating_sub(Duration::from_micros(self.took_us.saturating_sub(after_us)))
    }
}

fn made(
    answer: &mut HashMap<u32, CloneOutcome>,
    vmid: u32,
    host: &str,
    clock: Clock,
) -> Result<(Made, Times), Error> {
    let host = host.to_owned();
    let Some(CloneOutcome { outcome: Some(outcome), executing_after_us, .. }) = answer.remove(&vmid) else {
        return Err(Arc::new(RemoteError::Untold { host }).into());
    };
    match outcome {
        clone_outcome::Outcome::Vm(vm) => {
            let times = Times { sent: clock.here(0), executing: clock.here(executing_after_us) };
            let vm = v1::Vm { host, ..vm };
            Ok((Made::There(Box::new(vm)), times))
        }
        clone_outcome::Outcome::Error(reason) => Err(Arc::new(RemoteError::Clone { host, reason }).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_another_host_count_from_the_first_call_and_end_with_the_answer() {
        let ms = Duration::from_millis;
        let clock = |took_us| Clock { answered: ms(30), took_us };
        assert_eq!(clock(20_000).here(5_000), ms(15));
        assert_eq!(clock(20_000).here(0), ms(10));
        // What cannot be, and what a host of an older release leaves out.
        assert_eq!(clock(20_000).here(u64::MAX), ms(30));
        assert_eq!(clock(u64::MAX).here(1), ms(0));
        assert_eq!(clock(0).here(5_000), ms(30));
    }
}
