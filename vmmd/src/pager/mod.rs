//! The host's pager: the process that fills layers and answers the page faults of the VMs that use
//! them ([`patina_control::pager`]). There is one, and it starts when it is needed first.
//!
//! ```text
//!  a snapshot's layer ─▶ add ──────┐                          ┌─ AddLayer, AttachVm ─▶ pager
//!  a VM that starts ───▶ serve ────┼─▶ book ─▶ keeper (task) ─┤
//!  a VM of before ─────▶ adopt ────┘                          └─ Open::Pager ─▶ vmm (a new pager)
//! ```
//!
//! - [`book`]: what the pager must have, by what is held; [`parts`]: what it needs of a layer;
//!   [`demand`]: what VMs have demanded of it.
//! - [`peers`]: pagers of other hosts, whose layers are read here; [`lender`]: how they are
//!   reached; [`holders`]: others that have the same layers.
//! - [`keeper`]: the task that starts the pager and replaces it; [`order`]: what it is to do;
//!   [`program`]: its process; [`talk`]: the connection; [`running`]: both; [`restarts`]: how
//!   often; [`gone`]: VMs that it does not serve any longer.
//! - [`place`], [`inventory`]: what a `vmmd` that starts anew finds.
//!
//! A layer is in the pager as long as a generation or a VM uses it. A pager that is killed is
//! replaced at once: the next one gets the same memfds, digests and files, and each VM a new
//! socket. The pager outlives `vmmd`, as VMs do.

pub mod book;
pub mod demand;
pub mod error;
pub mod gone;
pub mod holders;
pub mod inventory;
pub mod keeper;
pub mod lender;
pub mod order;
pub mod parts;
pub mod peers;
pub mod place;
pub mod program;
pub mod restarts;
pub mod running;
pub mod talk;

use crate::{
    process::{
        filling::{FileNumber, Filling, FillingLayers},
        generation::Generation,
    },
    store::VmDir,
};
use book::{Book, Held, Known, LazyLayer, LazyMemory};
use error::PagerError;
use holders::Holders;
use keeper::Keeper;
use lender::Lender;
use order::{Order, Served, Serving};
use parts::{Parts, id_of, name_of};
use patina_control::{
    best_effort,
    end::{End, EndKind},
    memfd,
    pager::{Credential, Id},
};
use patina_daemon::{chain, kernel};
use patina_snapshot::{
    directory::{LayerFile, Snapshot},
    manifest::{Layer, Manifest},
};
use place::Place;
use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use talk::PATIENCE;
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};
use uuid::Uuid;

/// See the module.
#[derive(Debug, Clone)]
pub struct Pager {
    book: Arc<Book>,
}

impl Pager {
    /// That of a state folder. If an earlier `vmmd` left one that runs, it is taken over; if not,
    /// `program` is started when a layer comes. To be called in a runtime.
    #[must_use]
    pub fn new(program: PathBuf, state: &Path) -> Self {
        let (book, orders) = Book::new(Place::new(state));
        tokio::spawn(Keeper::new(program, Arc::clone(&book), orders).run());
        Self { book }
    }

    /// Whether this kernel has what VMs need to run while their memory arrives: Linux 6.7 or later.
    #[must_use]
    pub fn is_supported() -> bool {
        kernel::release().is_ok_and(|release| kernel::notes_writes(&release))
    }

    /// The layers that a vmm may send although they are not sealed.
    #[must_use]
    pub fn known(&self) -> impl FillingLayers {
        Known(&self.book)
    }

    /// Has a layer of a snapshot filled. One of the same content that is there already is used.
    ///
    /// # Errors
    /// There is no memory or no pager, or it refuses the layer.
    pub async fn add_layer(&self, layer: &LayerFile) -> Result<Arc<LazyLayer>, PagerError> {
        self.hold_or_enter(layer.layer(), || Parts::of_snapshot(layer)).await
    }

    /// Holds the layer, which gets these parts if it is not there.
    async fn hold_or_enter(
        &self,
        layer: &Layer,
        parts: impl FnOnce() -> Result<Parts, PagerError>,
    ) -> Result<Arc<LazyLayer>, PagerError> {
        let held = match self.book.hold(&id_of(layer)?) {
            Some(held) => held,
            None => {
                let parts = parts()?;
                let number = parts.number;
                let held = self.book.enter(parts)?;
                // Another call may have been first.
                if held.parts.number == number {
                    self.book.place.save(&held.parts)?;
                }
                held
            }
        };
        self.ask(|answer| Order::Layer(held.parts.id.clone(), answer)).await?;
        Ok(held)
    }

    /// Whether a layer with this content is in memory, or is about to be.
    #[must_use]
    pub fn has(&self, layer: &LayerFile) -> bool {
        id_of(layer.layer()).is_ok_and(|id| self.book.hold(&id).is_some())
    }

    /// Makes a generation of a VM of another host, whose memory arrives from there while VMs run on
    /// it. What is here already is not read again.
    ///
    /// # Errors
    /// There is no memory, or there is no pager.
    pub async fn generation_of_peer(
        &self,
        manifest: &Manifest,
        state: &[u8],
        lender: Lender,
    ) -> Result<Generation, PagerError> {
        let peer = self.book.peer_of(name_of(lender.lease)?, lender);
        let state = memfd::sealed("patina-state", state).map_err(PagerError::Memory)?;
        let (mut files, mut held) = (vec![state.into()], Vec::new());
        for (number, layer) in (0..).zip(&manifest.layers) {
            let layer = self.hold_or_enter(layer, || Parts::of_peer(layer, &peer, number)).await?;
            files.push(layer.parts.memfd.try_clone().map_err(PagerError::Memory)?.into());
            held.push(layer);
        }
        // The generation holds them from then on.
        Ok(Generation::check(files, manifest.description.memory_mib, &self.known())?)
    }

    /// Has other hosts that have a layer found in this way. Only the first call counts.
    pub fn find_holders_with(&self, holders: Arc<dyn Holders>) {
        best_effort(self.book.holders.set(holders).map_err(|_| "set"), "it is set once");
    }

    /// Holds a layer that the pager has all of, for another host.
    #[must_use]
    pub fn hold_complete(&self, id: &Id) -> Option<Arc<LazyLayer>> {
        self.book.hold_complete(id)
    }

    /// Has the pager keep a layer for other hosts, which is complete in a sealed memfd.
    ///
    /// # Errors
    /// There is no memory, or there is no pager.
    pub async fn publish(&self, layer: &Layer, memfd: File) -> Result<Arc<LazyLayer>, PagerError> {
        self.hold_or_enter(layer, || Parts::of_sealed(layer, memfd)).await
    }

    /// A layer that the pager fills or has filled, by its memfd.
    #[must_use]
    pub fn find(&self, memfd: FileNumber) -> Option<Arc<LazyLayer>> {
        self.book.find(memfd)
    }

    /// Has the pager serve layers to another host over `stream`, compressed if `compress` says so.
    /// The layers must be held as long as what is returned says.
    ///
    /// # Errors
    /// There is no pager, or it refuses.
    pub async fn serve_peer(
        &self,
        connection: Uuid,
        layers: &[Arc<LazyLayer>],
        (stream, credential, compress): (OwnedFd, Credential, bool),
    ) -> Result<Served, PagerError> {
        let layers = layers.iter().map(|layer| layer.parts.id.clone()).collect();
        let serving = Serving { connection: name_of(connection)?, layers, stream, credential, compress };
        self.ask(|answer| Order::Serve(serving, answer)).await
    }

    /// Makes a generation of a snapshot whose memory arrives while VMs run on it. No memory is
    /// read.
    ///
    /// # Errors
    /// The snapshot's state is damaged, there is no memory, or there is no pager.
    pub async fn generation(&self, snapshot: Arc<Snapshot>) -> Result<Generation, PagerError> {
        let of = Arc::clone(&snapshot);
        let state = spawn_blocking(move || {
            let state = of.state()?;
            memfd::sealed("patina-state", &state).map_err(PagerError::Memory)
        });
        let state = state.await.map_err(|_| PagerError::Stopping)??;
        let (mut files, mut held) = (vec![state.into()], Vec::new());
        for layer in snapshot.layers() {
            let layer = self.add_layer(layer).await?;
            files.push(layer.parts.memfd.try_clone().map_err(PagerError::Memory)?.into());
            held.push(layer);
        }
        let memory_mib = snapshot.manifest().description.memory_mib;
        // The generation holds them from then on.
        Ok(Generation::check(files, memory_mib, &self.known())?)
    }

    /// Has a VM served that is about to start from a generation: what its vmm needs for that, and
    /// what serves it. None: all of the generation is complete. The VM holds the layers of the
    /// pager as long as it runs, so that who starts later shares them.
    ///
    /// # Errors
    /// There is no pager.
    pub async fn serve(
        &self,
        vm: Uuid,
        dir: &VmDir,
        generation: &Generation,
    ) -> Result<(Option<Filling>, Option<LazyMemory>), PagerError> {
        let hold = |id: &Id| self.book.hold(id).ok_or_else(|| PagerError::NoLayer(id.to_string()));
        let filling = generation.filling();
        let filled: Vec<_> =
            generation.filled().iter().filter_map(|layer| self.book.hold(layer.id())).collect();
        if filling.is_empty() && filled.is_empty() {
            return Ok((None, None));
        }
        let layers: Vec<Id> = filling.iter().map(|(_, layer)| layer.id().clone()).collect();
        let vm = name_of(vm)?;
        let held = Held { filling: layers.iter().map(hold).collect::<Result<_, _>>()?, filled };
        if layers.is_empty() {
            return Ok((None, Some(self.book.enter_vm(&vm, held, dir, Some(Instant::now()))?)));
        }
        dir.save_lazy_layers(&layers)?;
        let memory = self.book.enter_vm(&vm, held, dir, Some(Instant::now()))?;
        let pager = self.ask(|answer| Order::Vm(vm, answer)).await?;
        let layers = filling.iter().map(|(number, _)| *number).collect();
        Ok((Some(Filling { layers, pager }), Some(memory)))
    }

    /// Takes over the memory of a VM that an earlier `vmmd` started, whose vmm is process `pid`.
    /// None: all of it was there when it started. If it cannot be served, it is
    /// [lost](LazyMemory::lost).
    ///
    /// # Errors
    /// Which layers it has cannot be read, or there are too many VMs.
    pub async fn adopt(&self, vm: Uuid, dir: &VmDir, pid: u32) -> Result<Option<LazyMemory>, PagerError> {
        let layers = dir.lazy_layers()?;
        if layers.is_empty() {
            return Ok(None);
        }
        self.book.looked().await;
        let vm = name_of(vm)?;
        let (mut held, mut lost) = (Vec::new(), None);
        for id in &layers {
            match self.book.hold(id).map_or_else(|| self.recover(id, pid), Ok) {
                Ok(layer) => held.push(layer),
                Err(error) => lost = Some(error),
            }
        }
        let held = Held { filling: held, filled: Vec::new() };
        let memory = self.book.enter_vm(&vm, held, dir, None)?;
        match lost {
            Some(error) => {
                let reason = format!(
                    "memory that it may need is lost, as vmmd and the pager have both ended: {}",
                    chain(&error)
                );
                self.book.lose(&vm, End { kind: EndKind::DataLoss, reason });
            }
            None => self.book.serve_found(vm),
        }
        Ok(Some(memory))
    }

    /// The VMs of an earlier `vmmd` are taken over: what none of them uses goes.
    pub fn forget_unused(&self) {
        self.book.has_adopted();
    }

    /// `vmmd` stops: a pager that nobody needs ends. For no longer than a moment.
    pub async fn end_if_idle(&self) {
        let (answer, answered) = oneshot::channel();
        self.book.order(Order::Leave(answer));
        if timeout(PATIENCE, answered).await.is_err() {
            tracing::warn!("the next vmmd ends the pager if nobody needs it");
        }
    }

    /// `vmmd` stops when this is dropped: the pager goes on with all that it has, whatever is let
    /// go of after that.
    #[must_use]
    pub fn left_when_dropped(&self) -> Left {
        Left(Arc::clone(&self.book))
    }

    /// Has the keeper carry out an order, and waits for its answer.
    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, PagerError>>) -> Order,
    ) -> Result<T, PagerError> {
        let (answer, answered) = oneshot::channel();
        self.book.order(order(answer));
        let answered = timeout(2 * PATIENCE, answered).await;
        answered.map_err(|_| PagerError::Timeout(2 * PATIENCE))?.map_err(|_| PagerError::Stopping)?
    }

    /// A layer whose pager is gone, too: the vmm has its memfd.
    fn recover(&self, id: &Id, pid: u32) -> Result<Arc<LazyLayer>, PagerError> {
        let unknown = || PagerError::NoLayer(id.to_string());
        let saved = self.book.place.load(id)?.ok_or_else(unknown)?;
        let memfd = program::memfd_of(pid, saved.number()).ok_or_else(unknown)?;
        let held = self.book.enter(self.book.parts_of(id, saved, memfd)?)?;
        let (answer, _) = oneshot::channel();
        self.book.order(Order::Layer(id.clone(), answer));
        Ok(held)
    }
}

/// See [`Pager::left_when_dropped`].
#[derive(Debug)]
pub struct Left(Arc<Book>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.leave();
    }
}
