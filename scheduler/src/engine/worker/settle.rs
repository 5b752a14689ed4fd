//! Completes a batch: stores it first, and then answers.

use super::{Link, Worker};
use crate::{
    core::{
        api::{Became, CoreError, Effect, Named, Reply, Waiter},
        ticket::{HostId, State},
    },
    engine::{
        message::{Answer, Change, Changed, Gone, KillOrder, Refusal},
        waiting::Takes,
    },
    store::{Batch, JoinData, StoreError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

impl Worker {
    /// Stores what the effects change, then carries them out.
    pub(super) fn settle(&mut self, effects: Vec<Effect>) {
        let mut changed = BTreeMap::new();
        let (mut data, mut hosts, mut families) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for effect in &effects {
            match effect {
                Effect::Put(id) => {
                    changed.insert(*id, false);
                }
                Effect::Forget(id) => {
                    changed.insert(*id, true);
                }
                Effect::DropData { ticket, vmid } => {
                    data.push(JoinData { ticket: *ticket, vmid: *vmid, bytes: Vec::new() });
                }
                Effect::PutHost(host) | Effect::ForgetHost(host) => {
                    hosts.insert(*host);
                }
                Effect::PutVmids(family) => {
                    families.insert(*family);
                }
                Effect::Answer(waiter, Ok(Reply::Noted)) => {
                    data.extend(self.pending.get_mut(waiter).and_then(|pending| pending.data.take()));
                }
                Effect::Answer(..) | Effect::Became(_) | Effect::Kill { .. } | Effect::Cut { .. } => {}
            }
        }
        if let Err(error) = self.commit(&changed, &hosts, &families, data) {
            self.fail(error);
            return;
        }
        self.register(&effects);
        for effect in effects {
            self.carry_out(effect);
        }
        self.publish(changed);
    }

    fn commit(
        &mut self,
        changed: &BTreeMap<Uuid, bool>,
        hosts: &BTreeSet<HostId>,
        families: &BTreeSet<Uuid>,
        data: Vec<JoinData>,
    ) -> Result<(), StoreError> {
        let Some(core) = &self.core else { return Ok(()) };
        let put = |(id, forgotten): (&Uuid, &bool)| {
            // What is not there any more has a Forget of its own.
            core.ticket(Named { id: *id, family: None }).ok().filter(|_| !forgotten)
        };
        let puts = changed.iter().filter_map(put).collect();
        let forgets = changed.iter().filter(|(_, forgotten)| **forgotten).map(|(id, _)| *id).collect();
        let reserved = core.epochs().reserved();
        let epochs = (reserved != self.stored_epochs).then_some(reserved);
        let (known, unknown): (Vec<_>, Vec<_>) = hosts
            .iter()
            .map(|host| (*host, core.host_record(*host)))
            .partition(|(_, record)| record.is_some());
        let hosts = known.into_iter().filter_map(|(_, record)| record).collect();
        let forget_hosts = unknown.into_iter().map(|(host, _)| host).collect();
        let vmids = families.iter().filter_map(|family| core.vmid_record(*family).cloned()).collect();
        let is_forgotten = |family: &&Uuid| core.vmid_record(**family).is_none();
        let forget_vmids = families.iter().filter(is_forgotten).copied().collect();
        let batch = Batch { puts, hosts, data, forgets, forget_hosts, vmids, forget_vmids, epochs };
        if !batch.is_empty() {
            let started = std::time::Instant::now();
            self.store.commit(&batch)?;
            self.stored_epochs = reserved;
            self.is_tidy &= batch.forgets.is_empty() && batch.data.iter().all(|data| !data.bytes.is_empty());
            self.ends.metrics.committed(started.elapsed());
            self.batches += 1;
        }
        Ok(())
    }

    /// Hosts that are registered now hear what else the batch has for them.
    fn register(&mut self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Answer(waiter, Ok(Reply::Registered(epoch))) = effect else { continue };
            let Some(pending) = self.pending.get_mut(waiter) else { continue };
            if let (Takes::Host(host), Some(orders)) = (pending.takes, pending.orders.take()) {
                self.links.insert(host, Link { epoch: *epoch, orders });
                self.host_names.insert(host, pending.host_name.take().unwrap_or_default());
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Put(_)
            | Effect::Forget(_)
            | Effect::DropData { .. }
            | Effect::PutHost(_)
            | Effect::ForgetHost(_)
            | Effect::PutVmids(_) => {}
            Effect::Became(became) => log(&became),
            Effect::Answer(waiter, reply) => self.answer(waiter, reply),
            Effect::Kill { host, family, ticket, epoch, vmids, reason } => {
                tracing::info!(%host, %family, %ticket, ?vmids, reason, "clones are to end");
                let order = KillOrder { family, ticket, epoch, vmids, reason };
                let sent = self.links.get(&host).map(|link| link.orders.try_send(order).is_ok());
                if sent == Some(false) {
                    // It does not take its orders: it hears them when it registers again.
                    tracing::warn!(%host, "too many kill orders wait: its connection is cut");
                    self.cut(host);
                }
            }
            Effect::Cut { host, epoch } => {
                if self.links.get(&host).is_some_and(|link| link.epoch == epoch) {
                    tracing::info!(%host, epoch, "the host's registration is over");
                    self.links.remove(&host);
                }
            }
        }
    }

    fn cut(&mut self, host: HostId) {
        if let Some(link) = self.links.remove(&host) {
            self.late(Gone::Host(host, link.epoch));
        }
    }

    fn answer(&mut self, waiter: Waiter, reply: Result<Reply, CoreError>) {
        let Some(pending) = self.pending.remove(&waiter) else { return };
        let answer = reply.map_err(Refusal::Core).map(|reply| match reply {
            Reply::Ticket(ticket) | Reply::Joined(ticket) => Answer::Ticket(Box::new(self.see(*ticket))),
            Reply::Registered(epoch) => Answer::Registered(epoch),
            Reply::Noted => Answer::Noted,
            Reply::Met { round, arrived } => Answer::Met { round, arrived },
            Reply::Killed(vmids) => Answer::Killed(vmids),
            Reply::Host(change) => Answer::Host(change),
            Reply::Vmids { first, count } => Answer::Vmids { first, count },
        });
        if let Err(Ok(answer)) = pending.reply.send(answer)
            && let Some(gone) = pending.takes.unheard(answer)
        {
            self.late(gone);
        }
    }

    fn late(&self, gone: Gone) {
        // The worker has the receiver itself.
        if self.ends.late.send(gone).is_err() {
            tracing::error!("the worker cannot write to itself");
        }
    }

    fn publish(&self, changed: BTreeMap<Uuid, bool>) {
        if self.ends.changes.receiver_count() == 0 {
            return;
        }
        let Some(core) = &self.core else { return };
        for id in changed.into_keys() {
            let what = match core.ticket(Named { id, family: None }) {
                Ok(ticket) => Changed::Now(Box::new(self.see(ticket.clone()))),
                Err(_) => Changed::Forgotten(id),
            };
            if self.ends.changes.send(Arc::new(Change { batch: self.batches, what })).is_err() {
                return;
            }
        }
    }
}

/// A line for each step of a ticket's life, so that what became of it can be found by family, vmid
/// and ticket.
fn log(became: &Became) {
    let Became { ticket, family, state, parent_vmid: vmid, vmids, vms } = became;
    match state {
        State::Granted => tracing::info!(%ticket, %family, vms, "ticket granted"),
        State::Used => tracing::info!(%ticket, %family, vmid, vms, ?vmids, "ticket used"),
        State::Released => tracing::info!(%ticket, %family, vmid, vms, "ticket released"),
        State::Expired => tracing::info!(%ticket, %family, vmid, vms, "ticket expired"),
        State::Fenced => tracing::warn!(%ticket, %family, vmid, vms, "ticket fenced: its host is given up"),
    }
}
