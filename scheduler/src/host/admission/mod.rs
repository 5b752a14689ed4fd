//! Which clones a host makes, and that the scheduler knows of each of them, whatever breaks.
//!
//! ```text
//!            registered?      UseTicket            started
//!  admit ───▶ making ─────────▶ making, used ──────▶ runs (Vms::running) ───▶ ended
//!                │ refused          │ not made, or nothing was           │
//!                ▼                  ▼                                    ▼
//!        nothing to say      the scheduler is told, by a Reservation that is dropped
//! ```
//!
//! - A clone is *in the making* from before the scheduler is asked for it until it is listed among
//!   the clones that run. So a registration always finds it in one of the two lists. Family and
//!   vmid identify it.
//! - An order to kill a clone in the making is kept: the clone is not started, or ends as soon as
//!   it runs. The vmids of clones that were not made are used again. So an order names the ticket
//!   and its epoch, and an order for an earlier clone with the same vmid is ignored.
//! - Every clone has a [`Reservation`] of its ticket from the beginning. When the reservation is
//!   dropped, the scheduler is told how the clone has ended. There is one exception: if the
//!   scheduler itself has said that nothing was used, it is told nothing, and the vmids can be
//!   used for other clones.
//!
//! `making`: the clones in the making and the reservations. `request`: tickets that are requested
//! and released. `vmmd` and the simulation of a cluster with failures use the same code; what
//! differs between them is behind [`Vms`].

mod making;
mod request;

pub use making::Reservation;

use super::{HostLink, Registration};
use crate::client::{
    Client, Connection, HostClient,
    calls::{Failed, PATIENCE, answered},
};
use making::{HostClones, Making};
use patina_daemon::chain;
use patina_proto::v1::{
    AdmitClonesRequest, HostInfo, RunningClone, Ticket, TicketState, UseTicketRequest, VmEnd,
};
use request::{Asking, Wanted};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tokio::time::timeout;
use tonic::Status;
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// A host's VMs, as its [`Admission`] needs them. All are called from tokio tasks and must not
/// block.
pub trait Vms: Send + Sync + 'static {
    /// All clones that run here, from before [`Admission::started`] until their [`Reservation`] is
    /// dropped.
    fn running(&self) -> Vec<RunningClone>;
    /// The families whose master lives here.
    fn masters(&self) -> Vec<String>;
    /// The memory that is really free on this host now, MiB; None: not known.
    fn free_memory_mib(&self) -> Option<u64> {
        None
    }
    /// The kernels and root file systems that are here now, by their digests; None: not known.
    fn images(&self) -> Option<Vec<Vec<u8>>> {
        None
    }
    /// Those of these clones of a ticket that run here are to end. Others with such a vmid are not
    /// meant.
    fn end(&self, family: &str, ticket: &str, vmids: &[u32], reason: &str);
}

/// Clones that a VM is to have.
#[derive(Debug, Clone)]
pub struct CloneRequest {
    /// The UUID of the family that gets the clones.
    pub family: String,
    /// The vmid of the VM that is cloned.
    pub parent_vmid: u32,
    /// vCPUs of each clone.
    pub vcpus: u32,
    /// Memory of each clone, MiB.
    pub memory_mib: u32,
    /// The clones' vmids, which no other clone of the family has.
    pub vmids: Vec<u32>,
}

/// What authorizes a host to make them.
#[derive(Debug, Clone)]
pub enum Authorization {
    /// A ticket that was granted.
    Ticket {
        /// The ticket's UUID.
        id: String,
        /// The ticket's epoch as the caller knows it; 0: any epoch.
        epoch: u64,
    },
    /// This host's part of a ticket that was granted over several hosts: what it has on others
    /// stays theirs.
    Part {
        /// The ticket's UUID.
        id: String,
        /// The ticket's epoch as the caller knows it; 0: any epoch.
        epoch: u64,
        /// The UUID of the host on which the VM is that is cloned.
        parent_host: String,
    },
    /// One that is granted for them and used in one step, if there is room now. The number is the
    /// request's.
    Immediate(Uuid),
}

/// Why clones must not be made.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// The scheduler does not know this host at the moment.
    #[error("make clones: the scheduler is registering this host; try again")]
    Registering {
        /// Whether their vmids can be given to other clones.
        is_unused: bool,
    },
    /// The scheduler says no, or nothing.
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl NotAdmitted {
    /// Whether their vmids can be given to other clones: the scheduler knows none of that number.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        match self {
            Self::Registering { is_unused } => *is_unused,
            Self::Failed(failed) => matches!(failed, Failed::Refused(_)),
        }
    }
}

/// The host's side of tickets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    connection: Connection,
    info: HostInfo,
    link: OnceLock<HostLink>,
    making: Mutex<BTreeMap<Key, Making>>,
    /// Those who wait for a registration take turns, so that they go on in the order in which they
    /// came.
    turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("host", &self.info.id).finish_non_exhaustive()
    }
}

/// Family and vmid.
type Key = (String, u32);

/// The authorization to make clones now.
#[derive(Debug)]
pub struct Admitted {
    admission: Admission,
    ticket: Ticket,
    reservations: Vec<Reservation>,
}

impl Admission {
    /// Of the host `info`.
    #[must_use]
    pub fn new(connection: Connection, info: HostInfo) -> Self {
        let (link, making, turn) = Default::default();
        Self(Arc::new(Shared { connection, info, link, making, turn }))
    }

    /// Registers the host and keeps it so, now that all that runs is known. To be called in a tokio
    /// runtime, once.
    pub fn register(&self, vms: impl Vms) {
        let clones = Arc::new(HostClones { shared: Arc::downgrade(&self.0), vms });
        self.0.link.get_or_init(|| HostLink::start(self.host_client(), self.0.info.clone(), clones));
    }

    /// To call the scheduler.
    #[must_use]
    pub fn client(&self) -> Client {
        self.0.connection.client()
    }

    pub(super) fn host_client(&self) -> HostClient {
        self.0.connection.host_client()
    }

    /// The host's number.
    #[must_use]
    pub fn host_id(&self) -> &str {
        &self.0.info.id
    }

    /// The link, once there is one.
    #[must_use]
    pub fn link(&self) -> Option<&HostLink> {
        self.0.link.get()
    }

    /// Waits until the scheduler has registered this host, at most `patience`.
    pub async fn registered(&self, patience: Duration) -> bool {
        self.epoch_now().is_some() || timeout(patience, self.epoch()).await.is_ok()
    }

    fn epoch_now(&self) -> Option<u64> {
        match *self.link()?.registration().borrow() {
            Registration::Registered { epoch, .. } => Some(epoch),
            Registration::Away { .. } => None,
        }
    }

    /// The epoch of the registration, as soon as there is one. For ever, if need be: callers have a
    /// deadline.
    async fn epoch(&self) -> u64 {
        if let Some(epoch) = self.epoch_now() {
            return epoch;
        }
        let _turn = self.0.turn.lock().await;
        if let Some(link) = self.link() {
            let mut registration = link.registration();
            loop {
                if let Registration::Registered { epoch, .. } = *registration.borrow_and_update() {
                    return epoch;
                }
                if registration.changed().await.is_err() {
                    break;
                }
            }
        }
        std::future::pending().await
    }

    /// Takes the authorization to make clones.
    ///
    /// # Errors
    /// There is none, or it cannot be had now.
    pub async fn admit(
        &self,
        clone_request: &CloneRequest,
        authorization: &Authorization,
    ) -> Result<Admitted, NotAdmitted> {
        if !self.registered(PATIENCE).await {
            return Err(NotAdmitted::Registering { is_unused: true });
        }
        match authorization {
            Authorization::Ticket { id, epoch } => self.use_ticket(clone_request, id, *epoch, None).await,
            Authorization::Part { id, epoch, parent_host } => {
                self.use_ticket(clone_request, id, *epoch, Some(parent_host)).await
            }
            Authorization::Immediate(request_id) => self.grant(clone_request, *request_id).await,
        }
    }

    async fn use_ticket(
        &self,
        clone_request: &CloneRequest,
        id: &str,
        epoch: u64,
        parent_host: Option<&str>,
    ) -> Result<Admitted, NotAdmitted> {
        let parent_host_id = parent_host.unwrap_or_default();
        // Before the first try: whenever the scheduler asks what there is here, they are part of
        // it.
        let mut reservations = self.begin(clone_request, id, parent_host_id);
        let used = answered(Duration::ZERO, |_| async {
            let host_epoch = self.epoch().await;
            let request = UseTicketRequest {
                id: id.to_owned(),
                family: clone_request.family.clone(),
                epoch,
                host_id: self.host_id().to_owned(),
                parent_vmid: clone_request.parent_vmid,
                vmids: clone_request.vmids.clone(),
                host_epoch,
                keep_others: parent_host.is_some(),
                parent_host_id: parent_host_id.to_owned(),
            };
            let used = self.host_client().use_ticket(request).await;
            used.map(tonic::Response::into_inner)
                .map_err(|status| if epoch == 0 { anew(status) } else { status })
        });
        match used.await {
            Ok(ticket) => Ok(self.used(ticket, reservations)),
            Err(failed) => {
                let is_known = !matches!(failed, Failed::Refused(_));
                reservations.iter_mut().for_each(|reservation| reservation.is_known = is_known);
                Err(failed.into())
            }
        }
    }

    async fn grant(&self, clone_request: &CloneRequest, request_id: Uuid) -> Result<Admitted, NotAdmitted> {
        let request = AdmitClonesRequest {
            family: clone_request.family.clone(),
            request_id: request_id.to_string(),
            host_id: self.host_id().to_owned(),
            host_epoch: 0,
            parent_vmid: clone_request.parent_vmid,
            vmids: clone_request.vmids.clone(),
            vcpus: clone_request.vcpus,
            memory_mib: clone_request.memory_mib,
        };
        // Should the caller leave, or no answer come, what was granted unseen is asked for once
        // more and goes back.
        let mut asking = Asking::new(self, Wanted::Clones(request.clone()));
        // Each try has the same request number, so it is granted once, and the epoch of the
        // registration that there is then.
        let granted = answered(Duration::ZERO, |_| async {
            let host_epoch = self.epoch().await;
            let ticket = self.admit_once(AdmitClonesRequest { host_epoch, ..request.clone() }).await;
            ticket.map(|ticket| (ticket, host_epoch)).map_err(anew)
        });
        let (ticket, host_epoch) = asking.over(granted.await)?;
        // Only now, as the ticket had no number before: until here no registration lists these
        // clones.
        let reservations = self.begin(clone_request, &ticket.id, "");
        // A registration that began before they were in the making took them for ended.
        let is_whole = self.epoch_now() == Some(host_epoch) && ticket.state() == TicketState::Used;
        let admitted = self.used(ticket, reservations);
        if is_whole {
            return Ok(admitted);
        }
        Err(NotAdmitted::Registering { is_unused: admitted.give_back().await })
    }

    /// The master of a family has ended.
    pub fn master_ended(&self, family: &str, end: VmEnd) {
        // Of those that ended before there is a link the first registration tells.
        if let Some(link) = self.link() {
            link.ended(RunningClone { family: family.to_owned(), ..RunningClone::default() }, end);
        }
    }
}

/// The host's epoch is over, or not known yet: to be asked again with the next one, as if nobody
/// had answered.
fn anew(status: Status) -> Status {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match reason.as_deref() {
        Some("STALE_EPOCH" | "UNKNOWN_HOST") => Status::unavailable(status.message()),
        _ => status,
    }
}

impl Admitted {
    /// The ticket that was used.
    #[must_use]
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The parts of the clones, in the order in which their vmids were given.
    #[must_use]
    pub fn into_reservations(self) -> Vec<Reservation> {
        self.reservations
    }

    /// Nothing was cloned: the ticket is as if it had not been used. Returns whether the vmids can
    /// be given to other clones.
    pub async fn give_back(mut self) -> bool {
        let given = self.admission.unuse(&self.ticket).await;
        if let Err(error) = &given {
            tracing::warn!(ticket = self.ticket.id, error = %chain(&error), "give back a ticket");
        }
        // Where that is not certain, the scheduler is told of each clone that it was not made.
        self.reservations.iter_mut().for_each(|reservation| reservation.is_known = given.is_err());
        given.is_ok()
    }
}

#[cfg(test)]
#[path = "admission_test.rs"]
mod tests;
