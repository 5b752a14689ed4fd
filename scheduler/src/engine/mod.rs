//! The single owner of core and store.
//!
//! ```text
//!  callers ─────────▶ inbox (bounded) ─▶ worker: all that wait ─▶ core ─▶ store, one transaction
//!  those that leave ─▶                     ▲ and at deadlines     ─▶ answers, kill orders, changes
//! ```
//!
//! - [`Engine`]: the handle for callers. If the future of a call is dropped, the call leaves the
//!   core.
//! - [`worker`]: the task. It takes a batch, lets the core decide and the store write, and only
//!   then answers.
//! - `waits`: limits for waiting calls, also per family. `gauges`: current values for the metrics.
//! - [`message`]: the messages between the two. [`clock`]: time.
//!
//! The worker calls the store directly, so it has a thread of its own ([`start`]). With a store
//! that does not block it can be a task among others ([`prepare`]).

pub mod clock;
mod gauges;
mod hosts;
pub mod message;
mod waiting;
mod waits;
pub mod worker;

pub use message::{Answer, Change, Changed, KillOrder, Page, Refusal, Seen};

use crate::{
    core::{
        api::{Command, Demand, JOIN_DATA_MAX_BYTES, Listing, Named, Options, Targets, Waiter},
        state::{Counts, HostState},
    },
    metrics::Metrics,
    store::{JoinData, Store, StoreError},
};
use clock::Clock;
use message::{Call, Gone, Message, Query, Reply};
use patina_daemon::chain;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use uuid::Uuid;
use waiting::Waiting;
use waits::Waits;
use worker::Worker;

/// Most calls that wait: in the queue, at barriers, for the ends of clones. No family has more of
/// them than there is room left for.
pub const WAITS_MAX: usize = 65_536;
/// Most other calls under way, which are answered at once.
pub const CALLS_MAX: usize = 65_536;
/// Most messages that the worker has not looked at; the next ones wait.
const INBOX_MAX: usize = 4096;
/// Most bytes of clones' data that are not stored yet; the next ones wait.
const DATA_IN_FLIGHT_MAX_BYTES: usize = 64 << 20;
/// Most kill orders that a host has not been sent.
const ORDERS_MAX: usize = 1024;
/// Most changes that a watcher may be behind.
const CHANGES_MAX: usize = 4096;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread.
    #[error("start the ledger's thread")]
    Thread(#[source] io::Error),
}

/// What callers hold; cheap to clone. The worker ends with the last one.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: mpsc::Sender<Message>,
    /// Not bounded of itself: at most one for each call that was under way.
    gone: mpsc::UnboundedSender<Gone>,
    waiters: Arc<AtomicU64>,
    waits: Waits,
    calls: Semaphore,
    data_bytes: Semaphore,
    changes: broadcast::Sender<Arc<Change>>,
    metrics: Arc<Metrics>,
    options: Options,
}

/// An engine and its worker, which somebody has to run.
///
/// # Errors
/// The store cannot be read.
pub fn prepare(
    store: Box<dyn Store>,
    options: Options,
    clock: Clock,
) -> Result<(Engine, Worker), EngineError> {
    let (inbox, messages) = mpsc::channel(INBOX_MAX);
    let (gone, leavers) = mpsc::unbounded_channel();
    let (changes, _) = broadcast::channel(CHANGES_MAX);
    let waiters = Arc::new(AtomicU64::new(0));
    let metrics = Arc::new(Metrics::new());
    let ends = worker::Ends {
        inbox: messages,
        gone: leavers,
        late: gone.clone(),
        waiters: Arc::clone(&waiters),
        changes: changes.clone(),
        metrics: Arc::clone(&metrics),
    };
    let worker = Worker::new(store, options.clone(), clock, ends)?;
    let (waits, calls) = (Waits::new(WAITS_MAX), Semaphore::new(CALLS_MAX));
    let data_bytes = Semaphore::new(DATA_IN_FLIGHT_MAX_BYTES);
    let shared = Shared { inbox, gone, waiters, waits, calls, data_bytes, changes, metrics, options };
    Ok((Engine { shared: Arc::new(shared) }, worker))
}

/// An engine on a thread of its own. The thread ends after [`Engine::stop`], or with the last
/// handle.
///
/// # Errors
/// The store cannot be read, or there is no thread.
pub fn start(store: Box<dyn Store>, options: Options) -> Result<(Engine, JoinHandle<()>), EngineError> {
    let (engine, worker) = prepare(store, options, Clock::system())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(EngineError::Thread)?;
    let thread = thread::Builder::new()
        .name("ledger".into())
        .spawn(move || runtime.block_on(worker.run()))
        .map_err(EngineError::Thread)?;
    Ok((engine, thread))
}

impl Engine {
    /// How the core is set up.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Ends the worker: all that is under way is answered with [`Refusal::Stopped`].
    pub async fn stop(&self) {
        if self.shared.inbox.send(Message::Stop).await.is_err() {
            tracing::debug!("the ledger's worker has stopped already");
        }
    }

    /// Whether the worker has ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.inbox.is_closed()
    }

    /// When the worker has ended.
    pub async fn stopped(&self) {
        self.shared.inbox.closed().await;
    }

    /// A ticket, when it is granted.
    ///
    /// # Errors
    /// See [`Refusal`]; so below.
    pub async fn request(&self, demand: Demand) -> Result<Seen, Refusal> {
        let family = demand.family;
        let request = self.wait(Some(family), |waiter| Command::Request { waiter, demand });
        let seen = ticket(request.await?)?;
        self.shared.metrics.granted();
        Ok(seen)
    }

    /// Gives a ticket back.
    pub async fn release(&self, named: Named) -> Result<Seen, Refusal> {
        ticket(self.call(None, |waiter| Command::Release(waiter, named)).await?)
    }

    /// Carries out [`Command::Use`] or [`Command::Unuse`].
    pub async fn ticket_command(&self, command: impl FnOnce(Waiter) -> Command) -> Result<Seen, Refusal> {
        ticket(self.call(None, command).await?)
    }

    /// A VM arrives at a barrier, after that meeting: which one it was, and how many met.
    pub async fn arrive(
        &self,
        ticket: Named,
        vmid: u32,
        after_round: Option<u64>,
        timeout_ms: Option<u64>,
    ) -> Result<(u64, u32), Refusal> {
        let command = |waiter| Command::Arrive { waiter, ticket, vmid, after_round, timeout_ms };
        match self.wait(ticket.family, command).await? {
            Answer::Met { round, arrived } => Ok((round, arrived)),
            _ => Err(Refusal::Confused),
        }
    }

    /// A clone leaves its result.
    pub async fn leave(
        &self,
        ticket: Named,
        vmid: u32,
        status: i32,
        bytes: Vec<u8>,
        reported: bool,
    ) -> Result<(), Refusal> {
        let data_bytes = bytes.len() as u64;
        // The core refuses what is too long: nothing but its length needs room. Nothing replaces
        // what was left before, too.
        let data = (data_bytes <= JOIN_DATA_MAX_BYTES).then_some(bytes);
        let room = data.as_ref().and_then(|bytes| u32::try_from(bytes.len()).ok()).unwrap_or(0);
        let _room = self.shared.data_bytes.acquire_many(room).await.map_err(|_| Refusal::Stopped)?;
        let data = data.map(|bytes| JoinData { ticket: ticket.id, vmid, bytes });
        let command = |waiter| Command::JoinLeave { waiter, ticket, vmid, status, data_bytes, reported };
        noted(self.call(data, command).await?)
    }

    /// A ticket, when all its clones have ended.
    pub async fn join(
        &self,
        named: Named,
        vmid: Option<u32>,
        timeout_ms: Option<u64>,
    ) -> Result<Seen, Refusal> {
        let command = |waiter| Command::JoinWait { waiter, ticket: named, vmid, timeout_ms };
        ticket(self.wait(named.family, command).await?)
    }

    /// Ends clones: which have.
    pub async fn kill(&self, family: Uuid, targets: Targets, reason: String) -> Result<Vec<u32>, Refusal> {
        let command = |waiter| Command::Kill { waiter, family, targets, reason };
        match self.wait(Some(family), command).await? {
            Answer::Killed(vmids) => Ok(vmids),
            _ => Err(Refusal::Confused),
        }
    }

    /// A ticket as it is.
    pub async fn ticket(&self, named: Named) -> Result<Seen, Refusal> {
        self.ask(|reply| Query::Ticket(named, reply)).await
    }

    /// Tickets, those of a page.
    pub async fn tickets(&self, of: Listing) -> Result<Page, Refusal> {
        self.ask(|reply| Query::Tickets(of, reply)).await
    }

    /// All hosts.
    pub async fn hosts(&self) -> Result<Vec<HostState>, Refusal> {
        self.ask(Query::Hosts).await
    }

    /// What a clone left; empty when it left nothing. When its family has it, it is not kept for
    /// long.
    pub async fn join_data(&self, ticket: Named, vmid: u32) -> Result<Vec<u8>, Refusal> {
        let data = self.ask(|reply| Query::Data { ticket, vmid, reply }).await?;
        if ticket.family.is_some() && !data.is_empty() {
            let read = self.call(None, |waiter| Command::DataRead { waiter, ticket, vmid }).await;
            if let Err(error) = read {
                tracing::debug!(ticket = %ticket.id, vmid, error = %chain(&error), "note that it was read");
            }
        }
        Ok(data)
    }

    /// How many there are of what.
    pub async fn counts(&self) -> Result<Counts, Refusal> {
        self.ask(Query::Counts).await
    }

    /// Whether the ledger's thread answers, after what it has to do before. Does not return while
    /// that hangs.
    pub async fn is_alive(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask(Query::Counts(reply))).await.is_ok() && answer.await.is_ok()
    }

    /// Changes from now on. A receiver that lags behind loses some, and is told.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.shared.changes.subscribe()
    }

    /// A call that may wait long for its answer. Any number of them leaves room for other calls.
    async fn wait(
        &self,
        family: Option<Uuid>,
        command: impl FnOnce(Waiter) -> Command,
    ) -> Result<Answer, Refusal> {
        let _room = self.shared.waits.enter(family)?;
        self.put(None, None, command).await
    }

    /// A call that is answered at once.
    async fn call(
        &self,
        data: Option<JoinData>,
        command: impl FnOnce(Waiter) -> Command,
    ) -> Result<Answer, Refusal> {
        let _room = self.shared.calls.try_acquire().map_err(|_| Refusal::Busy { most: CALLS_MAX })?;
        self.put(data, None, command).await
    }

    /// Puts a command to the core. Messages of hosts are not limited: each host has one message
    /// under way, and a host that could not be served would be fenced with all its clones.
    async fn put(
        &self,
        data: Option<JoinData>,
        orders: Option<mpsc::Sender<KillOrder>>,
        command: impl FnOnce(Waiter) -> Command,
    ) -> Result<Answer, Refusal> {
        let waiter = Waiter(self.shared.waiters.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let command = command(waiter);
        let waiting = Waiting::new(self, waiter, &command, answer);
        self.send(Message::Call(Box::new(Call { waiter, command, reply, data, orders }))).await?;
        let answer = waiting.answer().await;
        if let Err(refusal) = &answer {
            self.shared.metrics.refused(refusal.reason());
        }
        answer
    }

    async fn ask<T>(&self, query: impl FnOnce(Reply<T>) -> Query) -> Result<T, Refusal> {
        let _room = self.shared.calls.try_acquire().map_err(|_| Refusal::Busy { most: CALLS_MAX })?;
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask(query(reply))).await?;
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    async fn send(&self, message: Message) -> Result<(), Refusal> {
        self.shared.inbox.send(message).await.map_err(|_| Refusal::Stopped)
    }

    fn gone(&self, gone: Gone) {
        if self.shared.gone.send(gone).is_err() {
            tracing::debug!("nobody is left to hear who went away");
        }
    }
}

fn ticket(answer: Answer) -> Result<Seen, Refusal> {
    match answer {
        Answer::Ticket(seen) => Ok(*seen),
        _ => Err(Refusal::Confused),
    }
}

fn noted(answer: Answer) -> Result<(), Refusal> {
    match answer {
        Answer::Noted => Ok(()),
        _ => Err(Refusal::Confused),
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
