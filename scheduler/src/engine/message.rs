//! Messages between callers and the engine.

use crate::{
    core::{
        api::{Beat, Command, CoreError, HostChange, Listing, Named, Waiter},
        family::FamilyVm,
        state::{Counts, HostState},
        ticket::{HostId, Ticket},
    },
    store::{JoinData, StoreError},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// A ticket with what the core knows beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The ticket as it is now.
    pub ticket: Ticket,
    /// Its clones that have not ended.
    pub live: u32,
    /// How long it, or what is not used of it, may still stay so; 0: all is used, or over.
    pub expires_in_ms: u64,
    /// The names of the hosts in [`Ticket::places`], in that order; empty where the host has not
    /// come back yet.
    pub host_names: Vec<String>,
}

/// A page of tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The tickets, in the order that was asked for.
    pub tickets: Vec<Seen>,
    /// How many batches had been stored when this was read: see [`Change::batch`].
    pub batch: u64,
}

/// A ticket has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The batch that stored the change, counted from 1.
    pub batch: u64,
    /// What the ticket is now.
    pub what: Changed,
}

/// What became of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The ticket as it is now.
    Now(Box<Seen>),
    /// The scheduler does not remember the ticket of this number any more.
    Forgotten(Uuid),
}

/// Ends clones of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillOrder {
    /// The family of the clones.
    pub family: Uuid,
    /// The ticket under which the clones were made.
    pub ticket: Uuid,
    /// The ticket's epoch when these were its clones.
    pub epoch: u64,
    /// The vmids of the clones that the host is to end.
    pub vmids: Vec<u32>,
    /// Why they are to end, for their records.
    pub reason: String,
}

/// What a call brings: the core's reply, with what the shell knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A ticket as it is now, or the one whose clones have all ended.
    Ticket(Box<Seen>),
    /// The epoch of a host's registration.
    Registered(u64),
    /// The call's facts are in the ledger.
    Noted,
    /// All VMs of the barrier have arrived.
    Met {
        /// The number of the meeting, from 1.
        round: u64,
        /// How many VMs met.
        arrived: u32,
    },
    /// The vmids of the clones that have ended.
    Killed(Vec<u32>),
    /// A host as it is now.
    Host(Box<HostChange>),
    /// Vmids that nobody else gets.
    Vmids {
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// Why the engine refuses a call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The core says no.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The ledger cannot be used; nothing has changed.
    #[error("use the ledger")]
    Store(#[source] Arc<StoreError>),
    /// Too much is going on.
    #[error("call the scheduler: the maximum of {most} calls is under way; retry when some have ended")]
    Busy {
        /// The most calls at once.
        most: usize,
    },
    /// Too many of one family wait.
    #[error(
        "call the scheduler: {own} calls of the family are waiting already, and all families together have room for {free} more; retry when some have ended"
    )]
    Crowded {
        /// How many calls of the caller's family wait.
        own: usize,
        /// How many more calls of all families may wait.
        free: usize,
    },
    /// Too many hosts.
    #[error(
        "register a host: the scheduler has the maximum of {most} hosts; use another scheduler for this host"
    )]
    TooManyHosts {
        /// The most hosts that the scheduler knows.
        most: usize,
    },
    /// The scheduler stops.
    #[error("call the scheduler: it is stopping; retry when it is back")]
    Stopped,
    /// The core's reply is of another kind: a mistake in this program.
    #[error("call the scheduler: the core gave a reply of the wrong kind, which is a bug; please report it")]
    Confused,
}

impl Refusal {
    /// For programs: the reason in `ErrorInfo`, and the label of the metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Core(error) => core_reason(error),
            Self::Store(_) => "STORE",
            Self::Busy { .. } => "TOO_MANY_CALLS",
            Self::Crowded { .. } => "TOO_MANY_WAITING",
            Self::TooManyHosts { .. } => "TOO_MANY_HOSTS",
            Self::Stopped => "STOPPING",
            Self::Confused => "INTERNAL",
        }
    }
}

fn core_reason(error: &CoreError) -> &'static str {
    match error {
        CoreError::Unknown(_) => "UNKNOWN_TICKET",
        CoreError::Foreign(_) => "FOREIGN_TICKET",
        CoreError::Used(_) => "USED",
        CoreError::Released(_) => "RELEASED",
        CoreError::Expired(_) => "EXPIRED",
        CoreError::Fenced(_) => "FENCED",
        CoreError::NotUsed(_) => "NOT_USED",
        CoreError::OtherHost { .. } => "OTHER_HOST",
        CoreError::OtherParent { .. } => "OTHER_PARENT",
        CoreError::SmallTicket { .. } => "SMALL_TICKET",
        CoreError::BadVmid(_)
        | CoreError::BadVmids { .. }
        | CoreError::FewCpus { .. }
        | CoreError::SmallVms { .. } => "INVALID_FIELD",
        CoreError::StaleEpoch { .. } | CoreError::StaleHost { .. } => "STALE_EPOCH",
        CoreError::UnknownHost(_) => "UNKNOWN_HOST",
        CoreError::UnknownVm { .. } | CoreError::NoClone(_) => "UNKNOWN_VM",
        CoreError::NotParent { .. } => "NOT_PARENT",
        CoreError::NotClone { .. } => "NOT_CLONE",
        CoreError::DataDropped { .. } => "DATA_DROPPED",
        CoreError::Impossible { .. } => "IMPOSSIBLE",
        CoreError::NoCapacity { .. } => "NO_CAPACITY",
        CoreError::HostCordoned { .. } => "HOST_CORDONED",
        CoreError::NoFit { .. } => "HOSTS_DIFFER",
        CoreError::HostSilent { .. } => "HOST_SILENT",
        CoreError::HostIsUp(_) => "HOST_UP",
        CoreError::HostIdInUse { .. } => "HOST_ID_IN_USE",
        CoreError::TooManyTickets => "TOO_MANY_TICKETS",
        CoreError::NoVmids { .. } => "NO_FREE_VMID",
        CoreError::TooManyFamilies => "TOO_MANY_FAMILIES",
        CoreError::TooManyWaiting { .. } => "TOO_MANY_WAITING",
        CoreError::TooMuchData { .. } => "TOO_MUCH_DATA",
        CoreError::BarrierTimeout { .. } => "BARRIER_TIMEOUT",
        CoreError::JoinTimeout { .. } => "JOIN_TIMEOUT",
    }
}

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A call that waits for the core.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) waiter: Waiter,
    pub(super) command: Command,
    pub(super) reply: Reply<Answer>,
    /// What is stored with it, once the core has noted it.
    pub(super) data: Option<JoinData>,
    /// Where a host's orders go, once it is registered.
    pub(super) orders: Option<mpsc::Sender<KillOrder>>,
}

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Message {
    /// The core, and who waits for it.
    Call(Box<Call>),
    /// A host lives: the epoch of its registration, and what it says.
    Beat(HostId, u64, Beat),
    /// What is in the ledger.
    Ask(Query),
    /// The engine is to stop.
    Stop,
}

/// Questions: answered from what is stored.
#[derive(Debug)]
pub(super) enum Query {
    Ticket(Named, Reply<Seen>),
    Tickets(Listing, Reply<Page>),
    Hosts(Reply<Vec<HostState>>),
    Family(Uuid, Reply<BTreeMap<u32, FamilyVm>>),
    Speaks { host: HostId, family: Uuid, reply: Reply<bool> },
    Data { ticket: Named, vmid: u32, reply: Reply<Vec<u8>> },
    Counts(Reply<Counts>),
}

/// Something that has gone away.
#[derive(Debug)]
pub(super) enum Gone {
    /// Nobody hears the answer of this call.
    Waiter(Waiter),
    /// A ticket was granted, but its caller did not get the answer.
    Ticket(Box<Ticket>),
    /// A host's connection has ended.
    Host(HostId, u64),
}
