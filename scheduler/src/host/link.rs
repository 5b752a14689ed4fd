//! Keeping a host registered.
//!
//! ```text
//!        register: who I am, what runs     registered: epoch, lease
//!  away ──────────────────────────────▶ asking ────────────────────▶ registered ──┐ beat, ended ▶
//!    ▲                                    │ refused, too late           │  ▲       │ ◀ noted, kill
//!    └────────────── pause ◀──────────────┴────────── broken, cut ◀─────┘  └───────┘
//! ```

use crate::client::HostClient;
use patina_daemon::lock;
use patina_proto::v1::{
    Beat, ClonesEnded, EndedClone, HostInfo, HostMessage, HostOrder, Images, KillClones, Masters, Register,
    RunningClone, VmEnd, host_message::Message, host_order::Order,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, interval_at, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A registration that lasted at least so long was good: the next pause is short again.
const GOOD: Duration = Duration::from_secs(5);
/// A scheduler that has not registered the host in this time is asked again.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two beats, where there is no lease.
const BEAT: Duration = Duration::from_secs(5);
/// Most ended clones in one message.
const ENDED_IN_MESSAGE: usize = 256;
/// Most ended clones that wait to be noted. Of those beyond it the ledger learns with the next
/// registration, but not how they ended.
const ENDED_MAX: usize = 65_536;

/// The clones of a host, as its [`HostLink`] needs them. All are called from a tokio task and must
/// not block.
pub trait Clones: Send + Sync + 'static {
    /// All clones of this host, for a registration: the ledger counts any other clone as ended.
    fn present(&self) -> Present;
    /// The families whose master lives here now; None: not known.
    fn masters(&self) -> Option<Vec<String>> {
        self.present().masters
    }
    /// The memory that is really free on this host now, MiB; None: not known.
    fn free_memory_mib(&self) -> Option<u64> {
        None
    }
    /// The kernels and root file systems that are here now, by their digests; None: not known.
    fn images(&self) -> Option<Vec<Vec<u8>>> {
        None
    }
    /// Ends these clones. Their ends are reported with [`HostLink::ended`], like all others.
    fn kill(&self, order: KillClones);
}

/// What a host has when it registers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Present {
    /// All clones that run here, and those that are being made and that the scheduler knows of.
    pub running: Vec<RunningClone>,
    /// Tickets whose UseTicket is under way, or whose clones are being started. For each clone of
    /// such a ticket that was not made in the end, call [`HostLink::ended`].
    pub making: Vec<String>,
    /// The families whose master lives here; None: not known.
    pub masters: Option<Vec<String>>,
}

/// Whether a host is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// The host is not registered.
    Away {
        /// What the last attempt failed with.
        why: String,
    },
    /// The host is registered.
    Registered {
        /// The registration's epoch.
        epoch: u64,
        /// How long a host may be silent before it is fenced; None: for ever.
        lease: Option<Duration>,
    },
}

/// Keeps this host registered, until it is dropped.
#[derive(Debug)]
pub struct HostLink {
    ended: Arc<Ended>,
    registration: watch::Receiver<Registration>,
    task: JoinHandle<()>,
}

impl HostLink {
    /// Registers the host `info` and keeps it so. To be called in a tokio runtime.
    pub fn start(client: HostClient, info: HostInfo, clones: Arc<dyn Clones>) -> Self {
        let ended = Arc::new(Ended::default());
        let (state, registration) = watch::channel(Registration::Away { why: "not asked yet".into() });
        let keeper = Keeper { client, info, clones, ended: Arc::clone(&ended), state, serial: 0 };
        Self { ended, registration, task: tokio::spawn(keeper.run()) }
    }

    /// A clone has ended, or was never made; or, where there is no ticket, the master of its
    /// family. The scheduler is told, in the order of these calls and again after each failure,
    /// until it has noted it. To be called before [`Clones::present`] leaves the clone out.
    pub fn ended(&self, clone: RunningClone, end: VmEnd) {
        self.ended.push(clone, end);
    }

    /// How many ends have not been noted yet.
    #[must_use]
    pub fn unnoted(&self) -> usize {
        self.ended.with(|queue| queue.len())
    }

    /// Ends it; the host is fenced when its lease is over. For those whose [`Clones`] hold the
    /// link.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// Whether it is registered now, and each change of it.
    #[must_use]
    pub fn registration(&self) -> watch::Receiver<Registration> {
        self.registration.clone()
    }
}

impl Drop for HostLink {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Clones whose end has not been noted.
#[derive(Debug, Default)]
struct Ended {
    queue: Mutex<VecDeque<(RunningClone, VmEnd)>>,
    more: Notify,
}

impl Ended {
    fn with<T>(&self, look: impl FnOnce(&mut VecDeque<(RunningClone, VmEnd)>) -> T) -> T {
        // A panic elsewhere leaves the queue as it was: nothing in here does two things.
        look(&mut lock(&self.queue))
    }

    fn push(&self, clone: RunningClone, end: VmEnd) {
        self.with(|queue| {
            if queue.len() == ENDED_MAX {
                queue.pop_front();
            }
            queue.push_back((clone, end));
        });
        self.more.notify_one();
    }

    fn first(&self) -> Vec<EndedClone> {
        self.with(|queue| {
            let first = queue.iter().take(ENDED_IN_MESSAGE);
            first
                .map(|(clone, end)| EndedClone {
                    ticket: clone.ticket.clone(),
                    vmid: clone.vmid,
                    end: (*end).into(),
                    family: clone.family.clone(),
                })
                .collect()
        })
    }

    /// Those were noted. The queue may have lost its oldest ones meanwhile: what is at its front is
    /// looked at.
    fn noted(&self, clones: &[EndedClone]) {
        self.with(|queue| {
            for clone in clones {
                let same = |(front, _): &(RunningClone, VmEnd)| {
                    (&front.ticket, &front.family, front.vmid) == (&clone.ticket, &clone.family, clone.vmid)
                };
                if queue.front().is_some_and(same) {
                    queue.pop_front();
                }
            }
        });
    }
}

/// The task behind a [`HostLink`].
struct Keeper {
    client: HostClient,
    info: HostInfo,
    clones: Arc<dyn Clones>,
    ended: Arc<Ended>,
    state: watch::Sender<Registration>,
    /// Of the last message about ended clones.
    serial: u64,
}

/// One registration's connection.
struct Session {
    messages: mpsc::Sender<HostMessage>,
    orders: Streaming<HostOrder>,
    beat: Duration,
    /// What was said and is not noted yet.
    said: Option<(u64, Vec<EndedClone>)>,
    /// The masters that were said last.
    masters: Option<Masters>,
    /// The images that were said last.
    images: Option<Images>,
}

impl Keeper {
    async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            let ended = self.register_and_stay().await;
            if began.elapsed() >= GOOD {
                pause = PAUSES.0;
            }
            if ended.code() == Code::AlreadyExists {
                tracing::error!(
                    host = self.info.id,
                    error = ended.message(),
                    "another host has this host's id"
                );
            } else {
                tracing::warn!(host = self.info.id, code = ?ended.code(), error = ended.message(), "not registered with the scheduler");
            }
            self.state.send_replace(Registration::Away { why: ended.message().to_owned() });
            tokio::time::sleep(pause + self.spread(pause)).await;
            pause = PAUSES.1.min(pause * 2);
        }
    }

    /// Hosts that lost the same scheduler do not all come back at the same instant: up to a quarter
    /// later, by the host's number.
    fn spread(&self, pause: Duration) -> Duration {
        let sum = self.info.id.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        pause * u32::from(sum) / 1024
    }

    /// Returns why it is over.
    async fn register_and_stay(&mut self) -> Status {
        match timeout(REGISTER_TIMEOUT, self.register()).await {
            Ok(Ok(mut session)) => match self.stay(&mut session).await {
                Ok(()) => Status::unavailable("the scheduler has ended the connection"),
                Err(status) => status,
            },
            Ok(Err(status)) => explained(status),
            Err(_) => Status::deadline_exceeded("the scheduler does not answer"),
        }
    }

    async fn register(&mut self) -> Result<Session, Status> {
        // A few messages at most wait: beats that find no room are left out, and ended clones are
        // said one message at a time.
        let (messages, outgoing) = mpsc::channel(8);
        let present = self.present();
        let (masters, images) = (present.masters.clone(), present.images.clone());
        say(&messages, Message::Register(present));
        let mut orders = self.client.register_host(ReceiverStream::new(outgoing)).await?.into_inner();
        let Some(HostOrder { order: Some(Order::Registered(registered)) }) = orders.message().await? else {
            return Err(Status::internal("the scheduler's first order is not `registered`"));
        };
        let lease = Some(Duration::from_millis(registered.lease_ms)).filter(|lease| !lease.is_zero());
        tracing::info!(
            host = self.info.id,
            epoch = registered.epoch,
            ?lease,
            "registered with the scheduler"
        );
        self.state.send_replace(Registration::Registered { epoch: registered.epoch, lease });
        let beat = lease.map_or(BEAT, |lease| (lease / 3).max(Duration::from_millis(1)));
        Ok(Session { messages, orders, beat, said: None, masters, images })
    }

    /// Clones whose end is not noted yet count as running: so the ledger hears how they ended, not
    /// only that they are gone.
    fn present(&self) -> Register {
        let Present { running, making, masters } = self.clones.present();
        let ended = self.ended.with(|queue| queue.iter().map(|(clone, _)| clone.clone()).collect::<Vec<_>>());
        let all = running.into_iter().chain(ended.into_iter().filter(|clone| !clone.ticket.is_empty()));
        let once: BTreeMap<_, _> = all.map(|clone| ((clone.ticket.clone(), clone.vmid), clone)).collect();
        let masters = masters.map(|families| Masters { families });
        let images = self.images();
        let (info, running) = (Some(self.info.clone()), once.into_values().collect());
        Register { info, running, making, masters, images }
    }

    fn images(&self) -> Option<Images> {
        self.clones.images().map(|digests| Images { digests })
    }

    async fn stay(&mut self, session: &mut Session) -> Result<(), Status> {
        let mut beats = interval_at(Instant::now() + session.beat, session.beat);
        loop {
            self.say_ended(session);
            tokio::select! {
                // In this order, so that a simulation goes the same way each time, and no number of
                // orders keeps a beat back.
                biased;
                _ = beats.tick() => self.beat(session),
                order = session.orders.message() => match order? {
                    Some(order) => self.obey(session, order),
                    None => return Ok(()),
                },
                () = self.ended.more.notified() => {}
            }
        }
    }

    /// Says that the host lives and how much memory is free, and which masters and images it has if
    /// there are others than it said last.
    fn beat(&self, session: &mut Session) {
        let now = self.clones.masters().map(|families| Masters { families });
        let masters = now.filter(|now| session.masters.as_ref() != Some(now));
        let free_memory_mib = self.clones.free_memory_mib();
        let images = self.images().filter(|now| session.images.as_ref() != Some(now));
        let beat = Beat { masters: masters.clone(), free_memory_mib, images: images.clone() };
        if say(&session.messages, Message::Beat(beat)) {
            session.masters = masters.or(session.masters.take());
            session.images = images.or(session.images.take());
        }
    }

    fn obey(&mut self, session: &mut Session, order: HostOrder) {
        match order.order {
            Some(Order::EndedNoted(serial)) => {
                if let Some((_, clones)) = session.said.take_if(|(said, _)| *said == serial) {
                    self.ended.noted(&clones);
                }
            }
            Some(Order::Kill(order)) => {
                tracing::info!(family = order.family, vmids = ?order.vmids, reason = order.reason, "the scheduler ends clones");
                self.clones.kill(order);
            }
            // A newer scheduler may say more.
            Some(Order::Registered(_)) | None => {}
        }
    }

    /// Says what has ended, if nothing else is being said.
    fn say_ended(&mut self, session: &mut Session) {
        if session.said.is_some() {
            return;
        }
        let clones = self.ended.first();
        if !clones.is_empty() {
            self.serial += 1;
            let ended = ClonesEnded { serial: self.serial, clones: clones.clone() };
            if say(&session.messages, Message::Ended(ended)) {
                session.said = Some((self.serial, clones));
            }
        }
    }
}

/// The same, with what to do about it: a scheduler of an earlier release does not have the call.
fn explained(status: Status) -> Status {
    if status.code() == Code::Unimplemented {
        return Status::unimplemented(format!(
            "the scheduler does not know how this host registers: it is of an earlier release; update it ({})",
            status.message()
        ));
    }
    status
}

/// Whether there was room for it. If there is none, the connection is stalled: it will break, or
/// continue before the next beat.
fn say(messages: &mpsc::Sender<HostMessage>, message: Message) -> bool {
    messages.try_send(HostMessage { message: Some(message) }).is_ok()
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
