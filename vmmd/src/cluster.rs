//! The scheduler of this host: built in (`--standalone`), or elsewhere (`--scheduler`).

use crate::{
    grpc::facts::Facts,
    identity::identity,
    options::Options,
    pager::Pager,
    process::host_check,
    store::{StateDir, StoreError},
    vms::tickets::Tickets,
};
use patina_daemon::{
    tls::{Security, Tls, TlsError},
    values::{milliseconds, percent},
};
use patina_proto::v1::{HostIdentity, HostInfo, scheduler_server::SchedulerServer};
use scheduler::{
    client::{self, TargetError},
    core::{api, ticket::Policy},
    embedded::Embedded,
    engine::EngineError,
    grpc::Service,
    host::facts::message,
    store::{
        self,
        file::{FileStore, Lasting},
    },
};
use uuid::Uuid;

/// How long a ticket is remembered after its end.
const REMEMBER_MS: u64 = 24 * 3600 * 1000;

/// Why there is no scheduler.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This host has no number.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The scheduler's address.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is of another host.
    #[error(
        "the certificate is for host {certificate}, and this host is {own}; make one for it with `vmctl pki host NAME --id {own}`"
    )]
    OtherHost {
        /// The host that the certificate is for.
        certificate: Uuid,
        /// The number in the state folder.
        own: Uuid,
    },
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] store::StoreError),
    /// The built-in scheduler does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The way to the scheduler, and the scheduler itself where it is built in.
#[derive(Debug)]
pub struct Cluster {
    tickets: Tickets,
    embedded: Option<Embedded>,
}

impl Cluster {
    /// Connects to the scheduler, or starts it. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The ledger cannot be read, or the certificate is not for this host.
    pub fn open(options: &Options, state: &StateDir, security: &Security) -> Result<Self, ClusterError> {
        let identity = identity(state.path());
        let host_id = match security {
            Security::Tls(tls) => certified(state, tls, &identity.machine, options.scheduler.is_some())?,
            Security::Insecure | Security::UnixOnly => state.host_id(&identity.machine, None)?,
        };
        let info = info(options, host_id, identity);
        if let Some(target) = &options.scheduler {
            let target = target.clone().secured(security)?;
            let tickets = Tickets::new(client::connect(&target, security)?, info, target.to_string());
            return Ok(Self { tickets, embedded: None });
        }
        // What the ledger tells of does not outlive this host, so it need not either.
        let store = FileStore::open(&state.path().join("scheduler"), Lasting::Process)?;
        let embedded = Embedded::start(Box::new(store), granting(options))?;
        let tickets = Tickets::new(embedded.connection(), info, String::new());
        Ok(Self { tickets, embedded: Some(embedded) })
    }

    /// For the host's VMs.
    #[must_use]
    pub fn tickets(&self) -> Tickets {
        self.tickets.clone()
    }

    /// The built-in scheduler's service, for operators.
    #[must_use]
    pub fn service(&self) -> Option<SchedulerServer<Service>> {
        self.embedded.as_ref().map(Embedded::service)
    }

    /// The built-in scheduler.
    #[must_use]
    pub fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }

    /// Ends the built-in scheduler; its ledger is closed when this returns.
    pub async fn stop(self) {
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// The id of this host: a new one takes that of its certificate. A scheduler heeds no host that
/// has another one.
fn certified(state: &StateDir, tls: &Tls, machine: &str, is_member: bool) -> Result<Uuid, ClusterError> {
    let certificate = tls.host_id()?;
    let own = state.host_id(machine, Some(certificate))?;
    if is_member && own != certificate {
        return Err(ClusterError::OtherHost { certificate, own });
    }
    Ok(own)
}

/// How the built-in scheduler grants.
pub(crate) fn granting(options: &Options) -> api::Options {
    api::Options {
        ttl_ms: milliseconds(options.granting.ticket_ttl),
        // It lives and dies with this host.
        lease_ms: 0,
        lost_after_ms: 0,
        remember_ms: REMEMBER_MS,
        // Of hosts that do not say: this one does.
        cpu_percent: percent(options.overcommit_cpu),
        memory_percent: percent(options.overcommit_memory),
        policy: Policy::Pack,
    }
}

/// This host, as it describes itself.
fn info(options: &Options, host_id: Uuid, identity: HostIdentity) -> HostInfo {
    let facts = Facts::gather();
    HostInfo {
        id: host_id.to_string(),
        name: facts.hostname,
        address: options.own_address(),
        cpus: facts.cpus,
        memory_mib: facts.memory_mib,
        max_vms: options.max_vms,
        cpu_percent: percent(options.overcommit_cpu),
        memory_percent: percent(options.overcommit_memory),
        identity: Some(identity),
        overlay: options.overlay.map(|overlay| overlay.to_string()).unwrap_or_default(),
        network: options.network.to_string(),
        // As they are in the state of a VM that is made here.
        facts: host_check::facts().map(|facts| message(facts, Pager::is_supported())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn a_host_grants_as_much_more_than_it_has_with_either_scheduler() {
        for way in ["--standalone", "--scheduler=unix:/s"] {
            let says = |words: &str| {
                let line = format!("vmmd {way} {words}");
                let options = Options::try_parse_from(line.split_whitespace()).unwrap();
                let info = info(&options, Uuid::from_u128(1), HostIdentity::default());
                (info.cpu_percent, info.memory_percent)
            };
            assert_eq!(says(""), (12_800, 800), "{way}");
            assert_eq!(says("--overcommit-cpu 1.5 --overcommit-memory 1"), (150, 100), "{way}");
        }
    }
}
