//! The task that owns core and store.
//!
//! `settle` stores a batch and then sends its answers; `query` answers questions.

mod query;
mod settle;

use super::{
    EngineError,
    clock::Clock,
    message::{Answer, Call, Change, Gone, KillOrder, Message, Refusal},
    waiting::Takes,
};
use crate::{
    core::{
        Core,
        api::{Command, Effect, Named, Options, UnixMs, Waiter},
        epochs::Epochs,
        record::HostRecord,
        ticket::{HostId, State, Ticket},
    },
    metrics::Metrics,
    store::{JoinData, Store, StoreError, Stored},
};
use patina_daemon::chain;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// Most messages of one batch: what the last one of them waits for is one commit of so many
/// tickets.
const BATCH_MAX: usize = 512;
/// Most hosts.
pub(super) const HOSTS_MAX: usize = 16_384;
/// How long nothing is tried after the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The worker's ends of the engine's channels.
pub(super) struct Ends {
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) gone: mpsc::UnboundedReceiver<Gone>,
    /// For those whom an answer did not reach.
    pub(super) late: mpsc::UnboundedSender<Gone>,
    pub(super) waiters: Arc<AtomicU64>,
    pub(super) changes: broadcast::Sender<Arc<Change>>,
    pub(super) metrics: Arc<Metrics>,
}

/// Owns core and store; see [`super::prepare`].
pub struct Worker {
    /// None: the store could be neither written nor read.
    core: Option<Core>,
    store: Box<dyn Store>,
    options: Options,
    clock: Clock,
    ends: Ends,
    pending: BTreeMap<Waiter, Pending>,
    links: BTreeMap<HostId, Link>,
    host_names: BTreeMap<HostId, String>,
    /// How many batches were stored.
    batches: u64,
    /// Those of a core that was given up.
    epochs: Epochs,
    /// Up to where epochs are reserved in the ledger.
    stored_epochs: u64,
    /// Nothing was deleted since the ledger's file was made smaller.
    is_tidy: bool,
    /// The store has failed; nothing is changed until then.
    failed: Option<(Instant, Arc<StoreError>)>,
    stopping: bool,
}

/// A call that the core has and has not answered.
struct Pending {
    reply: oneshot::Sender<Result<Answer, Refusal>>,
    takes: Takes,
    data: Option<JoinData>,
    orders: Option<mpsc::Sender<KillOrder>>,
    /// Of a host that registers.
    host_name: Option<String>,
}

/// A host's connection.
struct Link {
    epoch: u64,
    orders: mpsc::Sender<KillOrder>,
}

impl Worker {
    pub(super) fn new(
        mut store: Box<dyn Store>,
        options: Options,
        clock: Clock,
        ends: Ends,
    ) -> Result<Self, EngineError> {
        let Stored { tickets, hosts, vmids, epochs } = store.load()?;
        let clock = clock.not_before(latest(&tickets));
        tracing::info!(tickets = tickets.len(), hosts = hosts.len(), "ledger read");
        // By the clock, too: a ledger may be a new one, or an old copy. Fewer than 1024 are given
        // in a millisecond.
        let begin = Epochs::after(epochs, clock.now().saturating_mul(1024));
        let mut core = Core::new(options.clone(), tickets, &hosts, begin, clock.now());
        core.recall_vmids(vmids);
        Ok(Self {
            core: Some(core),
            store,
            options,
            clock,
            ends,
            pending: BTreeMap::new(),
            links: BTreeMap::new(),
            host_names: hosts.iter().filter_map(named).collect(),
            batches: 0,
            epochs: begin,
            stored_epochs: epochs,
            is_tidy: false,
            failed: None,
            stopping: false,
        })
    }

    /// Works until it is stopped or the last [`super::Engine`] is dropped.
    pub async fn run(mut self) {
        let mut messages = Vec::with_capacity(BATCH_MAX);
        while !self.stopping {
            let wake = self.wake();
            let mut gone = None;
            tokio::select! {
                // In this order, so that a simulation goes the same way each time; each turn looks
                // at all three.
                biased;
                count = self.ends.inbox.recv_many(&mut messages, BATCH_MAX) => if count == 0 { break },
                leaver = self.ends.gone.recv() => gone = leaver,
                () = sleep_until(wake) => {}
                () = std::future::ready(()), if !self.is_tidy && self.failed.is_none() => {
                    // Nobody wants anything at the moment.
                    self.tidy();
                    continue;
                }
            }
            self.turn(gone, &mut messages);
        }
        self.ends.inbox.close();
        self.refuse_all(&Refusal::Stopped);
    }

    /// Gives some of the room back that deleted things have left in the ledger's file.
    fn tidy(&mut self) {
        self.is_tidy = self.store.tidy().unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "the ledger's file stays as large as it is");
            true
        });
    }

    /// When there is something to do without anybody saying so.
    fn wake(&self) -> Instant {
        match (&self.failed, self.core.as_ref().and_then(Core::next_deadline)) {
            (Some((until, _)), _) => *until,
            (None, deadline) => self.clock.instant(deadline.unwrap_or(UnixMs::MAX)),
        }
    }

    /// One batch.
    fn turn(&mut self, gone: Option<Gone>, messages: &mut Vec<Message>) {
        self.recover();
        let now = self.clock.now();
        let (mut effects, mut queries) = (Vec::new(), Vec::new());
        let calls = messages.len();
        // First those that have gone: they need no answer, and what they release is free for the
        // others.
        let mut leaver = gone.or_else(|| self.ends.gone.try_recv().ok());
        while let Some(gone) = leaver {
            self.left(now, gone, &mut effects);
            leaver = self.ends.gone.try_recv().ok();
        }
        for message in messages.drain(..) {
            match message {
                Message::Call(call) => self.call(now, *call, &mut effects),
                Message::Beat(host, epoch, beat) => {
                    // The host sent this before its connection ended, but it is read only now. A
                    // registration that has ended does not count as alive.
                    if self.links.get(&host).is_some_and(|link| link.epoch == epoch) {
                        self.apply(now, Command::HostBeat { host, epoch, beat }, &mut effects);
                    }
                }
                Message::Ask(query) => queries.push(query),
                Message::Stop => self.stopping = true,
            }
        }
        if self.core.as_ref().and_then(Core::next_deadline).is_some_and(|deadline| deadline <= now) {
            self.apply(now, Command::Tick, &mut effects);
        }
        if calls > 0 {
            self.ends.metrics.batch(calls);
        }
        self.settle(effects);
        for query in queries {
            self.answer_query(query);
        }
    }

    /// After a failure and a pause: on with what is stored.
    fn recover(&mut self) {
        if self.failed.as_ref().is_none_or(|(until, _)| *until > Instant::now()) {
            return;
        }
        if self.core.is_none()
            && let Err(error) = self.reload()
        {
            tracing::error!(error = %chain(&error), "the ledger cannot be read");
            self.failed = Some((Instant::now() + STORE_PAUSE, Arc::new(error)));
            return;
        }
        self.failed = None;
    }

    fn reload(&mut self) -> Result<(), StoreError> {
        let Stored { tickets, hosts, vmids, epochs } = self.store.load()?;
        // What was not stored was not given to anybody, but it is not known what was stored.
        self.stored_epochs = epochs;
        let epochs = self.epochs.stored(epochs);
        let mut core = Core::new(self.options.clone(), tickets, &hosts, epochs, self.clock.now());
        core.recall_vmids(vmids);
        self.core = Some(core);
        Ok(())
    }

    /// Unless the store has just failed: what has to be stored then would fail, too, and take all
    /// that waits with it.
    fn apply(&mut self, now: UnixMs, command: Command, effects: &mut Vec<Effect>) {
        if let (Some(core), None) = (&mut self.core, &self.failed) {
            core.apply(now, command, effects);
        }
    }

    fn call(&mut self, now: UnixMs, call: Call, effects: &mut Vec<Effect>) {
        let Call { waiter, command, reply, data, orders } = call;
        if reply.is_closed() {
            // The caller has gone before its turn.
            return;
        }
        let mut host_name = None;
        if let Command::HostUp { info, .. } = &command {
            if !self.has_room_for(info.id) {
                send(reply, Err(Refusal::TooManyHosts { most: HOSTS_MAX }));
                return;
            }
            host_name = Some(info.name.clone());
        }
        if let Some((_, error)) = &self.failed {
            send(reply, Err(Refusal::Store(Arc::clone(error))));
            return;
        }
        let takes = Takes::of(&command);
        self.pending.insert(waiter, Pending { reply, takes, data, orders, host_name });
        self.apply(now, command, effects);
    }

    /// Whether a host can be known, if it is not yet: the core forgets those that have long been
    /// away.
    fn has_room_for(&mut self, host: HostId) -> bool {
        if self.host_names.len() >= HOSTS_MAX && !self.host_names.contains_key(&host) {
            let known = self.core.as_ref().map(Core::hosts).unwrap_or_default();
            let known: BTreeSet<_> = known.into_iter().map(|host| host.info.id).collect();
            self.host_names.retain(|host, _| known.contains(host));
        }
        self.host_names.len() < HOSTS_MAX || self.host_names.contains_key(&host)
    }

    fn left(&mut self, now: UnixMs, gone: Gone, effects: &mut Vec<Effect>) {
        match gone {
            Gone::Waiter(waiter) => {
                if self.pending.remove(&waiter).is_some() {
                    self.apply(now, Command::Gone(waiter), effects);
                }
            }
            Gone::Host(host, epoch) => {
                if self.links.get(&host).is_some_and(|link| link.epoch == epoch) {
                    self.links.remove(&host);
                }
                self.apply(now, Command::HostDown { host, epoch }, effects);
            }
            Gone::Ticket(ticket) => self.take_back(now, &ticket, effects),
        }
    }

    /// A ticket that was granted to nobody.
    fn take_back(&mut self, now: UnixMs, ticket: &Ticket, effects: &mut Vec<Effect>) {
        tracing::info!(ticket = %ticket.id, family = %ticket.family, "nobody hears of this ticket: it is taken back");
        let named = Named { id: ticket.id, family: None };
        if ticket.state == State::Used
            && let Some(host) = ticket.places.keys().next().copied()
        {
            let (waiter, epoch) = (self.nobody(), Some(ticket.epoch));
            self.apply(now, Command::Unuse { waiter, ticket: named, epoch, host }, effects);
        }
        let waiter = self.nobody();
        self.apply(now, Command::Release(waiter, named), effects);
    }

    fn nobody(&self) -> Waiter {
        Waiter(self.ends.waiters.fetch_add(1, Ordering::Relaxed))
    }

    /// The core and the store differ: all who wait are told, hosts are cut, and the core is made
    /// again from what is stored.
    fn fail(&mut self, error: StoreError) {
        tracing::error!(error = %chain(&error), waiting = self.pending.len(), hosts = self.links.len(), "nothing has changed");
        let error = Arc::new(error);
        self.ends.metrics.store_failed();
        self.refuse_all(&Refusal::Store(Arc::clone(&error)));
        self.failed = Some((Instant::now() + STORE_PAUSE, error));
        if let Some(core) = self.core.take() {
            self.epochs = core.epochs();
        }
        if let Err(error) = self.reload() {
            tracing::error!(error = %chain(&error), "the ledger cannot be read");
        }
    }

    fn refuse_all(&mut self, refusal: &Refusal) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            send(pending.reply, Err(refusal.clone()));
        }
        self.links.clear();
    }
}

/// A host's name, if it has said it.
fn named(record: &HostRecord) -> Option<(HostId, String)> {
    Some((record.id, record.info.as_ref()?.name.clone()))
}

/// How far the ledger's time has come.
fn latest(stored: &[Ticket]) -> UnixMs {
    let times = stored.iter().flat_map(|ticket| [Some(ticket.granted_unix_ms), ticket.over_unix_ms]);
    times.flatten().max().unwrap_or(0)
}

/// The caller may be gone: then nobody needs the answer.
fn send<T>(reply: oneshot::Sender<Result<T, Refusal>>, answer: Result<T, Refusal>) {
    drop(reply.send(answer));
}
