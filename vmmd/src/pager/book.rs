//! Which layers and VMs the pager has to have: those that somebody holds ([`LazyLayer`],
//! [`LazyMemory`]). Whoever changes this tells the keeper.

mod peers;
mod vms;

use super::{error::PagerError, holders::Holders, order::Order, parts::Parts, place::Place};
use crate::{
    process::filling::{FileNumber, FillingLayer, FillingLayers},
    store::VmDir,
};
use futures::future::BoxFuture;
use patina_control::{
    end::End,
    pager::{Id, PAGER_LAYERS_MAX},
};
use patina_daemon::lock;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// What a pager has that an earlier `vmmd` started.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The layers, held until the VMs that use them are taken over.
    pub layers: Vec<Arc<LazyLayer>>,
    /// The VMs that are served.
    pub vms: HashSet<Id>,
    /// The VMs that lost memory while no `vmmd` was there.
    pub lost: HashMap<Id, End>,
    /// The connections over which other hosts read.
    pub connections: HashSet<Id>,
    /// The pagers of other hosts to which a connection broke meanwhile.
    pub broken: HashSet<Id>,
}

/// How long a VM has run of which nobody knows it: longer than what is told apart.
const LONG_AGO: Duration = Duration::from_hours(1);

/// See the module.
#[derive(Debug)]
pub struct Book {
    tables: Mutex<Tables>,
    orders: mpsc::UnboundedSender<Order>,
    /// What an earlier `vmmd` left, until its VMs are taken over.
    found: Mutex<Inventory>,
    looked: watch::Sender<bool>,
    /// Whether one of these is over: the keeper's look for a pager, the adoption of VMs. After the
    /// second one, what is not used is forgotten.
    first_is_over: AtomicBool,
    /// `vmmd` stops: what it lets go of stays.
    is_left: AtomicBool,
    /// What of it a later `vmmd` needs.
    pub(super) place: Place,
    /// Who finds other hosts that have a layer.
    pub(super) holders: OnceLock<Arc<dyn Holders>>,
}

#[derive(Debug, Default)]
struct Tables {
    layers: HashMap<Id, LayerEntry>,
    vms: HashMap<Id, VmEntry>,
}

#[derive(Debug)]
struct LayerEntry {
    parts: Arc<Parts>,
    /// How many [`LazyLayer`]s there are.
    uses: usize,
    fill: watch::Sender<Fill>,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fill {
    Filling,
    /// The source fails: the rest arrives only as far as VMs need it, if at all. Why.
    Stopped(String),
    Complete,
}

/// The layers of a VM.
#[derive(Debug)]
pub struct Held {
    /// Those that were being filled when it started: the pager serves them. By number.
    pub filling: Vec<Arc<LazyLayer>>,
    /// Those that were complete.
    pub filled: Vec<Arc<LazyLayer>>,
}

#[derive(Debug)]
struct VmEntry {
    held: Held,
    dir: VmDir,
    /// When it started. None: an earlier `vmmd` started it.
    started: Option<Instant>,
    lost: watch::Sender<Option<End>>,
}

impl Book {
    /// An empty book, and what comes of it.
    #[must_use]
    pub fn new(place: Place) -> (Arc<Self>, mpsc::UnboundedReceiver<Order>) {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (tables, found, looked) = (Mutex::default(), Mutex::default(), watch::Sender::new(false));
        let [first_is_over, is_left] = [false; 2].map(AtomicBool::new);
        let holders = OnceLock::new();
        (Arc::new(Self { tables, orders, found, looked, first_is_over, is_left, place, holders }), ordered)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // No code panics under this lock; if some did, the maps themselves are still whole.
        lock(&self.tables)
    }

    /// From now on nothing changes any more, whatever is let go of.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// Tells the keeper. Without one, `vmmd` ends.
    pub(super) fn order(&self, order: Order) {
        if self.is_left.load(Ordering::Acquire) {
            return;
        }
        patina_control::best_effort(self.orders.send(order), "it ends with the program");
    }

    fn handle(self: &Arc<Self>, entry: &mut LayerEntry) -> Arc<LazyLayer> {
        entry.uses += 1;
        let (parts, fill) = (Arc::clone(&entry.parts), entry.fill.subscribe());
        Arc::new(LazyLayer { parts, fill, book: Arc::clone(self) })
    }

    /// Holds a layer that the book has.
    pub fn hold(self: &Arc<Self>, id: &Id) -> Option<Arc<LazyLayer>> {
        self.tables().layers.get_mut(id).map(|entry| self.handle(entry))
    }

    /// Holds the layer with this memfd.
    pub(super) fn find(self: &Arc<Self>, memfd: FileNumber) -> Option<Arc<LazyLayer>> {
        let id = {
            let tables = self.tables();
            tables.layers.values().find(|entry| entry.parts.number == memfd)?.parts.id.clone()
        };
        self.hold(&id)
    }

    /// Adds a layer, and holds it. If the book has it already, its parts stay.
    ///
    /// # Errors
    /// There are too many.
    pub fn enter(self: &Arc<Self>, parts: Parts) -> Result<Arc<LazyLayer>, PagerError> {
        let mut tables = self.tables();
        let count = tables.layers.len();
        if count >= PAGER_LAYERS_MAX && !tables.layers.contains_key(&parts.id) {
            return Err(PagerError::Full(count));
        }
        let entry = tables.layers.entry(parts.id.clone()).or_insert_with(|| LayerEntry {
            parts: Arc::new(parts),
            uses: 0,
            fill: watch::Sender::new(Fill::Filling),
        });
        Ok(self.handle(entry))
    }

    /// A [`LazyLayer`] is gone.
    pub(super) fn release(&self, id: &Id) {
        let mut tables = self.tables();
        let Some(entry) = tables.layers.get_mut(id) else { return };
        entry.uses -= 1;
        if entry.uses == 0 {
            let parts = Arc::clone(&entry.parts);
            tables.layers.remove(id);
            // Under the lock: who adds the same layer next tells the keeper after this.
            self.order(Order::ForgetLayer(parts));
        }
    }

    /// All of a layer has arrived.
    pub(super) fn complete(&self, id: &Id) {
        if let Some(entry) = self.tables().layers.get(id) {
            entry.parts.source.close();
            entry.fill.send_replace(Fill::Complete);
        }
    }

    /// Whether all of a layer has arrived.
    pub(super) fn is_complete(&self, id: &Id) -> bool {
        self.tables().layers.get(id).is_some_and(|entry| *entry.fill.borrow() == Fill::Complete)
    }

    /// The layers of which not all has arrived.
    pub(super) fn filling(&self) -> Vec<Id> {
        let tables = self.tables();
        let filling = tables.layers.iter().filter(|(_, entry)| *entry.fill.borrow() != Fill::Complete);
        filling.map(|(id, _)| id.clone()).collect()
    }

    /// The source of a layer fails.
    pub(super) fn fill_stopped(&self, id: &Id, reason: &str) {
        if let Some(entry) = self.tables().layers.get(id) {
            entry.fill.send_if_modified(|fill| {
                let was_filling = *fill == Fill::Filling;
                if was_filling {
                    *fill = Fill::Stopped(reason.to_owned());
                }
                was_filling
            });
        }
    }

    /// What the pager needs of a layer.
    pub(super) fn parts(&self, id: &Id) -> Option<Arc<Parts>> {
        self.tables().layers.get(id).map(|entry| Arc::clone(&entry.parts))
    }

    /// All layers.
    pub(super) fn layers(&self) -> Vec<Arc<Parts>> {
        self.tables().layers.values().map(|entry| Arc::clone(&entry.parts)).collect()
    }

    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        lock(&self.found)
    }

    /// What the keeper has found of an earlier `vmmd`.
    pub(super) fn found(&self, inventory: Inventory) {
        *self.inventory() = inventory;
    }

    /// The keeper knows whether an earlier `vmmd` left a pager.
    pub(super) fn has_looked(&self) {
        self.looked.send_replace(true);
        self.forget_unused_after_both();
    }

    /// Waits until the keeper has looked for a pager of an earlier `vmmd`.
    pub(super) async fn looked(&self) {
        let mut looked = self.looked.subscribe();
        patina_control::best_effort(looked.wait_for(|looked| *looked).await, "the sender is the book's own");
    }

    /// Has a VM of an earlier `vmmd` served, which is in the book now.
    pub(super) fn serve_found(&self, vm: Id) {
        let lost = self.inventory().lost.remove(&vm);
        match lost {
            Some(end) => drop(self.lose(&vm, end)),
            None => self.order(Order::FoundVm(vm)),
        }
    }

    /// All VMs of an earlier `vmmd` are taken over.
    pub(super) fn has_adopted(&self) {
        self.forget_unused_after_both();
    }

    /// Lets go of what no VM of an earlier `vmmd` uses, when that is known: the keeper has looked,
    /// and the VMs are taken over. Either may be first, and neither waits for the other.
    fn forget_unused_after_both(&self) {
        if !self.first_is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let unused = std::mem::take(&mut *self.inventory());
        drop(unused);
        let known: Vec<Id> = self.tables().layers.keys().cloned().collect();
        self.place.keep_only(&known);
    }

    /// Whether there is anything to serve.
    pub(super) fn is_empty(&self) -> bool {
        let tables = self.tables();
        tables.layers.is_empty() && tables.vms.is_empty()
    }
}

/// For what a VM gives that is frozen while its memory arrives: nothing else that is not sealed is
/// accepted.
#[derive(Debug)]
pub struct Known<'a>(pub &'a Arc<Book>);

impl FillingLayers for Known<'_> {
    fn find(&self, memfd: FileNumber) -> Option<Arc<dyn FillingLayer>> {
        self.0.find(memfd).map(|layer| layer as Arc<dyn FillingLayer>)
    }
}

/// A layer that the pager fills, or has filled. When nobody holds it any longer, the pager forgets
/// it.
#[derive(Debug)]
pub struct LazyLayer {
    pub(super) parts: Arc<Parts>,
    fill: watch::Receiver<Fill>,
    pub(super) book: Arc<Book>,
}

impl LazyLayer {
    /// What the pager has of it. A vmm gets the memfd opened for reading only.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl FillingLayer for LazyLayer {
    fn id(&self) -> &Id {
        &self.parts.id
    }

    fn is_complete(&self) -> bool {
        *self.fill.borrow() == Fill::Complete
    }

    fn settled(&self) -> BoxFuture<'static, ()> {
        let mut fill = self.fill.clone();
        Box::pin(async move {
            // An error: nobody uses the layer any longer.
            drop(fill.wait_for(|fill| *fill != Fill::Filling).await);
        })
    }

    fn completed(&self) -> BoxFuture<'_, Result<(), String>> {
        let mut fill = self.fill.clone();
        Box::pin(async move {
            let settled = fill.wait_for(|fill| *fill != Fill::Filling).await;
            match settled.as_deref() {
                Ok(Fill::Complete) => Ok(()),
                Ok(Fill::Stopped(reason)) => Err(format!("layer {}, {reason}", self.parts.id)),
                Ok(Fill::Filling) | Err(_) => Err("vmmd is stopping".into()),
            }
        })
    }
}

impl Drop for LazyLayer {
    fn drop(&mut self) {
        self.book.release(&self.parts.id);
    }
}

/// The memory of a VM that the pager serves. When it is dropped, the pager serves the VM no longer.
#[derive(Debug)]
pub struct LazyMemory {
    pub(super) vm: Id,
    pub(super) book: Arc<Book>,
    pub(super) lost: watch::Receiver<Option<End>>,
}

impl LazyMemory {
    /// The VM's folder is there from now on: another pager's socket goes to the vmm there.
    pub fn moved_to(&self, dir: &VmDir) {
        self.book.moved(&self.vm, dir);
    }

    /// The vmm has started the VM: what serves it has told the vmm so. From now on another pager
    /// gets another socket.
    pub fn has_started(&self) {
        self.book.order(Order::Started(self.vm.clone()));
    }

    /// Waits until the VM must end because its memory cannot be served; how.
    pub async fn lost(&mut self) -> End {
        match self.lost.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for LazyMemory {
    fn drop(&mut self) {
        self.book.forget_vm(&self.vm);
    }
}
