//! The pager begins: it is started or taken over, and gets what the book has.

use super::{
    super::{
        error::PagerError,
        inventory,
        order::Order,
        program,
        restarts::{STARTS_MAX, WITHIN},
        running::Running,
        talk::{PATIENCE, greet},
    },
    Keeper, RETRY,
};
use crate::process::control_client;
use patina_control::pager::Id;
use patina_daemon::chain;
use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};
use tokio::{sync::oneshot, time::Instant};

/// The pager's end of the socket of a VM that its vmm has not started yet.
#[derive(Debug)]
pub(super) struct Starting {
    socket: OwnedFd,
    /// A pager has had it, and may have read from it.
    was_given: bool,
}

impl Keeper {
    /// Goes on with the pager that an earlier `vmmd` started, if there is one.
    pub(super) async fn take_over(&mut self) -> Result<(), PagerError> {
        let place = self.book.place.clone();
        let found = tokio::task::spawn_blocking(move || program::find(&place)).await;
        let Some(process) = found.ok().flatten() else { return Ok(()) };
        let pid = process.id().pid;
        let taken = async {
            let talk = greet(program::connect(&self.book.place).await?).await?;
            inventory::read(&self.book, talk).await
        };
        match taken.await {
            Ok((talk, mut inventory)) => {
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
                // To the others there are connections.
                let peers = inventory.layers.iter().filter_map(|layer| layer.parts().source.peer_source());
                pager.peers.extend(
                    peers.map(|peer| peer.id().clone()).filter(|peer| !inventory.broken.contains(peer)),
                );
                self.pager = Some(pager);
                inventory.broken.iter().for_each(|peer| self.connect_peer(peer));
                // Nobody waits for their end.
                self.served.extend(
                    inventory.connections.drain().map(|connection| (connection, oneshot::channel().0)),
                );
                let layers: Vec<Id> = inventory.layers.iter().map(|layer| layer.parts().id.clone()).collect();
                self.book.found(inventory);
                // Some may have become complete while no `vmmd` was there.
                self.ask_for_demand(&layers).await
            }
            Err(error) => {
                // Those that it serves wait for the next one.
                process.kill()?;
                Err(error)
            }
        }
    }

    /// Starts a pager, and gives it all that the book has.
    pub(super) async fn start(&mut self) {
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
                tracing::error!(error = %chain(&error), "the pager cannot be started; it is tried again");
                self.retry = Some(Instant::now() + RETRY);
                if let Some(mut pager) = self.pager.take() {
                    pager.process.end().await;
                }
                // Nobody waits for what may never come.
                let words = chain(&error);
                for (layer, answers) in self.waiting.drain() {
                    let refusal = || PagerError::Refused { layer: layer.to_string(), reason: words.clone() };
                    answers.into_iter().for_each(|answer| drop(answer.send(Err(refusal()))));
                }
            }
        }
    }

    async fn start_now(&mut self) -> Result<(), PagerError> {
        let mut starting = program::start(&self.program, &self.book.place)?;
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
        self.give_all(Running::new(starting, talk)).await
    }

    /// Gives a new pager all that the book has.
    async fn give_all(&mut self, pager: Running) -> Result<(), PagerError> {
        let pid = pager.process.id().pid;
        let pager = self.pager.insert(pager);
        let (layers, vms) = (self.book.layers(), self.book.vms());
        for layer in &layers {
            pager.add(layer, &self.book).await?;
        }
        for vm in &vms {
            // One that has not started yet keeps its socket.
            if !self.attach_starting(vm).await? {
                self.hand_over(vm.clone()).await?;
            }
        }
        let away_ms = self.gone_since.take().map(|since| since.elapsed().as_millis());
        tracing::info!(pid, layers = layers.len(), vms = vms.len(), away_ms, "the pager is started");
        Ok(())
    }

    /// Attaches a VM whose vmm runs already, and gives it its socket.
    pub(super) async fn hand_over(&mut self, vm: Id) -> Result<(), PagerError> {
        let (Some(pager), Some((layers, dir, age))) = (&mut self.pager, self.book.vm(&vm)) else {
            return Ok(());
        };
        if pager.attached.contains(&vm) {
            return Ok(());
        }
        let (theirs, socket) = UnixStream::pair()?;
        pager.attach(&vm, layers, age, (&theirs.into(), false)).await?;
        let (book, number) = (Arc::clone(&self.book), self.number);
        tokio::spawn(async move {
            if let Err(error) = control_client::attach_pager(&dir, socket.into(), 2 * PATIENCE).await {
                book.order(Order::Unreached(vm, number, chain(&error)));
            }
        });
        Ok(())
    }

    /// The socket for a vmm that is about to start. The pager gets the other end, which is kept
    /// until the vmm has started the VM: if the pager ends before, another one goes on with the
    /// same socket. The vmm is asked for what the first one may have read of it.
    pub(super) fn begin_vm(&mut self, vm: &Id) -> Result<OwnedFd, PagerError> {
        let (theirs, socket) = UnixStream::pair()?;
        self.starting.insert(vm.clone(), Starting { socket: theirs.into(), was_given: false });
        Ok(socket.into())
    }

    /// Gives the pager its end of the socket of a VM that is about to start. False: it is none of
    /// those.
    pub(super) async fn attach_starting(&mut self, vm: &Id) -> Result<bool, PagerError> {
        let Some(Starting { socket, was_given }) = self.starting.get_mut(vm) else { return Ok(false) };
        if let (Some(pager), Some((layers, _, age))) = (&mut self.pager, self.book.vm(vm))
            && !pager.attached.contains(vm)
        {
            let is_again = std::mem::replace(was_given, true);
            pager.attach(vm, layers, age, (socket, is_again)).await?;
        }
        Ok(true)
    }
}
