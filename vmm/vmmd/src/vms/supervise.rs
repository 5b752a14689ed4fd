//! One task per running VM: hears its vmm, ends it when asked, and cleans up once when it is gone.

use super::{Host, Kept, Status, Vm, guest, unix_ms};
use crate::{
    net::ports::Published,
    plan::lifecycle::{Ended, Event, Lifecycle, Phase},
    process::{Process, link},
    store::{VmDir, record::Record},
};
use patina_abi::link::{Answer, REQUESTS_MAX};
use std::{fs, io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument;
use vmm::api::control::{FromVmm, Open, State, ToVmm};

/// How long a vmm may take to end its VM before it is ended itself.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long the last words of a vmm that is gone may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages between the control connection and the supervisor, each way: a guest's unanswered calls, and a few more.
const QUEUE: usize = REQUESTS_MAX + 16;
/// A moment so far that it stands for never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A VM that runs.
#[derive(Debug)]
pub struct Supervised {
    /// Its files.
    pub dir: VmDir,
    /// Its record.
    pub record: Record,
    /// Its process.
    pub process: Process,
    /// Where it stands.
    pub life: Lifecycle,
    /// Its published ports.
    pub published: Option<Published>,
}

/// Starts a VM's supervisor.
pub fn supervise(host: &Arc<Host>, vm: Supervised) -> Arc<Vm> {
    let (status, watched) = watch::channel(status_of(&vm.life));
    let (kill, kills) = mpsc::channel(1);
    let generation = Kept::default();
    let handle = Arc::new(Vm {
        record: vm.record.clone(),
        dir: vm.dir.clone(),
        status: watched,
        kill,
        generation: Arc::clone(&generation),
    });
    let span = tracing::info_span!(
        "vm", name = vm.record.name, family = %vm.record.family, vmid = vm.record.vmid, pid = vm.process.id().pid
    );
    let (orders, orders_out) = mpsc::channel(QUEUE);
    let (said_in, said) = mpsc::channel(QUEUE);
    let link = tokio::spawn(talk(vm.dir.clone(), said_in, orders_out).instrument(span.clone()));
    let supervisor = Supervisor {
        host: Arc::clone(host),
        vm,
        status,
        generation,
        kills,
        orders,
        said,
        link: link.abort_handle(),
        deadline: None,
    };
    tokio::spawn(supervisor.run().instrument(span));
    handle
}

impl Vm {
    /// A VM that ended before this `vmmd` looked.
    #[must_use]
    pub fn ended(record: Record, dir: VmDir, ended: Ended) -> Self {
        let status = Status { phase: Phase::Ended(ended), ready_after_us: record.ready_after_us };
        let (status, kill) = (watch::channel(status).1, mpsc::channel(1).0);
        Self { record, dir, status, kill, generation: Kept::default() }
    }
}

fn status_of(life: &Lifecycle) -> Status {
    Status { phase: life.phase.clone(), ready_after_us: life.ready_after_us }
}

struct Supervisor {
    host: Arc<Host>,
    vm: Supervised,
    status: watch::Sender<Status>,
    generation: Kept,
    kills: mpsc::Receiver<String>,
    orders: mpsc::Sender<ToVmm>,
    said: mpsc::Receiver<FromVmm>,
    link: AbortHandle,
    deadline: Option<Instant>,
}

impl Supervisor {
    async fn run(mut self) {
        tracing::info!("supervised");
        loop {
            let deadline = self.deadline.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                gone = self.vm.process.gone() => {
                    if let Err(error) = gone {
                        tracing::error!(%error, "watch the vmm process");
                    }
                    break;
                }
                Some(said) = self.said.recv() => self.hear(said).await,
                Some(reason) = self.kills.recv() => self.ask_to_end(reason),
                () = sleep_until(deadline) => {
                    self.deadline = None;
                    self.end_by_force();
                }
            }
        }
        self.finish().await;
    }

    async fn hear(&mut self, said: FromVmm) {
        match said {
            FromVmm::State(state) => {
                if self.vm.life.on(Event::Said(state)) {
                    tracing::info!(state = self.vm.life.phase.word(), after_us = self.vm.life.ready_after_us);
                    self.vm.record.ready_after_us = self.vm.life.ready_after_us;
                    self.save().await;
                    self.publish();
                }
            }
            FromVmm::GuestRequest { id, verb, args } => {
                let answer = guest::answer(&self.host, &self.vm.record, &verb, &args);
                self.reply(id, answer);
            }
        }
    }

    fn reply(&self, id: u64, answer: Answer) {
        if let Err(error) = self.orders.try_send(ToVmm::GuestReply { id, answer }) {
            tracing::warn!(%error, "answer a guest's call");
        }
    }

    fn ask_to_end(&mut self, reason: String) {
        tracing::info!(reason, "to be ended");
        self.vm.life.on(Event::KillAsked { reason: reason.clone() });
        match self.orders.try_send(ToVmm::Kill { reason }) {
            Ok(()) if self.deadline.is_none() => self.deadline = Some(Instant::now() + KILL_GRACE),
            Ok(()) => {}
            Err(_) => self.end_by_force(),
        }
    }

    fn end_by_force(&self) {
        tracing::warn!("the vmm does not end its VM: SIGKILL");
        if let Err(error) = self.vm.process.kill() {
            tracing::error!(%error, "kill the vmm process");
        }
    }

    /// The process is gone: everything of the VM goes, then its end is written, then told.
    async fn finish(mut self) {
        self.hear_last_words().await;
        self.link.abort();
        let exit = self.vm.process.exit();
        let (left, log_tail) = (self.vm.dir.load_end(), self.vm.dir.log_tail());
        self.vm.life.on(Event::Gone { left, exit, log_tail, unix_ms: unix_ms() });
        self.vm.published = None;
        *self.generation.lock().await = None;
        self.host.leave_family(self.vm.record.net, self.vm.record.family).await;
        remove_socket(&self.vm.dir);
        if let Phase::Ended(ended) = &self.vm.life.phase {
            tracing::info!(kind = ?ended.end.kind, reason = ended.end.reason, "ended");
            self.vm.record.ended = Some(ended.clone());
        }
        self.vm.record.ready_after_us = self.vm.life.ready_after_us;
        self.save().await;
        self.publish();
    }

    async fn hear_last_words(&mut self) {
        let read = async {
            while let Some(said) = self.said.recv().await {
                if let FromVmm::State(state @ (State::Ready { .. } | State::Ended(_))) = said {
                    self.vm.life.on(Event::Said(state));
                }
            }
        };
        if timeout(LAST_WORDS, read).await.is_err() {
            tracing::warn!("the control connection outlives its process");
        }
    }

    async fn save(&self) {
        let (dir, record) = (self.vm.dir.clone(), self.vm.record.clone());
        match spawn_blocking(move || dir.save(&record)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the record is not up to date"),
            Err(error) => tracing::error!(%error, "the record is not up to date"),
        }
    }

    fn publish(&self) {
        self.status.send_replace(status_of(&self.vm.life));
    }
}

/// Removes the socket of a VM that has ended.
pub fn remove_socket(dir: &VmDir) {
    match fs::remove_file(dir.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(socket = %dir.socket().display(), %error, "remove");
        }
        _ => {}
    }
}

/// Holds the control connection: what the vmm says comes out of `said`, what goes into `orders` is said to it.
async fn talk(dir: VmDir, said: mpsc::Sender<FromVmm>, mut orders: mpsc::Receiver<ToVmm>) {
    let stream = match link::open(&dir, &Open::Control, super::PATIENCE).await {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "no control connection: the state will not be known"),
    };
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut reading = tokio::io::BufReader::new(&mut reading);
    let hear = async {
        while let Some(line) = link::read_line(&mut reading).await? {
            if said.send(line).await.is_err() {
                break;
            }
        }
        Ok::<(), link::LinkError>(())
    };
    let tell = async {
        while let Some(order) = orders.recv().await {
            link::write_line(&mut writing, &order).await?;
        }
        std::future::pending::<Result<(), link::LinkError>>().await
    };
    let result = tokio::select! { heard = hear => heard, told = tell => told };
    if let Err(error) = result {
        tracing::warn!(%error, "the control connection broke");
    }
}
