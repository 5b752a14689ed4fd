//! The pool of warm VMs: one task per family, from the first ready VM of the family to its end.
//!
//! The task stays out of the way of clones. It creates a warm VM only while no clone of this host
//! is becoming ready (or one takes too long), few at a time, and with a low priority.

use super::{
    host::Host,
    spares::Spare,
    table::families::Work,
    vm::{Until, Vm},
    warm::{PoolSlot, Retry},
    warm_up::For,
};
use crate::{
    process::turns::{TURN_MAX, Turn},
    store::record::Record,
};
use futures::future::{join, join_all};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// How many are made at the same time that nobody waits for.
const AT_ONCE: usize = 2;
/// How long a clone that is not ready holds the pool up, and how long all together do. Some never
/// get ready.
const QUIET_PATIENCE: Duration = Duration::from_secs(10);

/// A clone that is on its way to ready; no longer when dropped.
#[derive(Debug)]
pub struct OnTheWay(Arc<watch::Sender<usize>>);

impl OnTheWay {
    pub(super) fn new(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(Arc::clone(count))
    }

    /// Until its VM is ready or has ended, or takes too long; its turn until it is ready or has
    /// ended.
    pub(super) fn until_ready(self, vm: Arc<Vm>, turn: Option<Turn>) {
        tokio::spawn(async move {
            let began = Instant::now();
            let mut way = Some(self);
            loop {
                match timeout(TURN_MAX, vm.wait(Until::Ready)).await {
                    Ok(Ok(())) => return turn.into_iter().for_each(Turn::is_ready),
                    Ok(Err(_)) => return,
                    Err(_) => turn.iter().for_each(|turn| turn.all().expire(Instant::now().into_std())),
                }
                if began.elapsed() >= QUIET_PATIENCE && way.take().is_some() {
                    tracing::debug!(vm = vm.record.name, "not ready; no longer waited for");
                }
            }
        });
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Host {
    /// A VM of a family is ready: its pool is kept from now on.
    pub(super) fn keep_pool(self: &Arc<Self>, of: &Record) {
        if self.table.begin_pool(of.net.index, of.family) {
            tokio::spawn(Arc::clone(self).pool(of.clone()));
        }
    }

    /// Until no clone is on its way, or for as long as is waited for that.
    pub(super) async fn quiet(&self) {
        let mut count = self.on_the_way.subscribe();
        if timeout(QUIET_PATIENCE, count.wait_for(|count| *count == 0)).await.is_err() {
            tracing::debug!("clones are on their way for long; not waited for");
        }
    }

    async fn pool(self: Arc<Self>, of: Record) {
        let (index, family) = (of.net.index, of.family);
        let (mut is_news, mut retry) = (false, Retry::default());
        while let Some(changed) = self.table.pool_changed(index, family) {
            if self.table.wants(index, family, self.pool_target(family).0) {
                self.quiet().await;
            }
            let (target, again) = self.pool_target(family);
            match self.table.pool_work(&of, target, AT_ONCE) {
                None => break,
                Some(Work::Nothing) => {
                    if std::mem::take(&mut is_news) {
                        tracing::debug!(%family, "the pool is as it should be");
                    }
                    // A ticket that expires says nothing.
                    let expired = async {
                        match again {
                            Some(after) => sleep(after).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! { () = changed.notified() => {}, () = expired => {} }
                }
                Some(Work::Trim(vmid, pool_slot)) => {
                    is_news = true;
                    pool_slot.discard().await;
                    self.table.release_vmid(index, family, vmid);
                }
                Some(Work::Make(vmids)) => {
                    is_news = true;
                    let mut failed = self.table.take_losses(index, family) > 0;
                    failed |= !self.fill(&of, vmids).await;
                    retry.after(failed).await;
                }
            }
        }
        tracing::debug!(%family, "its pool is no longer kept");
    }

    /// Makes warm VMs side by side; whether all came to be.
    async fn fill(self: &Arc<Self>, of: &Record, vmids: Vec<(u32, String)>) -> bool {
        let mut making = Vec::new();
        for (vmid, name) in vmids {
            let (pool_slot, made) = self.make_warm(of, vmid, name, For::Pool);
            if let Err(pool_slot) = self.table.keep_pool_slot(of.net.index, of.family, vmid, pool_slot) {
                // The family has ended: nobody will take it.
                pool_slot.discard().await;
                continue;
            }
            making.push((vmid, made));
        }
        let mut all = true;
        for (vmid, made) in making {
            if made.await.unwrap_or(false) {
                continue;
            }
            all = false;
            if let Some(pool_slot) = self.table.pull_pool_slot(of.net.index, of.family, vmid) {
                pool_slot.discard().await;
                self.table.release_vmid(of.net.index, of.family, vmid);
            }
        }
        all
    }

    /// How many are to be ready for a family: as many as always, or as it has tickets for; and for
    /// how long that holds.
    fn pool_target(&self, family: uuid::Uuid) -> (usize, Option<Duration>) {
        let (reserved, again) = self.tickets.reserved(family);
        (self.settings.warm.max(usize::try_from(reserved).unwrap_or(usize::MAX)), again)
    }

    /// Ends the vmms that are being made and are no VM's yet. None are made any more.
    pub async fn end_making(&self) {
        self.making.stop().await;
    }

    /// Ends every warm VM: a vmmd that stops cannot use them, and the next one would not know them.
    pub async fn end_pools(&self) {
        let pool_slots = self.table.clear_pools();
        let spares = self.spares.clear();
        let pool_slots = pool_slots.into_iter().map(PoolSlot::discard);
        let spares = spares.into_iter().map(Spare::discard);
        join(join_all(pool_slots), join_all(spares)).await;
    }
}
