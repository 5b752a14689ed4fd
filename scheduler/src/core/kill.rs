//! Kills: clones are ended, wherever they are, and whoever asked hears when they are gone.

use super::{
    Core,
    api::{CoreError, Effect, Named, Reply, Targets, Waiter},
    hosts::Link,
    ticket::{HostId, State},
    waiting::{Kind, Place},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use uuid::Uuid;

/// Kills under way.
#[derive(Debug, Default)]
pub struct Kills {
    pending: HashMap<Waiter, Pending>,
    /// Who waits for a clone's end.
    by_clone: HashMap<(Uuid, u32), BTreeSet<Waiter>>,
    /// Clones that are to end, and why: said to their host until they have.
    doomed: BTreeMap<Doomed, String>,
}

/// A clone that is to end: where, whose, its number.
type Doomed = (HostId, Uuid, u32);

/// A call that waits.
#[derive(Debug)]
struct Pending {
    family: Uuid,
    all: Vec<u32>,
    left: BTreeSet<u32>,
}

impl Kills {
    /// Clones of a host that are to end: family, vmid, why.
    pub fn of_host(&self, host: HostId) -> impl Iterator<Item = (Uuid, u32, &str)> {
        let here = self.doomed.range((host, Uuid::nil(), 0)..=(host, Uuid::max(), u32::MAX));
        here.map(|((_, family, vmid), why)| (*family, *vmid, why.as_str()))
    }

    /// Somebody does not wait any more. Their clones are to end all the same.
    pub fn leave(&mut self, waiter: Waiter) {
        let Some(pending) = self.pending.remove(&waiter) else { return };
        for vmid in pending.left {
            if let Some(waiters) = self.by_clone.get_mut(&(pending.family, vmid)) {
                waiters.remove(&waiter);
                if waiters.is_empty() {
                    self.by_clone.remove(&(pending.family, vmid));
                }
            }
        }
    }

    /// A clone has ended. Returns those for whom it was the last one.
    fn ended(&mut self, clone: Doomed) -> Vec<(Waiter, Vec<u32>)> {
        self.doomed.remove(&clone);
        let (_, family, vmid) = clone;
        let mut done = Vec::new();
        for waiter in self.by_clone.remove(&(family, vmid)).into_iter().flatten() {
            let Some(pending) = self.pending.get_mut(&waiter) else { continue };
            pending.left.remove(&vmid);
            if pending.left.is_empty()
                && let Some(pending) = self.pending.remove(&waiter)
            {
                done.push((waiter, pending.all));
            }
        }
        done
    }
}

impl Core {
    /// Clones are to end.
    pub(super) fn kill(
        &mut self,
        waiter: Waiter,
        family: Uuid,
        targets: &Targets,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        let (all, live) = match self.targets(family, targets) {
            Ok(found) => found,
            Err(error) => return self.answer(waiter, Err(error), out),
        };
        if live.is_empty() {
            return self.answer(waiter, Ok(Reply::Killed(all)), out);
        }
        if let Err(error) = self.check_waiting(family, Kind::Kill) {
            return self.answer(waiter, Err(error), out);
        }
        let mut by_host: BTreeMap<HostId, Vec<u32>> = BTreeMap::new();
        for (vmid, host) in &live {
            self.kills.doomed.insert((*host, family, *vmid), reason.to_owned());
            self.kills.by_clone.entry((family, *vmid)).or_default().insert(waiter);
            by_host.entry(*host).or_default().push(*vmid);
        }
        let left = live.into_keys().collect();
        self.kills.pending.insert(waiter, Pending { family, all, left });
        self.wait(waiter, Place::Kill, family, None);
        for (host, vmids) in by_host {
            // A host that is away hears of it when it is back.
            if self.hosts.get(host).is_some_and(|host| host.link == Link::Up) {
                out.push(Effect::Kill { host, family, vmids, reason: reason.to_owned() });
            }
        }
    }

    /// All that are meant, and where those are that live.
    fn targets(
        &self,
        family: Uuid,
        targets: &Targets,
    ) -> Result<(Vec<u32>, BTreeMap<u32, HostId>), CoreError> {
        match targets {
            Targets::Ticket(id) => {
                let ticket = self.ticket(Named { id: *id, family: Some(family) })?;
                let live =
                    if ticket.state == State::Used { ticket.live().collect() } else { BTreeMap::new() };
                Ok((ticket.clones.keys().copied().collect(), live))
            }
            Targets::Vmids(vmids) => {
                let mut live = BTreeMap::new();
                let all: BTreeSet<u32> = vmids.iter().copied().collect();
                for vmid in &all {
                    let ticket = self.ledger.of_clone(family, *vmid).ok_or(CoreError::NoClone(*vmid))?;
                    if let Some(host) = ticket.clones.get(vmid).filter(|_| self.ledger.is_live(family, *vmid))
                    {
                        live.insert(*vmid, *host);
                    }
                }
                Ok((all.into_iter().collect(), live))
            }
        }
    }

    /// A clone has ended, or was never made: those who wait for that hear of it.
    pub(super) fn killed(&mut self, clone: Doomed, out: &mut Vec<Effect>) {
        for (waiter, all) in self.kills.ended(clone) {
            self.answer(waiter, Ok(Reply::Killed(all)), out);
        }
    }
}
