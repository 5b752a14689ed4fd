//! Hosts in network namespaces, connected by veth, and the clones that they make for each other.

use super::RemoteError;
use crate::{
    daemon::{Cloned, Daemon, DaemonError, call},
    restore::served::Served,
};
use patina_daemon::tls::{Role, Security};
use patina_pki::{Address, Authority, Validity};
use patina_proto::v1::{
    CloneVmRequest, GetHostRequest, GetVmRequest, PlacementPolicy, Prepare, RequestTicketRequest, Vm,
};
use patina_tests::{
    host::Host,
    scheduler::Scheduler,
    setup::Setup,
    switch::{Entered, Switch},
};
use scheduler::client::{self, Client};
use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How many hosts there are.
pub const HOSTS: u8 = 3;
/// The port of every vmmd.
const PORT: u16 = 7001;
/// How long a host may keep the memory of VMs that were removed: leases end after some seconds.
pub const EMPTY_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_millis(500);
const CERTIFICATE_DAYS: u32 = 2;

/// See the module. The first host has the parents.
#[derive(Debug)]
pub struct Hosts {
    daemons: Vec<Daemon>,
    ids: Vec<String>,
    tickets: Client,
    scheduler: Scheduler,
    // This thread is in the first host's namespace: from there all are reached.
    _entered: Entered,
    switch: Switch,
    _certificates: TempDir,
}

/// A clone that is ready.
#[derive(Debug)]
pub struct Ready {
    /// Its host.
    pub host: usize,
    /// The clone.
    pub vm: Vm,
    /// Since the client's call.
    pub ms: f64,
}

/// A VM of the first host, which is cloned.
#[derive(Debug, Clone)]
pub struct Parent {
    name: String,
    family: String,
    memory_mib: u32,
}

impl Hosts {
    /// Starts them, with a scheduler. All that is between them is protected by TLS.
    pub async fn start(setup: &Setup) -> Result<Self, Box<dyn Error>> {
        let certificates = tempfile::tempdir()?;
        let authority = Authority::create(&certificates.path().join("pki"), days())?;
        let operator = authority.operator(&"bench".parse()?, Role::Admin, days(), false)?.folder;
        let scheduler = Scheduler::start(setup, &[])?;
        let switch = Switch::of(HOSTS)?;
        let entered = switch.enter(0)?;
        let (mut daemons, mut ids) = (Vec::new(), Vec::new());
        for number in 0..HOSTS {
            let daemon = start(setup, &scheduler, &switch, number, (&authority, &operator))?;
            let known = daemon.client.clone().get_host(GetHostRequest::default()).await;
            ids.push(known.map_err(call("GetHost", ""))?.into_inner().id);
            daemons.push(daemon);
        }
        let tickets = client::connect(&scheduler.address().parse()?, &Security::UnixOnly)?.client();
        let _entered = entered;
        Ok(Self { daemons, ids, tickets, scheduler, _entered, switch, _certificates: certificates })
    }

    /// Ends all of them.
    pub fn stop(self) -> Result<(), DaemonError> {
        let stopped = self.daemons.into_iter().map(Daemon::stop).collect::<Vec<_>>();
        stopped.into_iter().collect::<Result<(), _>>()?;
        Ok(self.scheduler.stop()?)
    }

    /// A host's vmmd.
    pub fn daemon(&self, host: usize) -> &Daemon {
        &self.daemons[host]
    }

    /// What connects the hosts.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// A VM of the first host that is ready.
    pub async fn parent(&self, name: &str) -> Result<Parent, DaemonError> {
        let name = name.to_owned();
        let vm = self.daemons[0].client.clone().get_vm(GetVmRequest { name: name.clone() }).await;
        let vm = vm.map_err(call("GetVm", &name))?.into_inner();
        Ok(Parent { name, family: vm.family, memory_mib: vm.memory_mib })
    }

    /// Has so many clones made on some hosts, as evenly as can be.
    pub async fn clone_on(
        &self,
        on: &[usize],
        parent: &Parent,
        count: u32,
        prepare: Prepare,
    ) -> Result<Cloned, DaemonError> {
        let ticket = RequestTicketRequest {
            family: parent.family.clone(),
            max_cpus: count,
            min_vms: count,
            min_cpus_per_vm: 1,
            vcpus: 1,
            memory_mib: parent.memory_mib,
            host_ids: on.iter().map(|host| self.ids[*host].clone()).collect(),
            policy: PlacementPolicy::Spread.into(),
            ..RequestTicketRequest::default()
        };
        let ticket = self.tickets.clone().request_ticket(ticket).await;
        let ticket = ticket.map_err(call("RequestTicket", &parent.name))?.into_inner().id;
        let (name, prepare) = (parent.name.clone(), prepare.into());
        self.daemons[0].call_clone(CloneVmRequest { name, ticket, prepare, ..Default::default() }).await
    }

    /// The processes of clones that were made on a host.
    pub async fn pids(&self, host: usize, cloned: &Cloned) -> Result<Vec<u32>, DaemonError> {
        let mut pids = Vec::new();
        for name in &cloned.names {
            let vm = self.daemons[host].client.clone().get_vm(GetVmRequest { name: name.clone() }).await;
            pids.push(vm.map_err(call("GetVm", name))?.into_inner().pid);
        }
        Ok(pids)
    }

    /// The processes of those clones that are on a host.
    pub async fn pids_there(&self, host: usize, cloned: &Cloned) -> Vec<u32> {
        let get = |name: &String| {
            let (mut client, name) = (self.daemons[host].client.clone(), name.clone());
            async move { client.get_vm(GetVmRequest { name }).await }
        };
        let found = futures::future::join_all(cloned.names.iter().map(get)).await;
        found.into_iter().flatten().map(|vm| vm.into_inner().pid).collect()
    }

    /// Waits until all of these clones are ready, each on one of some hosts.
    pub async fn ready(&self, on: &[usize], cloned: &Cloned) -> Result<Vec<Ready>, DaemonError> {
        let ready = async |name: &String| {
            // The clone is on one host, and the others say so at once.
            let asked = on.iter().map(|host| {
                let ready = async move { self.daemons[*host].ready(name).await.map(|vm| (*host, vm)) };
                Box::pin(ready)
            });
            let ((host, vm), _) = futures::future::select_ok(asked).await?;
            Ok::<_, DaemonError>(Ready { host, vm, ms: cloned.called.elapsed().as_secs_f64() * 1e3 })
        };
        futures::future::try_join_all(cloned.names.iter().map(ready)).await
    }

    /// Waits until a host has nothing of the memory of VMs that were removed.
    pub async fn until_empty(&self, host: usize) -> Result<(), RemoteError> {
        let deadline = Instant::now() + EMPTY_PATIENCE;
        loop {
            // Without a pager there is no layer.
            let is_empty = match Served::by(self.daemons[host].pid()) {
                Ok(pager) => host == 0 || pager.layers()?.is_empty(),
                Err(_) => true,
            };
            if is_empty {
                // What was removed is let go of, and a spare vmm is made.
                tokio::time::sleep(SETTLE).await;
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(RemoteError::Full { host });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends and forgets clones.
    pub async fn remove(&self, clones: Vec<Ready>) -> Result<(), RemoteError> {
        for (number, daemon) in self.daemons.iter().enumerate() {
            let here = clones.iter().filter(|clone| clone.host == number);
            let names: Vec<_> = here.map(|clone| clone.vm.name.clone()).collect();
            daemon.remove(&names).await?;
        }
        Ok(())
    }
}

fn days() -> Validity {
    Validity::days(CERTIFICATE_DAYS)
}

fn start(
    setup: &Setup,
    scheduler: &Scheduler,
    switch: &Switch,
    number: u8,
    (authority, operator): (&Authority, &Path),
) -> Result<Daemon, Box<dyn Error>> {
    let ip = switch.address(number);
    let addresses: [Address; 1] = [ip.parse()?];
    let certificate = authority.host(&format!("h{number}").parse()?, None, &addresses, days(), false)?;
    let (listen, tls) = (format!("tcp:{ip}:{PORT}"), certificate.folder.display().to_string());
    let scheduler = scheduler.address();
    let tcp = ["--scheduler", &scheduler, "--listen", &listen, "--tls-dir", &tls, "--overlay", &ip];
    // Beside those that the harness sets otherwise, vmmd's own defaults.
    let defaults = ["--spare", "1", "--image-cache", "none"];
    let options = [&tcp[..], &defaults].concat();
    let host = Host::start_over_tcp(setup, &switch.wrapper(number), &options, operator)?;
    let channel = client::channel(&host.address().parse()?, &Security::new(Some(operator), false)?)?;
    Ok(Daemon::of(host, channel))
}
