//! Who may have how many clones: tickets, which the scheduler keeps, wherever that is. Clones that are asked for by number have one too,
//! which is granted and used in one step.
//!
//! ```text
//!  admit ──▶ Admitted ──share(vmid)──▶ Share, one a clone ──dropped──▶ the scheduler is told how the clone ended
//!               └── give_back: nothing was made
//! ```

use super::{Host, Vm, error::Error, unix_ms};
use crate::{
    plan::lifecycle::{Ended, Phase},
    store::record::Record,
};
use patina_abi::link::{TicketArgs, TicketView};
use patina_proto::v1::{
    GetTicketRequest, HostInfo, KillClones, ListTicketsRequest, ReleaseTicketRequest, RequestTicketRequest,
    RunningClone, Ticket, TicketState, UnuseTicketRequest, UseTicketRequest, VmEnd,
};
use scheduler::client::{Client, HostLink, Present, Registration};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;
use vmm::api::end::EndKind;

/// Longest that a guest may wait for a ticket.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a scheduler that is away is waited for, and how long it may take for an answer beyond what it was asked to wait.
const SCHEDULER_PATIENCE: Duration = Duration::from_secs(10);
/// How long after one try that did not reach the scheduler comes the next.
const RETRY: Duration = Duration::from_millis(200);
/// Most tickets on a page for a guest: so many fit on a line.
pub(super) const LIST_MAX: u32 = 480;

/// How many clones are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// So many.
    Count(u32),
    /// As many as a ticket is for.
    Ticket {
        /// Which.
        id: Uuid,
        /// As the caller knows it; 0: whatever it is.
        epoch: u64,
        /// How many the caller takes it to be for, if it says so.
        count: Option<u32>,
    },
}

/// The host's way to its scheduler.
#[derive(Debug, Clone)]
pub struct Tickets(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    // This host, as it describes itself to the scheduler.
    info: HostInfo,
    // Where the scheduler is, for people; empty: in this process.
    address: String,
    // From the moment on when all that runs is known.
    link: OnceLock<HostLink>,
    // Tickets whose clones are being made.
    making: Mutex<HashSet<Uuid>>,
    // Granted to guests of this host.
    granted: Mutex<HashMap<Uuid, Granted>>,
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    family: Uuid,
    vms: u32,
    expires_unix_ms: u64,
}

/// The right to make clones now.
#[derive(Debug)]
pub struct Admitted {
    tickets: Tickets,
    /// The ticket that was used for it.
    pub ticket: Uuid,
    loose: bool,
    clones: Vec<RunningClone>,
}

/// One clone's part of a ticket; given back when dropped.
#[derive(Debug)]
pub struct Share {
    tickets: Tickets,
    clone: RunningClone,
    end: VmEnd,
}

impl Share {
    /// How its clone has ended.
    pub fn ended(&mut self, ended: &Ended) {
        self.end = match ended.end.kind {
            EndKind::Killed => VmEnd::Killed,
            EndKind::Joined => VmEnd::Joined,
            _ => VmEnd::Ended,
        };
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A scheduler that does not know this host yet hears what runs, and that this does not.
        if let Some(link) = self.tickets.0.link.get() {
            link.ended(self.clone.clone(), self.end);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.tickets.0.making).remove(&self.ticket);
    }
}

impl Admitted {
    /// The parts of the clones, in the order of their vmids.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        let share = |clone: &RunningClone| Share {
            tickets: self.tickets.clone(),
            clone: clone.clone(),
            end: VmEnd::Ended,
        };
        self.clones.iter().map(share)
    }

    /// Nothing was cloned: the ticket is as if it had not been used.
    pub async fn give_back(self) {
        let family = self.clones.first().map(|clone| clone.family.clone()).unwrap_or_default();
        let (id, host_id) = (self.ticket.to_string(), self.tickets.0.info.id.clone());
        let request = UnuseTicketRequest { id: id.clone(), family: family.clone(), epoch: 0, host_id };
        let mut client = self.tickets.client();
        let mut given = client.unuse_ticket(request).await.map(drop);
        if self.loose && given.is_ok() {
            given = client.release_ticket(ReleaseTicketRequest { id, family }).await.map(drop);
        }
        if let Err(error) = given {
            // Once this host registers anew the scheduler sees that nothing runs with it.
            tracing::warn!(ticket = %self.ticket, %error, "give back a ticket");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics under these locks; if some did, the maps themselves are still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tickets {
    /// Of the host `info`, whose scheduler is at `address` (empty: in this process).
    #[must_use]
    pub fn new(client: Client, info: HostInfo, address: String) -> Self {
        let (link, making, granted) = Default::default();
        Self(Arc::new(Shared { client, info, address, link, making, granted }))
    }

    /// Registers the host, now that all that runs is known.
    pub fn register(&self, clones: Arc<dyn scheduler::client::Clones>) {
        self.0.link.get_or_init(|| HostLink::start(self.client(), self.0.info.clone(), clones));
    }

    /// To call the scheduler.
    #[must_use]
    pub fn client(&self) -> Client {
        self.0.client.clone()
    }

    /// This host's number.
    #[must_use]
    pub fn host_id(&self) -> &str {
        &self.0.info.id
    }

    /// Where the scheduler is; empty: in this process.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Waits until the scheduler has registered this host; for so long as it can be without.
    pub async fn registered(&self, patience: Duration) -> bool {
        let Some(link) = self.0.link.get() else { return false };
        let mut registration = link.registration();
        let registered = registration.wait_for(|state| matches!(state, Registration::Registered { .. }));
        matches!(timeout(patience, registered).await, Ok(Ok(_)))
    }

    fn registration(&self) -> Option<Registration> {
        self.0.link.get().map(|link| link.registration().borrow().clone())
    }

    /// An error of the scheduler, or that there is none.
    pub fn failed(&self, call: &'static str, status: Status) -> Error {
        if is_away(&status) {
            let address = self.0.address.clone();
            return Error::NoScheduler { call, address, source: Box::new(status) };
        }
        Error::Scheduler(Box::new(status))
    }

    /// How many clones a ticket is for.
    ///
    /// # Errors
    /// It is not there, not the family's, or the scheduler does not answer.
    pub async fn size(&self, ticket: Uuid, family: Uuid) -> Result<u32, Error> {
        let request = GetTicketRequest { id: ticket.to_string(), family: family.to_string() };
        let found = self.client().get_ticket(request).await;
        Ok(found.map_err(|status| self.failed("look at a ticket", status))?.into_inner().vms)
    }

    /// Takes the right to make the clones of these vmids.
    ///
    /// # Errors
    /// There is no room, the ticket cannot be used, or the scheduler does not answer.
    pub async fn admit(&self, parent: &Record, wanted: Wanted, vmids: &[u32]) -> Result<Admitted, Error> {
        if let Wanted::Ticket { id, .. } = wanted {
            // Before it is used: whenever the scheduler asks what there is here, its clones are on their way.
            lock(&self.0.making).insert(id);
        }
        let before = self.registration();
        let used = self.use_for(parent, wanted, vmids).await;
        match (used.and_then(|ticket| Ok((number(&ticket.id)?, ticket))), wanted) {
            (Ok((id, ticket)), _) => {
                lock(&self.0.making).insert(id);
                lock(&self.0.granted).remove(&id);
                let clone = |vmid: &u32| running(parent, *vmid, Some(parent.vmid), ticket.id.clone());
                let clones = vmids.iter().map(clone).collect();
                let admitted = Admitted { tickets: self.clone(), ticket: id, loose: ticket.loose, clones };
                // A scheduler that asked in between, what runs here, takes them for ended.
                if ticket.loose && self.registration() != before {
                    admitted.give_back().await;
                    return Err(Error::Registering);
                }
                Ok(admitted)
            }
            (Err(error), Wanted::Ticket { id, .. }) => {
                lock(&self.0.making).remove(&id);
                Err(error)
            }
            (Err(error), Wanted::Count(_)) => Err(error),
        }
    }

    async fn use_for(&self, parent: &Record, wanted: Wanted, vmids: &[u32]) -> Result<Ticket, Error> {
        let host_epoch = match self.registration() {
            Some(Registration::Registered { epoch, .. }) => epoch,
            _ => 0,
        };
        match wanted {
            Wanted::Count(count) => {
                let vcpus = u32::from(parent.vcpus);
                let request = RequestTicketRequest {
                    family: parent.family.to_string(),
                    request_id: Uuid::new_v4().to_string(),
                    max_cpus: count.saturating_mul(vcpus),
                    min_vms: count,
                    min_cpus_per_vm: vcpus,
                    vcpus,
                    memory_mib: parent.memory_mib,
                    host_ids: vec![self.host_id().to_owned()],
                    use_by: Some(parent.vmid),
                    use_vmids: vmids.to_vec(),
                    host_epoch,
                    ..RequestTicketRequest::default()
                };
                self.request("make clones", request).await
            }
            Wanted::Ticket { id, epoch, .. } => {
                let request = UseTicketRequest {
                    id: id.to_string(),
                    family: parent.family.to_string(),
                    epoch,
                    host_id: self.host_id().to_owned(),
                    parent_vmid: parent.vmid,
                    vmids: vmids.to_vec(),
                    host_epoch,
                };
                let used = self.client().use_ticket(request).await;
                used.map(tonic::Response::into_inner).map_err(|status| self.failed("use a ticket", status))
            }
        }
    }

    /// Requests a ticket; tries again while the scheduler is away: its request id keeps it from being granted twice.
    async fn request(&self, call: &'static str, request: RequestTicketRequest) -> Result<Ticket, Error> {
        let wait = Duration::from_millis(request.timeout_ms).min(WAIT_MAX);
        let begun = Instant::now();
        let deadline = begun + wait + SCHEDULER_PATIENCE;
        loop {
            let waited = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let timeout_ms = request.timeout_ms.saturating_sub(waited);
            let request = RequestTicketRequest { timeout_ms, ..request.clone() };
            let mut client = self.client();
            let answer = timeout_at(deadline, client.request_ticket(request)).await;
            let late = || Status::unavailable(format!("no answer in {:?}", begun.elapsed()));
            let away = match answer.unwrap_or_else(|_| Err(late())) {
                Ok(ticket) => return Ok(ticket.into_inner()),
                Err(status) if is_away(&status) => status,
                Err(status) => return Err(self.failed(call, status)),
            };
            if Instant::now() + RETRY >= deadline {
                return Err(self.failed(call, away));
            }
            sleep(RETRY).await;
        }
    }

    /// The share of a clone that was found running.
    #[must_use]
    pub fn find(&self, record: &Record) -> Option<Share> {
        Some(Share { tickets: self.clone(), clone: running_of(record)?, end: VmEnd::Ended })
    }

    /// How many VMs a family may clone at any moment with its tickets.
    pub(super) fn reserved(&self, family: Uuid) -> u32 {
        let now = unix_ms();
        let holds = |granted: &&Granted| granted.family == family && granted.expires_unix_ms > now;
        lock(&self.0.granted).values().filter(holds).map(|granted| granted.vms).sum()
    }
}

fn running(of: &Record, vmid: u32, parent_vmid: Option<u32>, ticket: String) -> RunningClone {
    let Record { family, vcpus, memory_mib, .. } = *of;
    RunningClone { ticket, family: family.to_string(), vmid, vcpus: vcpus.into(), memory_mib, parent_vmid }
}

/// A VM that is a clone.
fn running_of(record: &Record) -> Option<RunningClone> {
    let parent_vmid = record.origin.as_ref().map(|origin| origin.parent_vmid);
    Some(running(record, record.vmid, parent_vmid, ticket_of(record)?.to_string()))
}

/// Whether nobody has answered.
fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.get_details_error_info().is_none()
}

/// What a clone was made under. Those of a vmmd without a scheduler have their own number for it.
pub(super) fn ticket_of(record: &Record) -> Option<Uuid> {
    (record.vmid > 0).then(|| record.ticket.unwrap_or(record.uuid))
}

fn number(text: &str) -> Result<Uuid, Error> {
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

impl Host {
    /// Requests a ticket for a guest.
    ///
    /// # Errors
    /// It cannot be had, in this time or ever, or the scheduler does not answer.
    pub(super) async fn request_ticket(&self, vm: &Vm, args: TicketArgs) -> Result<TicketView, Error> {
        let Record { family, vcpus, memory_mib, net, .. } = vm.record;
        let request = RequestTicketRequest {
            family: family.to_string(),
            request_id: args.request_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
            max_cpus: args.max_cpus,
            min_vms: args.min_vms,
            min_cpus_per_vm: args.min_cpus_per_vm,
            vcpus: vcpus.into(),
            memory_mib,
            timeout_ms: args.timeout_ms,
            // Clones start where their parent is.
            host_ids: vec![self.tickets.host_id().to_owned()],
            ..RequestTicketRequest::default()
        };
        let ticket = self.tickets.request("request a ticket", request).await?;
        if ticket.state() == TicketState::Granted {
            let granted = Granted { family, vms: ticket.vms, expires_unix_ms: ticket.expires_unix_ms };
            lock(&self.tickets.0.granted).insert(number(&ticket.id)?, granted);
            tracing::info!(%family, ticket = ticket.id, vms = ticket.vms, "a ticket is granted");
            self.table.wake_pool(net.index, family);
        }
        Ok(view(&ticket))
    }

    /// A page of the tickets of a family that somebody asked for, as the scheduler has them, and where the next page begins.
    pub(super) async fn list_tickets(
        &self,
        family: Uuid,
        page_token: String,
    ) -> Result<(Vec<TicketView>, Option<String>), Error> {
        let request = ListTicketsRequest {
            family: family.to_string(),
            page_size: LIST_MAX,
            page_token,
            ..ListTicketsRequest::default()
        };
        let listed = self.tickets.client().list_tickets(request).await;
        let listed = listed.map_err(|status| self.tickets.failed("list tickets", status))?.into_inner();
        let tickets = listed.tickets.iter().filter(|ticket| !ticket.loose).map(view).collect();
        Ok((tickets, Some(listed.next_page_token).filter(|token| !token.is_empty())))
    }

    /// A family has ended: what it was granted is for others.
    pub(super) fn forget_tickets(&self, family: Uuid) {
        let mut granted = lock(&self.tickets.0.granted);
        for (id, _) in granted.extract_if(|_, granted| granted.family == family) {
            let mut client = self.tickets.client();
            tokio::spawn(async move {
                let request = ReleaseTicketRequest { id: id.to_string(), family: family.to_string() };
                if let Err(error) = client.release_ticket(request).await {
                    tracing::warn!(ticket = %id, %error, "a ticket of a family that has ended stays until it expires");
                }
            });
        }
    }

    /// All clones that run here, and the tickets whose clones are being made.
    fn present(&self) -> Present {
        // Clones go from one to the other: looked for in that order they are not missed.
        let making = lock(&self.tickets.0.making).iter().map(Uuid::to_string).collect();
        let runs = |vm: &&Arc<Vm>| !matches!(vm.status().phase, Phase::Ended(_));
        let all = self.table.all();
        let running = all.iter().filter(runs).filter_map(|vm| running_of(&vm.record)).collect();
        Present { running, making }
    }
}

/// The clones of a host for its scheduler. The host may be gone before the scheduler has noticed.
#[derive(Debug)]
pub struct ClonesOf(Weak<Host>);

impl ClonesOf {
    /// Of this host.
    #[must_use]
    pub fn new(host: &Arc<Host>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(host)))
    }
}

impl scheduler::client::Clones for ClonesOf {
    fn present(&self) -> Present {
        self.0.upgrade().map(|host| host.present()).unwrap_or_default()
    }

    fn kill(&self, order: KillClones) {
        match (self.0.upgrade(), order.family.parse()) {
            (Some(host), Ok(family)) => host.kill_clones(family, &order.vmids, &order.reason),
            (_, Err(_)) => tracing::warn!(order.family, "the scheduler names a family that is no UUID"),
            (None, _) => {}
        }
    }
}
