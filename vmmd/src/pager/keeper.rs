//! The task that has the pager: starts it, talks to it, and replaces it when it is gone.
//!
//! [`Book`] has what the pager must have. The keeper brings both together: a pager that is new gets
//! all of it, and one that runs what changes.

use super::{
    book::{Book, Order},
    error::PagerError,
    gone::Gone,
    inventory::{self, data_loss},
    program,
    restarts::{Restarts, STARTS_MAX, WITHIN},
    running::{Running, hear},
    talk::{PATIENCE, greet},
};
use crate::process::control_client;
use patina_control::{
    best_effort,
    end::{End, EndKind},
    pager::{FromPager, Id, LayerStatus, ToPager},
};
use std::{collections::HashMap, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// How soon a pager that cannot be started is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a pager that nobody needs stays: the next VM may come soon.
const IDLE: Duration = Duration::from_secs(10);
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
        }
    }

    /// Goes on with the pager that an earlier `vmmd` started, if there is one.
    async fn take_over(&mut self) -> Result<(), PagerError> {
        let place = self.book.place.clone();
        let found = tokio::task::spawn_blocking(move || program::find(&place)).await;
        let Some(process) = found.ok().flatten() else { return Ok(()) };
        let pid = process.id().pid;
        let taken = async {
            let talk = greet(program::connect(&self.book.place).await?).await?;
            inventory::read(&self.book, talk).await
        };
        match taken.await {
            Ok((talk, inventory)) => {
                tracing::info!(
                    pid,
                    layers = inventory.layers.len(),
                    vms = inventory.vms.len(),
                    "the pager is taken over"
                );
                self.number += 1;
                let mut pager = Running::new(process, talk);
                pager.attached.clone_from(&inventory.vms);
                pager.given.extend(inventory.layers.iter().map(|layer| layer.parts().id.clone()));
                self.pager = Some(pager);
                self.book.found(inventory);
                Ok(())
            }
            Err(error) => {
                // Those that it serves wait for the next one.
                process.kill()?;
                Err(error)
            }
        }
    }

    /// Keeps the pager for as long as `vmmd` runs.
    pub async fn run(mut self) {
        if let Err(error) = self.take_over().await {
            tracing::error!(%error, "the pager that runs is not taken over; another one is started when it is needed");
        }
        self.book.has_looked();
        loop {
            if self.pager.is_none() && self.retry.is_none() && !self.book.is_empty() {
                self.start().await;
            }
            let never = Instant::now() + NEVER;
            let is_idle = self.pager.is_some() && self.book.is_empty();
            self.idle = is_idle.then(|| self.idle.unwrap_or_else(|| Instant::now() + IDLE));
            let (retry, idle) = (self.retry.unwrap_or(never), self.idle.unwrap_or(never));
            let happened = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.follow(order).await,
                    None => return,
                },
                heard = hear(&mut self.pager) => match heard {
                    Ok((message, _)) => self.take(message).await,
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
            };
            if let Err(error) = happened {
                self.lose(&error).await;
            }
        }
    }

    /// The pager is gone, or cannot be talked to any longer.
    async fn lose(&mut self, error: &PagerError) {
        let Some(mut pager) = self.pager.take() else { return };
        pager.process.end().await;
        tracing::error!(pid = pager.process.id().pid, %error, "the pager is gone; another one takes its place");
        self.gone.forget_all();
    }

    /// Ends a pager that nobody needs.
    async fn end_idle(&mut self) {
        if self.book.is_empty()
            && let Some(mut pager) = self.pager.take()
        {
            tracing::debug!(pid = pager.process.id().pid, "nobody needs the pager: it is ended");
            pager.process.end().await;
            self.gone.forget_all();
        }
    }

    /// Starts a pager, and gives it all that the book has.
    async fn start(&mut self) {
        if let Err(at) = self.restarts.begin(Instant::now()) {
            let wait_ms = at.duration_since(Instant::now()).as_millis();
            tracing::error!(
                wait_ms,
                "the pager has ended {STARTS_MAX} times within {WITHIN:?}: the next one is started later; guests that need memory \
                 wait; see pager.log in the state folder"
            );
            self.retry = Some(at);
            return;
        }
        match self.start_now().await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the pager cannot be started; it is tried again");
                self.retry = Some(Instant::now() + RETRY);
                if let Some(mut pager) = self.pager.take() {
                    pager.process.end().await;
                }
                // Nobody waits for what may never come.
                let words = error.to_string();
                for (layer, answers) in self.waiting.drain() {
                    let refusal = || PagerError::Refused { layer: layer.to_string(), reason: words.clone() };
                    answers.into_iter().for_each(|answer| drop(answer.send(Err(refusal()))));
                }
            }
        }
    }

    async fn start_now(&mut self) -> Result<(), PagerError> {
        let process = program::start(&self.program, &self.book.place)?;
        let pid = process.id().pid;
        let mut starting = process;
        let talk = match program::connect(&self.book.place).await {
            Ok(stream) => greet(stream).await,
            Err(error) => Err(error),
        };
        let talk = match talk {
            Ok(talk) => talk,
            Err(error) => {
                starting.end().await;
                return Err(error);
            }
        };
        self.number += 1;
        let pager = self.pager.insert(Running::new(starting, talk));
        let (layers, vms) = (self.book.layers(), self.book.vms());
        tracing::info!(pid, layers = layers.len(), vms = vms.len(), "the pager is started");
        for layer in &layers {
            pager.add(layer).await?;
        }
        for vm in vms {
            self.hand_over(vm).await?;
        }
        Ok(())
    }

    async fn send(&self, message: &ToPager) -> Result<(), PagerError> {
        match &self.pager {
            Some(pager) => pager.talk.send(message, &[]).await,
            // The next one gets what the book has then.
            None => Ok(()),
        }
    }

    /// Gives the pager one end of a VM's socket; the other one comes back.
    async fn attach(&mut self, vm: &Id) -> Result<Option<OwnedFd>, PagerError> {
        let (Some(pager), Some((layers, _))) = (&mut self.pager, self.book.vm(vm)) else { return Ok(None) };
        pager.attach(vm, layers).await.map(Some)
    }

    /// Attaches a VM whose vmm runs already, and gives it its socket.
    async fn hand_over(&mut self, vm: Id) -> Result<(), PagerError> {
        if self.pager.as_ref().is_some_and(|pager| pager.attached.contains(&vm)) {
            return Ok(());
        }
        let Some(socket) = self.attach(&vm).await? else { return Ok(()) };
        let Some((_, dir)) = self.book.vm(&vm) else { return Ok(()) };
        let (book, number) = (Arc::clone(&self.book), self.number);
        tokio::spawn(async move {
            if let Err(error) = control_client::attach_pager(&dir, socket, 2 * PATIENCE).await {
                book.order(Order::Unreached(vm, number, error.to_string()));
            }
        });
        Ok(())
    }

    async fn follow(&mut self, order: Order) -> Result<(), PagerError> {
        match order {
            Order::Layer(id, answer) => {
                self.waiting.entry(id.clone()).or_default().push(answer);
                // A pager that is started now gets it with all others.
                match (self.book.parts(&id), &mut self.pager) {
                    (Some(parts), Some(pager)) => pager.add(&parts).await,
                    _ => Ok(()),
                }
            }
            Order::Vm(vm, answer) => {
                if self.pager.is_none() {
                    self.start().await;
                }
                let socket = self.attach(&vm).await;
                let (socket, result) = match socket {
                    Ok(Some(socket)) => (Ok(socket), Ok(())),
                    Ok(None) => (Err(PagerError::Closed), Ok(())),
                    Err(error) => (Err(PagerError::Closed), Err(error)),
                };
                drop(answer.send(socket));
                result
            }
            // If the pager is started now, it gets the VM with all others.
            Order::Found(vm) if self.pager.is_some() => self.hand_over(vm).await,
            Order::Found(_) => Ok(()),
            Order::Unreached(vm, number, reason) if number == self.number => self.look(vm, &reason).await,
            Order::Unreached(..) => Ok(()),
            Order::Leave(answer) => {
                self.end_idle().await;
                best_effort(answer.send(()), "nobody waits for it any longer");
                Ok(())
            }
            Order::ForgetVm(vm) => {
                self.gone.forget(&vm);
                if let Some(pager) = &mut self.pager {
                    pager.attached.remove(&vm);
                }
                self.send(&ToPager::DropVm { vm }).await
            }
            Order::ForgetLayer(layer) => {
                // It may have come back since.
                if self.book.parts(&layer).is_none() {
                    self.book.place.forget(&layer);
                }
                self.forget_given(&layer);
                self.send(&ToPager::DropLayer { layer }).await
            }
        }
    }

    async fn take(&mut self, message: FromPager) -> Result<(), PagerError> {
        match message {
            FromPager::Layer(status) => self.has(&status),
            FromPager::LayerRefused { layer, reason } => self.refused(&layer, &reason),
            FromPager::LayerComplete { layer } => {
                tracing::debug!(%layer, "a layer is complete");
                self.book.complete(&layer);
            }
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
            FromPager::Vm { vm, mappings } => tracing::debug!(%vm, mappings, "the pager serves a VM"),
            // That a VM or a layer is gone already, for example.
            FromPager::Error { reason } => tracing::debug!(reason, "the pager"),
            FromPager::LayerDropped { layer } => tracing::debug!(%layer, "the pager has forgotten a layer"),
            FromPager::Hello { .. }
            | FromPager::Demand { .. }
            | FromPager::Memfd { .. }
            | FromPager::Status(_) => {}
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
        }
    }

    fn refused(&mut self, layer: &Id, reason: &str) {
        self.forget_given(layer);
        let answers = self.waiting.remove(layer).unwrap_or_default();
        if answers.is_empty() {
            // To drop it, which is no loss; or this pager is to take it over, which is one for all who use it.
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

    /// The pager does not serve a VM any longer. That is right if all of its memory has arrived: the pager is asked.
    async fn look(&mut self, vm: Id, reason: &str) -> Result<(), PagerError> {
        if !self.pager.as_mut().is_some_and(|pager| pager.attached.remove(&vm)) {
            return Ok(());
        }
        let Some((layers, _)) = self.book.vm(&vm) else { return Ok(()) };
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
