//! One task per running VM. It reads from the vmm, ends it on request, and cleans up once after its
//! end.
//!
//! - `talk`: the control connection; `calls`: the guest's calls over it. `states`: what follows
//!   from where the VM stands, and images. `ports`: ports that are published as it runs.

mod calls;
mod ports;
mod states;
mod talk;

use super::{
    booted::keep::Keep,
    host::Host,
    tickets,
    vm::{PortsOrder, Status, ToEnd, Vm},
};
use crate::{
    clock::unix_ms,
    net::ports::{Bound, Published},
    pager::book::LazyMemory,
    plan::lifecycle::{Ended, Event, Lifecycle, Phase},
    process::Process,
    store::{Lasting, VmDir, record::Record},
};
use calls::Cancel;
use patina_abi::link::REQUESTS_MAX;
use patina_control::{
    VERSION,
    end::{End, EndKind},
    messages::{FromVmm, State, ToVmm},
};
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use scheduler::host::admission::Reservation;
use std::{collections::HashMap, fs, io, sync::Arc, time::Duration};
use talk::{Heard, talk};
use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument;

/// How long a vmm may take to end its VM before it is ended itself.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long the last words of a vmm that is gone may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages between the control connection and the supervisor, each way: a guest's unanswered
/// calls, and a few more.
const QUEUE: usize = REQUESTS_MAX + 16;
/// How long a VM that has its record may be without its generation: it was under way to its vmm
/// when another vmmd died.
const START_GRACE: Duration = Duration::from_secs(10);
/// Most bytes of the reason for an end, which goes to the vmm and into the record.
const REASON_MAX_BYTES: usize = 1024;
/// A moment so far that it stands for never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A VM that runs, with what its supervisor needs.
#[derive(Debug)]
pub struct Supervised {
    /// The VM's folder.
    pub dir: VmDir,
    /// The VM's record.
    pub record: Record,
    /// The VM's vmm process.
    pub process: Process,
    /// How far the VM is: booting, ready or ended.
    pub life: Lifecycle,
    /// The VM's published ports.
    pub published: Option<Published>,
    /// Its control connection, if it is made already.
    pub control: Option<BufReader<UnixStream>>,
    /// Its vmm's version, if the vmm has said on that connection what it is. None: the first line
    /// of one tells.
    pub vmm_version: Option<u32>,
    /// What serves its memory. None: all of it was there when it started.
    pub memory: Option<LazyMemory>,
    /// A clone's reservation on the host.
    pub reservation: Option<Reservation>,
    /// It is to be kept as an image when it is ready, and its ports are not published before that.
    pub keep: Option<Keep>,
}

/// Starts a VM's supervisor.
pub fn supervise(host: &Arc<Host>, mut vm: Supervised) -> Arc<Vm> {
    let (status, watched) = watch::channel(status_of(&vm));
    let (kill, kills) = mpsc::channel(1);
    let (change_ports, port_orders) = mpsc::channel(1);
    let handle = Arc::new(Vm::new(vm.record.clone(), vm.dir.clone(), watched, kill, change_ports));
    let record = &vm.record;
    let ticket = record.ticket.map(|ticket| ticket.to_string()).unwrap_or_default();
    let span = tracing::info_span!(
        "vm", name = record.name, family = %record.family, vmid = record.vmid, ticket, pid = vm.process.id().pid
    );
    let (orders, orders_out) = mpsc::channel(QUEUE);
    let (said_in, said) = mpsc::channel(QUEUE);
    let talk = talk(vm.dir.clone(), vm.control.take(), said_in, orders_out);
    let talk = tokio::spawn(talk.instrument(span.clone()));
    let supervisor = Supervisor {
        host: Arc::clone(host),
        handle: Arc::clone(&handle),
        vm,
        status,
        calls: JoinSet::new(),
        cancels: HashMap::new(),
        kills,
        port_orders,
        orders,
        said,
        talk: talk.abort_handle(),
        keeping: JoinSet::new(),
        unpublished: None,
        is_heard: false,
        is_unstarted: false,
        deadline: None,
    };
    tokio::spawn(supervisor.run().instrument(span));
    handle
}

async fn lost(memory: &mut Option<LazyMemory>) -> End {
    match memory {
        Some(memory) => memory.lost().await,
        None => std::future::pending().await,
    }
}

fn status_of(vm: &Supervised) -> Status {
    let life = &vm.life;
    Status {
        phase: life.phase.clone(),
        ready_after_us: life.ready_after_us,
        vmm_version: vm.vmm_version,
        ports: vm.record.ports.clone(),
    }
}

struct Supervisor {
    host: Arc<Host>,
    handle: Arc<Vm>,
    vm: Supervised,
    status: watch::Sender<Status>,
    // The guest's calls that are being answered, and which of them it may still cancel.
    calls: JoinSet<u64>,
    cancels: HashMap<u64, Cancel>,
    kills: mpsc::Receiver<ToEnd>,
    port_orders: mpsc::Receiver<PortsOrder>,
    orders: mpsc::Sender<ToVmm>,
    said: mpsc::Receiver<Heard>,
    // It is ready, and is being frozen to be kept as an image; nobody hears that it is ready
    // before.
    keeping: JoinSet<Bound>,
    unpublished: Option<State>,
    // Serves the control connection.
    talk: AbortHandle,
    // The vmm has said something on a control connection that is not known to have broken.
    is_heard: bool,
    // It has a record and no generation: it starts at any moment, or never.
    is_unstarted: bool,
    deadline: Option<Instant>,
}

impl Supervisor {
    async fn run(mut self) {
        tracing::info!("supervised");
        loop {
            let deadline = self.deadline.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                // The only way out: a VM lives exactly as long as its vmm.
                gone = self.vm.process.gone() => {
                    if let Err(error) = gone {
                        tracing::error!(error = %chain(&error), "watch the vmm process");
                    }
                    break;
                }
                // A broken connection is made again; the calls that came over it are lost with it.
                Some(heard) = self.said.recv() => {
                    self.is_heard = matches!(heard, Heard::Said(_));
                    match heard {
                        Heard::Said(said) => self.hear(said).await,
                        Heard::Broke => self.forget_calls(),
                    }
                },
                Some(bound) = self.keeping.join_next() => self.kept(bound.ok()).await,
                // An order to end only begins the end: the vmm is asked first, and has a deadline.
                Some(why) = self.kills.recv() => self.ask_to_end(why),
                Some(order) = self.port_orders.recv() => self.change_ports(order).await,
                // The vmm may wait for the page, and then it cannot end by itself.
                end = lost(&mut self.vm.memory) => {
                    tracing::error!(kind = ?end.kind, reason = end.reason, "its memory is lost");
                    self.discard_image(end.kind == EndKind::DataLoss).await;
                    self.vm.life.on(Event::Lost(end));
                    self.vm.memory = None;
                    self.end_by_force();
                }
                // An answered call cannot be cancelled any more.
                Some(answered) = self.calls.join_next() => if let Ok(id) = answered {
                    self.cancels.remove(&id);
                },
                // Whether it was asked to end or never began: it has had its time.
                () = sleep_until(deadline) => {
                    self.deadline = None;
                    if self.is_unstarted {
                        let reason = "its vmm never got the generation: vmmd was killed as it cloned".into();
                        self.vm.life.on(Event::KillAsked { reason });
                    }
                    self.end_by_force();
                }
            }
        }
        self.finish().await;
    }

    async fn hear(&mut self, said: FromVmm) {
        // A vmm that does not begin with a hello is older than versions.
        if self.vm.vmm_version.is_none() && !matches!(said, FromVmm::Hello { .. }) {
            self.greet(0);
        }
        match said {
            FromVmm::Hello { version } => self.greet(version),
            FromVmm::State(State::Warm) => {
                self.is_unstarted = true;
                self.deadline.get_or_insert_with(|| Instant::now() + START_GRACE);
            }
            FromVmm::State(state) => {
                if std::mem::take(&mut self.is_unstarted) {
                    self.deadline = None;
                }
                self.reach(state).await;
            }
            FromVmm::GuestRequest { id, verb, args } => self.call(id, verb, args),
            FromVmm::GuestCancel { id } => {
                if let Some(call) = self.cancels.remove(&id) {
                    call.cancel();
                }
            }
        }
    }

    /// A vmm that is newer than this vmmd runs on; what it would do with a freeze nobody knows.
    fn greet(&mut self, version: u32) {
        if self.vm.vmm_version.replace(version) == Some(version) {
            return;
        }
        if version > VERSION {
            tracing::warn!(
                version,
                ours = VERSION,
                "the vmm is of a newer release than this vmmd: its VM runs on, and is not cloned"
            );
        }
        self.publish();
        // A VM that was taken over may be ready already.
        self.on_phase();
    }

    fn ask_to_end(&mut self, why: ToEnd) {
        let (reason, event) = match why {
            ToEnd::Killed(mut reason) => {
                // The words of whoever ordered it, in any length.
                reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
                (reason.clone(), Event::KillAsked { reason })
            }
            ToEnd::Joined(reason) => (reason.clone(), Event::Joined { reason }),
        };
        tracing::info!(reason, "to be ended");
        self.vm.life.on(event);
        self.is_unstarted = false;
        match self.orders.try_send(ToVmm::Kill { reason }) {
            Ok(()) if self.deadline.is_none() => self.deadline = Some(Instant::now() + KILL_GRACE),
            Ok(()) => {}
            Err(_) => self.end_by_force(),
        }
    }

    fn end_by_force(&self) {
        tracing::warn!("the vmm is ended by SIGKILL");
        if let Err(error) = self.vm.process.kill() {
            tracing::error!(error = %chain(&error), "kill the vmm process");
        }
    }

    /// The process is gone: everything of the VM goes, then its end is written, then told.
    async fn finish(mut self) {
        self.hear_last_words().await;
        self.talk.abort();
        let exit = self.vm.process.exit();
        let (left, log_tail) = self.read_words().await;
        if let Some(state) = self.unpublished.take() {
            self.vm.life.on(Event::Said(state));
        }
        self.vm.life.on(Event::Gone { left, exit, log_tail, unix_ms: unix_ms() });
        self.keeping.shutdown().await;
        self.vm.published = None;
        self.vm.memory = None;
        self.tell_scheduler();
        *self.handle.spare.lock().await = None;
        self.forget_calls();
        self.handle.forget_pieces();
        let of = &self.vm.record;
        self.host.leave_family(of.net, of.family, of.vmid).await;
        if let Phase::Ended(ended) = &self.vm.life.phase {
            tracing::info!(kind = ?ended.end.kind, reason = ended.end.reason, "ended");
            self.host.tell(&self.vm.record, EventKind::Ended, ended.end.reason.clone());
            self.vm.record.ended = Some(ended.clone());
            let is_early = self.vm.life.ready_after_us.is_none() && self.vm.record.vmid == 0;
            let is_killed = exit.is_kill() || ended.end.kind == EndKind::Killed;
            self.discard_image(is_early && !is_killed).await;
        }
        self.vm.record.ready_after_us = self.vm.life.ready_after_us;
        self.keep_record().await;
        self.publish();
        if self.vm.record.vmid > 0 {
            self.host.forget_old_clones().await;
        }
    }

    /// Before anybody hears that it has ended: see [`scheduler::host::admission::Vms::running`].
    fn tell_scheduler(&mut self) {
        if let Phase::Ended(ended) = &self.vm.life.phase {
            tell_ended(&self.host, &self.vm.record, self.vm.reservation.as_mut(), ended);
        }
        self.vm.reservation = None;
    }

    async fn hear_last_words(&mut self) {
        if !self.is_heard && self.said.is_empty() {
            return;
        }
        let read = async {
            while let Some(heard) = self.said.recv().await {
                match heard {
                    Heard::Said(FromVmm::State(state @ (State::Ready { .. } | State::Ended(_)))) => {
                        self.vm.life.on(Event::Said(state));
                    }
                    Heard::Said(_) => {}
                    // A vmm that is gone makes no other.
                    Heard::Broke => break,
                }
            }
        };
        if timeout(LAST_WORDS, read).await.is_err() {
            tracing::warn!("the control connection outlives its process");
        }
    }

    /// What the vmm left in its files.
    async fn read_words(&self) -> (Option<End>, String) {
        let dir = self.vm.dir.clone();
        let read = spawn_blocking(move || {
            remove_socket(&dir);
            (dir.load_end(), dir.log_tail())
        });
        read.await.unwrap_or_default()
    }

    async fn keep_record(&self) {
        let (host, dir, record) = (Arc::clone(&self.host), self.vm.dir.clone(), self.vm.record.clone());
        if let Err(error) = spawn_blocking(move || host.keep_record(&dir, &record, Lasting::Host)).await {
            tracing::error!(error = %chain(&error), "the record is not up to date");
        }
    }

    async fn save(&self, lasting: Lasting) {
        let (dir, record) = (self.vm.dir.clone(), self.vm.record.clone());
        match spawn_blocking(move || dir.save(&record, lasting)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = %chain(&error), "the record is not up to date"),
            Err(error) => tracing::error!(error = %chain(&error), "the record is not up to date"),
        }
    }

    fn publish(&self) {
        self.status.send_replace(status_of(&self.vm));
    }
}

/// Tells the scheduler of a VM's end.
pub(super) fn tell_ended(host: &Host, record: &Record, reservation: Option<&mut Reservation>, ended: &Ended) {
    match reservation {
        Some(reservation) => reservation.ended(tickets::end(ended)),
        None if record.vmid == 0 => host.tickets.master_ended(record.family, ended),
        None => {}
    }
}

/// Removes the socket of a VM that has ended.
pub fn remove_socket(dir: &VmDir) {
    match fs::remove_file(dir.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(socket = %dir.socket().display(), error = %chain(&error), "remove");
        }
        _ => {}
    }
}
