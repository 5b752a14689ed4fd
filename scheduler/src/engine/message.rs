//! What goes between callers and the engine.

use crate::{
    core::{
        api::{Command, CoreError, Listing, Named, Waiter},
        state::{Counts, HostState},
        ticket::{HostId, Ticket},
    },
    store::{JoinData, StoreError},
};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// A ticket with what the core knows beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As it is.
    pub ticket: Ticket,
    /// Its clones that have not ended.
    pub live: u32,
    /// How long it may still stay unused; 0: it is used, or over.
    pub expires_in_ms: u64,
    /// The names of the hosts in [`Ticket::places`], in that order; empty where the host has not come back yet.
    pub host_names: Vec<String>,
}

/// A page of tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order that was asked for.
    pub tickets: Vec<Seen>,
    /// How many batches had been stored when this was read: see [`Change::batch`].
    pub batch: u64,
}

/// A ticket has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// With which batch, counted from 1.
    pub batch: u64,
    /// What it is now.
    pub what: Changed,
}

/// What became of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is so now.
    Now(Box<Seen>),
    /// It is not remembered any more.
    Forgotten(Uuid),
}

/// Ends clones of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillOrder {
    /// Of this family.
    pub family: Uuid,
    /// Of this ticket.
    pub ticket: Uuid,
    /// As it was when they were clones of it.
    pub epoch: u64,
    /// These.
    pub vmids: Vec<u32>,
    /// Why.
    pub reason: String,
}

/// What a call brings: the core's reply, with what the shell knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A ticket as it is now, or the one whose clones have all ended.
    Ticket(Box<Seen>),
    /// The epoch of a host's registration.
    Registered(u64),
    /// It is in the ledger.
    Noted,
    /// All have arrived.
    Met {
        /// Which meeting it was.
        round: u64,
        /// How many met.
        arrived: u32,
    },
    /// These have ended.
    Killed(Vec<u32>),
}

/// Why not.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The core says no.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The ledger cannot be used; nothing has changed.
    #[error("use the ledger: {0}")]
    Store(Arc<StoreError>),
    /// Too much is going on.
    #[error(
        "call the scheduler: {most} calls are under way already, the most; try again when some have ended"
    )]
    Busy {
        /// The limit.
        most: usize,
    },
    /// Too many of one family wait.
    #[error(
        "call the scheduler: {own} calls of the family wait already, and there is room for {free} more of all families; try again when some have ended"
    )]
    Crowded {
        /// Of the family.
        own: usize,
        /// Of all.
        free: usize,
    },
    /// Too many hosts.
    #[error(
        "register a host: the scheduler knows {most} already, the most; use another scheduler for this one"
    )]
    TooManyHosts {
        /// The limit.
        most: usize,
    },
    /// The scheduler stops.
    #[error("call the scheduler: it is stopping; try again when it is back")]
    Stopped,
    /// The core's reply is of another kind: a mistake in this program.
    #[error("call the scheduler: the core's reply is of another kind; please report this")]
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
        CoreError::TooManyTickets => "TOO_MANY_TICKETS",
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
    /// A host lives, with the epoch of its registration.
    Beat(HostId, u64),
    /// What is in the ledger.
    Ask(Query),
    /// No more.
    Stop,
}

/// Questions: answered from what is stored.
#[derive(Debug)]
pub(super) enum Query {
    Ticket(Named, Reply<Seen>),
    Tickets(Listing, Reply<Page>),
    Hosts(Reply<Vec<HostState>>),
    Data { ticket: Named, vmid: u32, reply: Reply<Vec<u8>> },
    Counts(Reply<Counts>),
}

/// Who does not wait any more.
#[derive(Debug)]
pub(super) enum Gone {
    /// Nobody hears the answer of this call.
    Waiter(Waiter),
    /// A ticket was granted to somebody who did not hear of it.
    Ticket(Box<Ticket>),
    /// A host's connection has ended.
    Host(HostId, u64),
}
