//! Kills: ends clones on any host, and answers the caller when they have ended.
//!
//! The ledger records which clones of a ticket must end before any host is told. So the order stays
//! valid if the caller, the host or the scheduler goes away. A waiting call does not survive a
//! restart of the scheduler; the caller retries it.

use super::{
    Core,
    api::{CoreError, Effect, Named, Reply, Targets, Waiter},
    host::Link,
    ticket::{HostId, State, Ticket},
    waiting::{Kind, Place},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use uuid::Uuid;

/// Kills under way.
#[derive(Debug, Default)]
pub struct Kills {
    pending: HashMap<Waiter, Pending>,
    /// Those who wait for a clone's end.
    by_clone: HashMap<(Uuid, u32), BTreeSet<Waiter>>,
    /// Clones that are to end, as [`Ticket::kills_requested`] has them: said to their host until
    /// they have.
    requested: BTreeSet<Target>,
}

/// A clone: where, of which ticket, its number.
type Target = (HostId, Uuid, u32);

/// A call that waits.
#[derive(Debug)]
struct Pending {
    all: Vec<u32>,
    /// By ticket and vmid.
    left: BTreeSet<(Uuid, u32)>,
}

impl Kills {
    /// Clones of a host that are to end: ticket, vmid.
    pub fn of_host(&self, host: HostId) -> impl Iterator<Item = (Uuid, u32)> {
        let here = self.requested.range((host, Uuid::nil(), 0)..=(host, Uuid::max(), u32::MAX));
        here.map(|(_, ticket, vmid)| (*ticket, *vmid))
    }

    /// Clones of a ticket that is known from before are to end.
    pub fn recall(&mut self, ticket: &Ticket) {
        let live = ticket.live().filter(|(vmid, _)| ticket.kills_requested.contains_key(vmid));
        self.requested.extend(live.map(|(vmid, host)| (host, ticket.id, vmid)));
    }

    /// A clone has ended, or was never made.
    pub fn spare(&mut self, clone: Target) {
        self.requested.remove(&clone);
    }

    /// Somebody does not wait any more. Their clones are to end all the same.
    pub fn leave(&mut self, waiter: Waiter) {
        let Some(pending) = self.pending.remove(&waiter) else { return };
        for clone in pending.left {
            if let Some(waiters) = self.by_clone.get_mut(&clone) {
                waiters.remove(&waiter);
                if waiters.is_empty() {
                    self.by_clone.remove(&clone);
                }
            }
        }
    }

    /// A clone has ended. Returns those for whom it was the last one.
    fn ended(&mut self, ticket: Uuid, vmid: u32) -> Vec<(Waiter, Vec<u32>)> {
        let mut done = Vec::new();
        for waiter in self.by_clone.remove(&(ticket, vmid)).into_iter().flatten() {
            let Some(pending) = self.pending.get_mut(&waiter) else { continue };
            pending.left.remove(&(ticket, vmid));
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
        self.kill_lost(family, targets, reason, out);
        if live.is_empty() {
            self.drop_rest(targets, out);
            return self.answer(waiter, Ok(Reply::Killed(all)), out);
        }
        if let Err(error) = self.check_waiting(family, Kind::Kill) {
            return self.answer(waiter, Err(error), out);
        }
        self.drop_rest(targets, out);
        let mut orders: BTreeMap<(HostId, Uuid), Vec<u32>> = BTreeMap::new();
        for (host, ticket, vmid) in &live {
            self.ledger.request_kill(*ticket, *vmid, reason);
            Self::put(*ticket, out);
            self.kills.requested.insert((*host, *ticket, *vmid));
            self.kills.by_clone.entry((*ticket, *vmid)).or_default().insert(waiter);
            orders.entry((*host, *ticket)).or_default().push(*vmid);
        }
        let left = live.into_iter().map(|(_, ticket, vmid)| (ticket, vmid)).collect();
        self.kills.pending.insert(waiter, Pending { all, left });
        self.wait(waiter, Place::Kill, family, None);
        for ((host, ticket), vmids) in orders {
            // A host that is away gets the order when it is back.
            if self.hosts.get(host).is_some_and(|host| host.link == Link::Up) {
                let epoch = self.ledger.get(ticket).map_or(0, |ticket| ticket.epoch);
                out.push(Effect::Kill { host, family, ticket, epoch, vmids, reason: reason.to_owned() });
            }
        }
    }

    /// No more clones are made of a ticket whose clones are all to end.
    fn drop_rest(&mut self, targets: &Targets, out: &mut Vec<Effect>) {
        if let Targets::Ticket(id) = targets {
            self.drop_parts(*id, None, out);
        }
    }

    /// Clones that were lost with their host are to end if they come back with it. Nobody waits for
    /// that.
    fn kill_lost(&mut self, family: Uuid, targets: &Targets, reason: &str, out: &mut Vec<Effect>) {
        let meant: Vec<(Uuid, u32)> = match targets {
            Targets::Ticket(id) => {
                let clones = self.ledger.get(*id).into_iter().flat_map(|ticket| ticket.clones.keys());
                clones.map(|vmid| (*id, *vmid)).collect()
            }
            Targets::Vmids(vmids) => {
                let of = |vmid: &u32| Some((self.ledger.of_clone(family, *vmid)?.id, *vmid));
                vmids.iter().filter_map(of).collect()
            }
        };
        for (id, vmid) in meant {
            if self.ledger.get(id).is_some_and(|ticket| ticket.is_lost(vmid)) {
                self.ledger.request_kill(id, vmid, reason);
                Self::put(id, out);
            }
        }
    }

    /// All clones that are meant, and which of them live.
    fn targets(&self, family: Uuid, targets: &Targets) -> Result<(Vec<u32>, BTreeSet<Target>), CoreError> {
        let live_of = |ticket: &Ticket| {
            let live = ticket.live().filter(|_| ticket.state == State::Used);
            live.map(|(vmid, host)| (host, ticket.id, vmid)).collect::<BTreeSet<_>>()
        };
        match targets {
            Targets::Ticket(id) => {
                let ticket = self.ticket(Named { id: *id, family: Some(family) })?;
                Ok((ticket.clones.keys().copied().collect(), live_of(ticket)))
            }
            Targets::Vmids(vmids) => {
                let mut live = BTreeSet::new();
                let all: BTreeSet<u32> = vmids.iter().copied().collect();
                for vmid in &all {
                    let ticket = self.ledger.of_clone(family, *vmid).ok_or(CoreError::NoClone(*vmid))?;
                    if let Some(host) = ticket.clones.get(vmid).filter(|_| self.ledger.is_live(family, *vmid))
                    {
                        live.insert((*host, ticket.id, *vmid));
                    }
                }
                Ok((all.into_iter().collect(), live))
            }
        }
    }

    /// A clone has ended, or was never made: answers those who wait for that.
    pub(super) fn killed(&mut self, ticket: Uuid, vmid: u32, out: &mut Vec<Effect>) {
        for (waiter, all) in self.kills.ended(ticket, vmid) {
            self.answer(waiter, Ok(Reply::Killed(all)), out);
        }
    }
}
