//! A host's calls to its scheduler about tickets. The scheduler keeps the tickets. Clones requested
//! by count get a ticket that is granted and used in one step. [`scheduler::host::admission`] keeps
//! the scheduler's ledger and the running clones consistent.

mod convert;
mod rest;

pub(super) use convert::{end, running};

use super::{error::Error, remote_data::place::Elsewhere};
use crate::{plan::lifecycle::Ended, store::record::Record};
use patina_abi::link::TicketView;
use patina_daemon::lock;
use patina_proto::v1::{FamilyVm, GetTicketRequest, HostInfo, Placement, Ticket, TicketState};
use scheduler::{
    client::{
        Client, Connection,
        calls::{Failed, answered, is_away, once},
    },
    host::admission::{Admission, Admitted, Authorization, CloneRequest, NotAdmitted, Reservation, Vms},
};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;
use tonic::{Response, Status};
use uuid::Uuid;

/// Longest that a guest may wait for a ticket.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How many clones are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This number of clones.
    Count(u32),
    /// As many as a ticket has on this host.
    Ticket {
        /// The ticket's number.
        id: Uuid,
        /// The ticket's epoch as the caller knows it; 0: any epoch.
        epoch: u64,
        /// How many clones the caller expects the ticket to be for, if it says so.
        count: Option<u32>,
    },
    /// As many as a ticket has on this host, which has parts on other hosts, too.
    Part {
        /// The ticket's number.
        id: Uuid,
        /// The ticket's epoch as the caller knows it; 0: any epoch.
        epoch: u64,
        /// The host of the VM that is cloned.
        parent_host: Uuid,
    },
}

/// The host's way to its scheduler.
#[derive(Debug, Clone)]
pub struct Tickets(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) admission: Admission,
    // Where the scheduler is, for people; empty: in this process.
    address: String,
    // Granted to guests of this host, and not used since.
    granted: Mutex<HashMap<Uuid, Granted>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) family: Uuid,
    vms: u32,
    // By this host's clock, which may show another time than the scheduler's. None: later than this
    // host can say.
    until: Option<Instant>,
}

impl Granted {
    /// What a ticket has on this host.
    pub(super) fn new(family: Uuid, ticket: &Ticket, own_host: &str) -> Self {
        let until = Instant::now().checked_add(Duration::from_millis(ticket.expires_in_ms));
        let here = ticket.placements.iter().filter(|place| place.host_id == own_host);
        Self { family, vms: here.map(|place| place.vms).fold(0, u32::saturating_add), until }
    }
}

impl Tickets {
    /// Of the host `info`, whose scheduler is at `address` (empty: in this process).
    #[must_use]
    pub fn new(connection: Connection, info: HostInfo, address: String) -> Self {
        let admission = Admission::new(connection, info);
        Self(Arc::new(Shared { admission, address, granted: Mutex::default() }))
    }

    /// Registers the host, now that all that runs is known.
    pub fn register(&self, vms: impl Vms) {
        self.0.admission.register(vms);
    }

    /// To call the scheduler.
    #[must_use]
    pub fn client(&self) -> Client {
        self.0.admission.client()
    }

    /// This host's number.
    #[must_use]
    pub fn host_id(&self) -> &str {
        self.0.admission.host_id()
    }

    /// Where the scheduler is; empty: in this process.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Waits until the scheduler has registered this host, at most `patience`.
    pub async fn registered(&self, patience: Duration) -> bool {
        self.0.admission.registered(patience).await
    }

    pub(super) fn granted(&self) -> MutexGuard<'_, HashMap<Uuid, Granted>> {
        // No code panics under this lock; if some did, the map itself is still whole.
        lock(&self.0.granted)
    }

    /// An error of the scheduler, or the scheduler does not answer.
    pub fn failed(&self, call: &'static str, status: Status) -> Error {
        if is_away(&status) {
            let address = self.0.address.clone();
            return Error::NoScheduler { call, address, status: Box::new(status) };
        }
        Error::Scheduler(Box::new(status))
    }

    /// Makes a call that does the same when it is made twice, until it is answered: for as long as
    /// it may `wait`, and some seconds. It is given what is left of `wait`.
    ///
    /// # Errors
    /// The scheduler says no, or nothing.
    pub async fn ask<T, F>(
        &self,
        call: &'static str,
        wait: Duration,
        ask: impl Fn(Client, Duration) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = answered(wait, |left| {
            let asked = ask(self.client(), left);
            async move { asked.await.map(Response::into_inner) }
        });
        answer.await.map_err(|failed| self.failed(call, failed.into_status()))
    }

    /// Makes a call once, for as long as it may `wait`, and some seconds; without a time as long as
    /// the connection lives.
    ///
    /// # Errors
    /// The scheduler says no, or nothing.
    pub async fn ask_once<T>(
        &self,
        call: &'static str,
        wait: Option<Duration>,
        asked: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        let answer = match wait {
            Some(wait) => once(wait, asked).await.map_err(Failed::into_status),
            None => asked.await,
        };
        answer.map(Response::into_inner).map_err(|status| self.failed(call, status))
    }

    /// A ticket of a family, as it is now.
    ///
    /// # Errors
    /// It is not there, not the family's, or the scheduler does not answer.
    pub async fn get(&self, id: Uuid, family: Uuid) -> Result<Ticket, Error> {
        let request = GetTicketRequest { id: id.to_string(), family: family.to_string() };
        let get = |mut client: Client, _| {
            let request = request.clone();
            async move { client.get_ticket(request).await }
        };
        self.ask("look at a ticket", Duration::ZERO, get).await
    }

    /// How many clones a ticket is for on this host, and on which other hosts it is for how many.
    ///
    /// # Errors
    /// It is not there, not the family's, or the scheduler does not answer.
    pub async fn size(&self, id: Uuid, family: Uuid) -> Result<(u32, Vec<Elsewhere>), Error> {
        let ticket = self.get(id, family).await?;
        if ticket.state() != TicketState::Granted {
            // The call that uses the ticket says why it cannot be used.
            return Ok((ticket.vms.max(1), Vec::new()));
        }
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            ticket.placements.into_iter().partition(|place| place.host_id == self.host_id());
        let elsewhere = elsewhere.into_iter().filter(|place| place.vms > 0);
        let elsewhere =
            elsewhere.map(|Placement { host_id, host, vms }| Elsewhere { host_id, host, vms }).collect();
        Ok((here.iter().map(|place| place.vms).sum(), elsewhere))
    }

    /// Takes the authorization to make the clones of these vmids.
    ///
    /// # Errors
    /// There is no room, the ticket cannot be used, or the scheduler does not answer; and whether
    /// the vmids can be given to other clones.
    pub async fn admit(
        &self,
        parent: &Record,
        wanted: Wanted,
        vmids: Vec<u32>,
    ) -> Result<(Admitted, Uuid), (Error, bool)> {
        let clone_request = CloneRequest {
            family: parent.family.to_string(),
            parent_vmid: parent.vmid,
            vcpus: parent.vcpus.into(),
            memory_mib: parent.memory_mib,
            vmids,
        };
        let (authorization, call) = match wanted {
            Wanted::Count(_) => (Authorization::Immediate(Uuid::new_v4()), "make clones"),
            Wanted::Ticket { id, epoch, .. } => {
                (Authorization::Ticket { id: id.to_string(), epoch }, "use a ticket")
            }
            Wanted::Part { id, epoch, parent_host } => {
                let parent_host = parent_host.to_string();
                (Authorization::Part { id: id.to_string(), epoch, parent_host }, "use a ticket")
            }
        };
        match self.0.admission.admit(&clone_request, &authorization).await {
            Ok(admitted) => {
                let id = number(&admitted.ticket().id).map_err(|error| (error, false))?;
                self.granted().remove(&id);
                Ok((admitted, id))
            }
            Err(why) => {
                let is_unused = why.is_unused();
                let error = match why {
                    NotAdmitted::Registering { .. } => Error::Registering,
                    NotAdmitted::Failed(failed) => self.failed(call, failed.into_status()),
                };
                Err((error, is_unused))
            }
        }
    }

    /// Reserves vmids of a family, which nobody else gives.
    ///
    /// # Errors
    /// The family has not so many left, or the scheduler does not answer.
    pub(super) async fn reserve_vmids(
        &self,
        family: Uuid,
        count: u32,
        at_least: u32,
    ) -> Result<Range<u32>, Error> {
        let admission = &self.0.admission;
        let first = admission.reserve_vmids(&family.to_string(), count, at_least, Uuid::new_v4()).await;
        let first = first.map_err(|failed| self.failed("reserve vmids", failed.into_status()))?;
        Ok(first..first.saturating_add(count))
    }

    /// The VMs of a family that live, on all hosts.
    ///
    /// # Errors
    /// The scheduler does not answer.
    pub(super) async fn list_family(&self, family: Uuid) -> Result<Vec<FamilyVm>, Error> {
        let listed = self.0.admission.list_family(&family.to_string()).await;
        listed.map_err(|failed| self.failed("list the family's VMs", failed.into_status()))
    }

    /// A clone is in the table from now on. Returns why it is to end at once, if it is.
    #[must_use]
    pub(super) fn started(&self, record: &Record) -> Option<String> {
        self.0.admission.started(&record.family.to_string(), record.vmid)
    }

    /// The reservation of a clone that was found running.
    #[must_use]
    pub fn find(&self, record: &Record) -> Option<Reservation> {
        Some(self.0.admission.reservation(running(record)?))
    }

    /// The master of a family has ended.
    pub(super) fn master_ended(&self, family: Uuid, ended: &Ended) {
        self.0.admission.master_ended(&family.to_string(), end(ended));
    }

    /// How many VMs a family may clone at any moment with its tickets, and after which time that is
    /// looked at again.
    pub(super) fn reserved(&self, family: Uuid) -> (u32, Option<Duration>) {
        let now = Instant::now();
        let mut granted = self.granted();
        granted.retain(|_, granted| granted.until.is_none_or(|until| until > now));
        let own = granted.values().filter(|granted| granted.family == family);
        let first = own.clone().filter_map(|granted| granted.until).min();
        (own.map(|granted| granted.vms).sum(), first.map(|until| until.saturating_duration_since(now)))
    }
}

/// What a clone was made under. Those of a vmmd without a scheduler have their own number for it.
pub(super) fn ticket_of(record: &Record) -> Option<Uuid> {
    (record.vmid > 0).then(|| record.ticket.unwrap_or(record.uuid))
}

pub(super) fn number(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| {
        let message = format!("read the scheduler's answer: {text:?} is no UUID");
        Error::Scheduler(Box::new(Status::internal(message)))
    })
}

/// A ticket as guests see it.
pub(super) fn view(ticket: &Ticket) -> TicketView {
    let status = match ticket.state() {
        TicketState::Granted | TicketState::Unspecified => "granted",
        TicketState::Used => "used",
        TicketState::Released => "released",
        TicketState::Expired => "expired",
        TicketState::Fenced => "fenced",
    };
    TicketView {
        uuid: ticket.id.clone(),
        status: status.to_owned(),
        cpus: ticket.vms.saturating_mul(ticket.vcpus),
        vms: ticket.vms,
        min_cpus_per_vm: ticket.min_cpus_per_vm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a scheduler whose clock is years behind, or ahead.
    #[tokio::test(start_paused = true)]
    async fn what_is_granted_is_reserved_for_so_long_whatever_the_schedulers_clock_shows() {
        let connection = scheduler::client::over(|| async {
            Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::NotConnected.into())
        });
        let tickets = Tickets::new(connection, HostInfo::default(), String::new());
        let (family, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let grants = [(family, 5_000, 1), (family, 9_000, u64::MAX), (other, 1_000, 1)];
        for (number, (family, expires_in_ms, expires_unix_ms)) in (0..).zip(grants) {
            // Warm VMs are for what is granted here.
            let place = |host: &str, vms| Placement { host_id: host.into(), host: host.into(), vms };
            let placements = vec![place("a", 2), place("b", 5)];
            let ticket = Ticket { vms: 7, placements, expires_in_ms, expires_unix_ms, ..Ticket::default() };
            tickets.granted().insert(Uuid::from_u128(number), Granted::new(family, &ticket, "a"));
        }
        assert_eq!(tickets.reserved(family), (4, Some(Duration::from_secs(5))));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(tickets.reserved(family), (2, Some(Duration::from_secs(4))));
        assert_eq!(tickets.reserved(other), (0, None));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(tickets.reserved(family), (0, None));
    }
}
