//! The calls of `patina.v1.Vmmd`.

use super::{
    Answers, Streams,
    clone_calls::{CloneCalls, REQUEST_MAX_CHARS},
    console, convert, exec,
    facts::Facts,
    images, logs, snapshots,
    status::invalid,
    watch,
};
use crate::{
    clock::unix_ms,
    plan::{
        place::{self, RestoreSpec},
        spec::Spec,
    },
    vms::{Host, Until, clone, error::Error, tickets::Wanted},
};
use patina_control::best_effort;
use patina_control::{messages::Prepare, monotonic_ns};
use patina_proto::v1::{self, vmmd_server::Vmmd, wait_vm_request};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Most VMs on a page.
pub const PAGE_MAX: usize = 1000;

/// How long a list waits for what vmmd takes over as it starts.
const LIST_PATIENCE: Duration = Duration::from_millis(500);

/// The service.
#[derive(Debug)]
pub struct Service {
    host: Arc<Host>,
    started_unix_ms: u64,
    streams: Streams,
    clone_calls: CloneCalls,
}

impl Service {
    /// Serves a host.
    #[must_use]
    pub fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            started_unix_ms: unix_ms(),
            streams: Streams::default(),
            clone_calls: CloneCalls::default(),
        }
    }

    /// Where a snapshot is that a request names.
    fn place(&self, path: &str) -> Result<PathBuf, Status> {
        let place = place::place("path", path, &self.host.state().snapshots());
        place.map_err(|wrong| Error::Invalid(vec![wrong]).into())
    }
}

/// How many clones a request is for; that a ticket is for as many is seen when it is used.
fn wanted(request: &v1::CloneVmRequest) -> Result<Wanted, Status> {
    let count = if request.count == 0 { 1 } else { request.count };
    if !clone::COUNT.contains(&count) {
        let (least, most) = (clone::COUNT.start(), clone::COUNT.end());
        return Err(invalid("count", &format!("{count} is not between {least} and {most}")));
    }
    if request.ticket.is_empty() {
        return Ok(Wanted::Count(count));
    }
    let id = request.ticket.parse().map_err(|_| invalid("ticket", "it is written as a UUID"))?;
    let count = (request.count != 0).then_some(count);
    Ok(Wanted::Ticket { id, epoch: request.ticket_epoch, count })
}

/// The caller's number for the call, if it gave one.
fn request_id(request: &v1::CloneVmRequest) -> Result<Option<String>, Status> {
    let id = &request.request_id;
    if id.chars().count() > REQUEST_MAX_CHARS {
        return Err(invalid("request_id", &format!("it has more than {REQUEST_MAX_CHARS} characters")));
    }
    Ok((!id.is_empty()).then(|| id.clone()))
}

/// How many VMs a page has; 0: the most.
fn page_size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => PAGE_MAX,
        Ok(asked) => asked.min(PAGE_MAX),
    }
}

/// What the guest's agent does before the freeze.
fn prepare(request: &v1::CloneVmRequest) -> Result<Prepare, Status> {
    match v1::Prepare::try_from(request.prepare) {
        Ok(v1::Prepare::Unspecified | v1::Prepare::Hold) => Ok(Prepare::Ask { hold: true, agent_abi_min: 0 }),
        Ok(v1::Prepare::NoHold) => Ok(Prepare::Ask { hold: false, agent_abi_min: 0 }),
        Ok(v1::Prepare::None) => Ok(Prepare::Not),
        // Of a newer client: nobody knows what it relies on.
        Err(_) => Err(invalid("prepare", &format!("this vmmd does not know the value {}", request.prepare))),
    }
}

#[tonic::async_trait]
impl Vmmd for Service {
    async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        let facts = Facts::gather();
        let mut message = v1::Host {
            revision: patina_daemon::REVISION.to_owned(),
            hostname: facts.hostname,
            kernel: facts.kernel,
            cpus: facts.cpus,
            memory_mib: facts.memory_mib,
            state_dir: self.host.state().path().display().to_string(),
            network: self.host.settings.range.to_string(),
            started_unix_ms: self.started_unix_ms,
            warm: self.host.table.warm(),
            scheduler: self.host.tickets.address().to_owned(),
            id: self.host.tickets.host_id().to_owned(),
            ..v1::Host::default()
        };
        message.set_kvm(facts.kvm);
        Ok(Response::new(message))
    }

    async fn create_vm(&self, request: Request<v1::CreateVmRequest>) -> Result<Response<v1::Vm>, Status> {
        let spec = Spec::check(request.into_inner(), &self.host.settings.images).map_err(Error::Invalid)?;
        let vm = self.host.create(spec).await?;
        Ok(Response::new(convert::vm(&vm)))
    }

    async fn clone_vm(
        &self,
        request: Request<v1::CloneVmRequest>,
    ) -> Result<Response<v1::CloneVmResponse>, Status> {
        let arrived_ns = monotonic_ns();
        let request = request.into_inner();
        let parent = self.host.find(&request.name).await?;
        let (family, vmid) = (parent.record.family, parent.record.vmid);
        let number = request_id(&request)?;
        let call = clone::Call {
            wanted: wanted(&request)?,
            parent,
            prepare: Some(prepare(&request)?),
            request: number.clone(),
            arrived_ns,
            asked: None,
            abandoned: CancellationToken::new(),
        };
        let Some(number) = number else {
            return Ok(Response::new(convert::clones(self.host.clone_vm(call).await?)));
        };
        let (host, key) = (Arc::clone(&self.host), (family, vmid, number.clone()));
        let answer = async move {
            let made = host.clones_of_call(&call.parent.record, &number).await?;
            if !made.is_empty() {
                return Ok(convert::clones_made(&made));
            }
            Ok(convert::clones(host.clone_vm(call).await?))
        };
        self.clone_calls.answer(key, answer).await.map(Response::new)
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::Vm>, Status> {
        let vm = self.host.find(&request.into_inner().name).await?;
        Ok(Response::new(convert::vm(&vm)))
    }

    async fn list_vms(
        &self,
        request: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size);
        best_effort(
            self.host.adopted(LIST_PATIENCE).await,
            "what takes longer to be taken over is listed as such",
        );
        // A page's token is the last name on it: names stay in order whatever comes and goes in
        // between.
        let (entries, more) = self.host.table.page(&request.page_token, size);
        let vms: Vec<_> = entries.iter().map(convert::entry).collect();
        let next = vms.last().filter(|_| more).map(|vm| vm.name.clone());
        Ok(Response::new(v1::ListVmsResponse { vms, next_page_token: next.unwrap_or_default() }))
    }

    async fn kill_vm(&self, request: Request<v1::KillVmRequest>) -> Result<Response<v1::Vm>, Status> {
        let vm = self.host.kill(&request.into_inner().name, "killed by an operator").await?;
        Ok(Response::new(convert::vm(&vm)))
    }

    async fn publish_ports(
        &self,
        request: Request<v1::PublishPortsRequest>,
    ) -> Result<Response<v1::Vm>, Status> {
        let v1::PublishPortsRequest { name, ports } = request.into_inner();
        let vm = self.host.publish_ports(&name, &ports).await?;
        Ok(Response::new(convert::vm(&vm)))
    }

    async fn unpublish_ports(
        &self,
        request: Request<v1::UnpublishPortsRequest>,
    ) -> Result<Response<v1::Vm>, Status> {
        let v1::UnpublishPortsRequest { name, ports } = request.into_inner();
        let vm = self.host.unpublish_ports(&name, &ports).await?;
        Ok(Response::new(convert::vm(&vm)))
    }

    async fn remove_vm(
        &self,
        request: Request<v1::RemoveVmRequest>,
    ) -> Result<Response<v1::RemoveVmResponse>, Status> {
        let request = request.into_inner();
        if request.broken {
            self.host.remove_broken(&request.name).await?;
        } else {
            self.host.remove(&request.name, request.force).await?;
        }
        Ok(Response::new(v1::RemoveVmResponse {}))
    }

    async fn wait_vm(&self, request: Request<v1::WaitVmRequest>) -> Result<Response<v1::Vm>, Status> {
        let request = request.into_inner();
        let until = match wait_vm_request::Until::try_from(request.until) {
            Ok(wait_vm_request::Until::Ready) => Until::Ready,
            Ok(wait_vm_request::Until::Unspecified | wait_vm_request::Until::Ended) => Until::Ended,
            Err(_) => return Err(invalid("until", "not a state that can be waited for")),
        };
        let vm = self.host.find(&request.name).await?;
        match request.timeout_ms {
            0 => vm.wait(until).await?,
            timeout_ms => {
                let late = |_| Error::WaitTimeout { name: request.name, timeout_ms };
                timeout(Duration::from_millis(timeout_ms), vm.wait(until)).await.map_err(late)??;
            }
        }
        Ok(Response::new(convert::vm(&vm)))
    }

    type ExecStream = Answers<v1::ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        exec::run(&self.host, self.streams.permit()?, request.into_inner()).await.map(Response::new)
    }

    type ConsoleStream = Answers<v1::ConsoleResponse>;

    async fn console(
        &self,
        request: Request<Streaming<v1::ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        console::run(&self.host, self.streams.permit()?, request.into_inner()).await.map(Response::new)
    }

    type LogsStream = Answers<v1::LogsResponse>;

    type WatchEventsStream = Answers<v1::Event>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = self.streams.permit()?;
        Ok(Response::new(watch::events(&self.host, permit, request.into_inner())))
    }

    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageResponse>, Status> {
        let v1::ListUsageRequest { page_size: size, page_token } = request.into_inner();
        let host = Arc::clone(&self.host);
        // It reads two files of each VM.
        let usage =
            tokio::task::spawn_blocking(move || watch::usage(&host, &page_token, page_size(size))).await;
        usage.map(Response::new).map_err(|_| Error::Stopping.into())
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let place = self.place(&request.path)?;
        let vm = self.host.find(&request.name).await?;
        let kept = self.host.create_snapshot(vm, place).await?;
        Ok(Response::new(snapshots::kept(kept)))
    }

    async fn restore_snapshot(
        &self,
        request: Request<v1::RestoreSnapshotRequest>,
    ) -> Result<Response<v1::RestoreSnapshotResponse>, Status> {
        let arrived_ns = monotonic_ns();
        let own = self.host.state().snapshots();
        let spec = RestoreSpec::check(request.into_inner(), &own).map_err(Error::Invalid)?;
        let restored = self.host.restore(spec, arrived_ns).await?;
        Ok(Response::new(snapshots::restored(restored)))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let directory = match request.directory.as_str() {
            "" => None,
            text if text.starts_with('/') => Some(text.into()),
            text => return Err(invalid("directory", &format!("{text:?} is not an absolute path"))),
        };
        // No more are opened than there are on the page, and one that tells whether there is
        // another.
        let size = snapshots::page_size(request.page_size);
        let listed = self.host.snapshots(directory, request.page_token, size + 1).await?;
        Ok(Response::new(snapshots::page(listed, size)))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let shown = self.host.snapshot(self.place(&request.into_inner().path)?).await?;
        Ok(Response::new(snapshots::shown(&shown)))
    }

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<v1::VerifySnapshotResponse>, Status> {
        let verified = self.host.verify_snapshot(self.place(&request.into_inner().path)?).await?;
        Ok(Response::new(snapshots::verified(&verified)))
    }

    async fn remove_snapshot(
        &self,
        request: Request<v1::RemoveSnapshotRequest>,
    ) -> Result<Response<v1::RemoveSnapshotResponse>, Status> {
        self.host.remove_snapshot(self.place(&request.into_inner().path)?).await?;
        Ok(Response::new(v1::RemoveSnapshotResponse {}))
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let v1::ListImagesRequest { page_size, page_token } = request.into_inner();
        let (all, vms) = (self.host.images().await?, self.host.table.all());
        Ok(Response::new(images::page(all, &vms, &page_token, page_size)))
    }

    async fn prune_images(
        &self,
        request: Request<v1::PruneImagesRequest>,
    ) -> Result<Response<v1::PruneImagesResponse>, Status> {
        let pruned = self.host.prune_images(request.into_inner().all).await?;
        Ok(Response::new(images::pruned(&pruned)))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        logs::run(&self.host, self.streams.permit()?, &request.into_inner()).await.map(Response::new)
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
