//! The task that has the pager: starts it, talks to it, and replaces it when it is gone.
//!
//! [`Book`] has what the pager must have. The keeper brings both together: a pager that is new gets
//! all of it, and one that runs what changes.

mod demands;
mod holders;
mod peers;
mod starting;

use super::{
    book::Book,
    error::PagerError,
    gone::Gone,
    inventory::data_loss,
    order::{Order, Served},
    parts::Parts,
    restarts::Restarts,
    running::{Running, hear},
};
use patina_control::{
    best_effort,
    end::{End, EndKind},
    pager::{FromPager, Id, LayerStatus, ToPager},
};
use patina_daemon::chain;
use starting::Starting;
use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

/// How soon a pager that cannot be started is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a pager that nobody needs stays: the next VM may come soon.
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait for a line of a pager that has ended. Those that it wrote are there.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How often the pager is asked what VMs have demanded of the layers that are being filled: a pager
/// that ends forgets no more.
const ASK: Duration = Duration::from_secs(2);
/// A moment so far that it stands for never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who waits for the pager's answer about a layer.
type Waiting = HashMap<Id, Vec<oneshot::Sender<Result<(), PagerError>>>>;

/// See the module.
pub struct Keeper {
    program: PathBuf,
    book: Arc<Book>,
    orders: mpsc::UnboundedReceiver<Order>,
    pager: Option<Running>,
    restarts: Restarts,
    /// Counts the pagers.
    number: u64,
    retry: Option<Instant>,
    /// When the pager, which nobody needs, is to end.
    idle: Option<Instant>,
    waiting: Waiting,
    gone: Gone,
    /// The pager's ends of the sockets of VMs whose vmms have not started them yet.
    starting: HashMap<Id, Starting>,
    /// Layers that nobody uses, of which the pager is to tell what was demanded.
    leaving: HashMap<Id, Arc<Parts>>,
    /// Who waits for the pager to serve a connection of another host.
    serving: HashMap<Id, oneshot::Sender<Result<Served, PagerError>>>,
    /// Who waits for the end of such a connection.
    served: HashMap<Id, oneshot::Sender<bool>>,
    /// Connections to other hosts' pagers that broke.
    losses: peers::Losses,
    /// Peers for which others are looked for.
    seeking: HashSet<Id>,
    /// When the pager ended that is to be replaced.
    gone_since: Option<Instant>,
}

impl Keeper {
    /// One without a pager yet.
    #[must_use]
    pub fn new(program: PathBuf, book: Arc<Book>, orders: mpsc::UnboundedReceiver<Order>) -> Self {
        Self {
            program,
            book,
            orders,
            pager: None,
            restarts: Restarts::default(),
            number: 0,
            retry: None,
            idle: None,
            waiting: Waiting::new(),
            gone: Gone::default(),
            starting: HashMap::new(),
            leaving: HashMap::new(),
            serving: HashMap::new(),
            served: HashMap::new(),
            losses: peers::Losses::new(),
            seeking: HashSet::new(),
            gone_since: None,
        }
    }

    /// Keeps the pager for as long as `vmmd` runs.
    pub async fn run(mut self) {
        if let Err(error) = self.take_over().await {
            tracing::error!(error = %chain(&error), "the pager that runs is not taken over; another one is started when it is needed");
        }
        self.book.has_looked();
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.pager.is_none() && self.retry.is_none() && !self.book.is_empty() {
                self.start().await;
            }
            let never = Instant::now() + NEVER;
            let is_idle = self.pager.is_some() && self.is_idle();
            self.idle = is_idle.then(|| self.idle.unwrap_or_else(|| Instant::now() + IDLE));
            let (retry, idle) = (self.retry.unwrap_or(never), self.idle.unwrap_or(never));
            let happened = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.follow(order).await,
                    None => return,
                },
                heard = hear(&mut self.pager) => match heard {
                    Ok((message, file)) => self.take(message, file).await,
                    Err(error) => Err(error),
                },
                () = sleep_until(retry) => {
                    self.retry = None;
                    Ok(())
                }
                () = sleep_until(idle) => {
                    self.end_idle().await;
                    Ok(())
                }
                vm = self.gone.next() => self.try_again(vm).await,
                _ = ask.tick() => self.ask_for_demand(&self.book.filling()).await,
            };
            if let Err(error) = happened {
                self.lose(&error).await;
            }
        }
    }

    /// The pager is gone, or cannot be talked to any longer.
    async fn lose(&mut self, error: &PagerError) {
        let Some(mut pager) = self.pager.take() else { return };
        self.gone_since = Some(Instant::now());
        pager.process.end().await;
        tracing::error!(pid = pager.process.id().pid, error = %chain(&error), "the pager is gone; another one takes its place");
        // What it has said before it ended is true all the same.
        while let Ok(Ok((message, file))) = timeout(LAST_WORDS, pager.talk.next()).await {
            best_effort(self.take(message, file).await, "there is no pager to ask");
        }
        self.gone.forget_all();
        // Who waits hears that nothing comes.
        self.serving.clear();
        self.served.clear();
        self.save_demand_of_leaving();
    }

    /// Whether nobody needs the pager. Other hosts may read over connections that an earlier `vmmd`
    /// gave it.
    fn is_idle(&self) -> bool {
        self.book.is_empty() && self.served.is_empty()
    }

    /// Ends a pager that no VM of this host needs.
    async fn end_idle(&mut self) {
        if self.book.is_empty()
            && let Some(mut pager) = self.pager.take()
        {
            tracing::debug!(pid = pager.process.id().pid, "nobody needs the pager: it is ended");
            pager.process.end().await;
            self.gone.forget_all();
        }
    }

    async fn send(&self, message: &ToPager) -> Result<(), PagerError> {
        match &self.pager {
            Some(pager) => pager.talk.send(message, &[]).await,
            // The next one gets what the book has then.
            None => Ok(()),
        }
    }

    async fn follow(&mut self, order: Order) -> Result<(), PagerError> {
        match order {
            Order::Layer(id, answer) => {
                self.waiting.entry(id.clone()).or_default().push(answer);
                // A pager that is started now gets it with all others.
                match (self.book.parts(&id), &mut self.pager) {
                    (Some(parts), Some(pager)) => pager.add(&parts, &self.book).await,
                    _ => Ok(()),
                }
            }
            Order::Vm(vm, answer) => {
                let is_wanted = answer.send(self.begin_vm(&vm)).is_ok();
                // A pager that is started now gets it with all others.
                if is_wanted { self.attach_starting(&vm).await.map(drop) } else { Ok(()) }
            }
            Order::Started(vm) => {
                self.starting.remove(&vm);
                Ok(())
            }
            // If the pager is started now, it gets the VM with all others.
            Order::FoundVm(vm) if self.pager.is_some() => self.hand_over(vm).await,
            Order::FoundVm(_) => Ok(()),
            Order::Unreached(vm, number, reason) if number == self.number => self.look(vm, &reason).await,
            Order::Unreached(..) => Ok(()),
            Order::Leave(answer) => {
                self.end_idle().await;
                best_effort(answer.send(()), "nobody waits for it any longer");
                Ok(())
            }
            Order::ForgetVm(vm) => {
                self.gone.forget(&vm);
                self.starting.remove(&vm);
                if let Some(pager) = &mut self.pager {
                    pager.attached.remove(&vm);
                }
                self.send(&ToPager::DropVm { vm }).await
            }
            Order::ForgetLayer(parts) => self.forget_layer(parts).await,
            Order::Serve(serving, answer) => self.serve(serving, answer).await,
            Order::ConnectPeer(peer) => {
                self.connect_peer(&peer);
                Ok(())
            }
            Order::Dialled(peer, streams) => self.dialled(peer, streams).await,
            Order::Found(peer, found) => self.found(&peer, found).await,
            Order::Sought(peer) => self.sought(peer).await,
            Order::ForgetPeer(peer) => self.forget_peer(peer).await,
        }
    }

    async fn take(&mut self, message: FromPager, file: Option<OwnedFd>) -> Result<(), PagerError> {
        match message {
            FromPager::Layer(status) => self.has(&status),
            FromPager::LayerRefused { layer, reason } => self.refused(&layer, &reason),
            FromPager::LayerComplete { layer } => {
                tracing::debug!(%layer, "a layer is complete");
                self.book.complete(&layer);
                // Nothing of it is demanded any longer.
                return self.ask_for_demand(&[layer]).await;
            }
            FromPager::Demand { layer } => self.learn_demand(&layer, file),
            FromPager::VmGone { vm, reason } => return self.look(vm, &reason).await,
            FromPager::RunFailed { layer, run, reason, vms } => {
                tracing::error!(%layer, run, vms = vms.len(), reason, "a run cannot be had");
                for failed in vms {
                    self.book.lose(&failed.vm, data_loss(&layer, run, &reason));
                }
            }
            FromPager::FillStopped { layer, run, reason } => {
                tracing::warn!(%layer, run, reason, "the source fails: only what VMs need is fetched from now on");
                self.book.fill_stopped(&layer, &format!("run {run}: {reason}"));
            }
            FromPager::Vm { vm, mappings } => {
                // The vmm may not have been told yet: what it needs if this pager ends now stays.
                tracing::debug!(%vm, mappings, "the pager serves a VM");
            }
            // That a VM or a layer is gone already, for example.
            FromPager::Error { reason } => tracing::debug!(reason, "the pager"),
            FromPager::LayerDropped { layer } => tracing::debug!(%layer, "the pager has forgotten a layer"),
            FromPager::Peers(message) => self.hear_of_peer(message),
            FromPager::Hello { .. } | FromPager::Memfd { .. } | FromPager::Status(_) => {}
        }
        Ok(())
    }

    fn has(&mut self, status: &LayerStatus) {
        if status.is_complete {
            self.book.complete(&status.layer);
        }
        for answer in self.waiting.remove(&status.layer).unwrap_or_default() {
            drop(answer.send(Ok(())));
        }
        for (vm, reason) in self.gone.heard(status) {
            self.end(&vm, &reason);
        }
    }

    fn forget_given(&mut self, layer: &Id) {
        if let Some(pager) = &mut self.pager {
            pager.given.remove(layer);
            pager.asked.remove(layer);
        }
    }

    fn refused(&mut self, layer: &Id, reason: &str) {
        self.forget_given(layer);
        let answers = self.waiting.remove(layer).unwrap_or_default();
        if answers.is_empty() {
            // To drop it, which is no loss; or this pager is to take it over, which is one for all
            // who use it.
            tracing::warn!(%layer, reason, "the pager refuses a layer");
            for vm in self.book.users(layer) {
                self.end(&vm, &format!("the pager refuses layer {layer}: {reason}"));
            }
        }
        for answer in answers {
            let (layer, reason) = (layer.to_string(), reason.to_owned());
            drop(answer.send(Err(PagerError::Refused { layer, reason })));
        }
    }

    /// The pager does not serve a VM any longer. That is right if all of its memory has arrived:
    /// the pager is asked.
    async fn look(&mut self, vm: Id, reason: &str) -> Result<(), PagerError> {
        if !self.pager.as_mut().is_some_and(|pager| pager.attached.remove(&vm)) {
            return Ok(());
        }
        let Some((layers, ..)) = self.book.vm(&vm) else { return Ok(()) };
        // Its vmm has ended, or must hear of it: the socket ends.
        self.starting.remove(&vm);
        self.gone.ask(vm, reason, &layers);
        for layer in layers {
            self.send(&ToPager::Layer { layer }).await?;
        }
        Ok(())
    }

    /// A VM that the pager does not serve, and that needs it.
    async fn try_again(&mut self, vm: Id) -> Result<(), PagerError> {
        if self.book.vm(&vm).is_none() {
            return Ok(());
        }
        tracing::warn!(%vm, "the pager does not serve a VM that needs it; it is tried again");
        self.hand_over(vm).await
    }

    fn end(&self, vm: &Id, reason: &str) {
        let reason = format!("its memory cannot be served any longer: {reason}");
        if self.book.lose(vm, End { kind: EndKind::VmmError, reason }) {
            tracing::error!(%vm, "a VM whose memory cannot be served is ended");
        }
    }
}
