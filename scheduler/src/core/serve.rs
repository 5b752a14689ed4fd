//! Serves the queue: decides who gets capacity that has become free.
//!
//! The heads of the families' lines are tried in turn, and one that fits may overtake one that does
//! not. A head that was overtaken too often is tried before all others, and the capacity that it
//! could use is reserved for it for a limited time. So it gets its VMs as soon as their current
//! holders end. Nothing is reserved for a head that waits for capacity that only its own family can
//! free. No head blocks the others forever: when its time is over, it may be overtaken again, as
//! often as before.
//!
//! A head is tried only if it was not tried with the current free capacity: new heads, and those
//! that could use what has become free.

use super::{
    Core,
    api::{CoreError, Demand, Effect, FAMILY_TICKETS_MAX, KEPT_MAX_MS, Reply},
    place::{Kept, Places, could, place, usable},
    queue::Request,
    room::Load,
    ticket::{HostId, State, Ticket},
    timers::Timer,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What has become free.
#[derive(Debug, Default)]
pub struct Fresh {
    /// Nobody knows what: all heads are to be tried.
    pub all: bool,
    /// Something on these hosts.
    pub hosts: BTreeSet<HostId>,
}

impl Fresh {
    fn is_empty(&self) -> bool {
        !self.all && self.hosts.is_empty()
    }
}

/// The outcome of a try.
enum Tried {
    Granted,
    Refused,
    Waits,
}

impl Core {
    /// Grants what can be granted now.
    pub(super) fn serve(&mut self, out: &mut Vec<Effect>) {
        let mut fresh = std::mem::take(&mut self.fresh);
        if self.queue.len() == 0 || (fresh.is_empty() && self.queue.untried_after(0).is_none()) {
            return;
        }
        let mut kept = self.serve_starved(&mut fresh, out);
        let mut after = 0;
        while !kept.all {
            let next =
                if fresh.is_empty() { self.queue.untried_after(after) } else { self.queue.head_after(after) };
            let Some((turn, request)) = next else { break };
            after = turn;
            if self.queue.starved().contains_key(&request) || !self.worth_trying(turn, request, &fresh) {
                continue;
            }
            match self.try_request(request, &kept, out) {
                Tried::Waits => self.queue.tried(turn, request),
                // The next of the same family has the same turn.
                Tried::Refused => after = turn.saturating_sub(1),
                Tried::Granted => {
                    if !self.queue.starved().is_empty() {
                        kept = self.serve_starved(&mut fresh, out);
                    }
                    fresh.hosts.retain(|id| self.has_room(*id));
                }
            }
        }
    }

    /// Tries those that were passed over too often, by arrival. Returns what is kept for them.
    fn serve_starved(&mut self, fresh: &mut Fresh, out: &mut Vec<Effect>) -> Kept {
        let mut kept = Kept::default();
        let mut after = 0;
        while let Some(request) = self.queue.starved().range(after..).next().map(|(request, _)| *request) {
            after = request.saturating_add(1);
            if let Tried::Waits = self.try_request(request, &kept, out) {
                self.keep_for(request, &mut kept);
            }
            // What was kept for the others is not any more.
            fresh.all |= std::mem::take(&mut self.fresh.all);
            if kept.all {
                break;
            }
        }
        kept
    }

    fn keep_for(&mut self, request: u64, kept: &mut Kept) {
        if let Some(turn) = self.queue.turn(request) {
            self.queue.tried(turn, request);
        }
        let Some(request) = self.queue.get(request) else { return };
        // What can never be used, as things are, is not kept; and what its own family holds nobody
        // else can wait for.
        let own = self.hosts.held_by(request.demand.family);
        if could(&self.hosts, &request.want, &[], own) {
            if request.want.is_any() {
                kept.all = true;
            } else {
                kept.hosts.extend(usable(&self.hosts, &request.want).map(|(id, _)| id));
            }
        }
    }

    fn has_room(&self, host: HostId) -> bool {
        self.hosts.usable(host).is_some_and(|host| host.room().fit(1, 1) > 0)
    }

    fn worth_trying(&self, turn: u64, request: u64, fresh: &Fresh) -> bool {
        if fresh.all || self.queue.is_untried(turn, request) {
            return true;
        }
        let Some(Request { want, .. }) = self.queue.get(request) else { return false };
        let usable = |id: &HostId| {
            let fits = |host: &super::host::Host| host.room().fit(want.vcpus, want.memory_mib) > 0;
            self.hosts.usable(*id).is_some_and(fits) && want.may(&self.hosts, *id)
        };
        fresh.hosts.iter().any(usable)
    }

    fn try_request(&mut self, id: u64, kept: &Kept, out: &mut Vec<Effect>) -> Tried {
        let Some(request) = self.queue.get(id) else { return Tried::Refused };
        if let Err(error) = self.check_head(&request.demand) {
            if let Some(request) = self.take_request(id) {
                for waiter in request.waiters {
                    self.answer(waiter, Err(error.clone()), out);
                }
            }
            return Tried::Refused;
        }
        let Some(places) = place(&self.hosts, &request.want, kept) else { return Tried::Waits };
        let hosts = &self.hosts;
        let could_use = |want: &super::place::Want| places.keys().any(|host| want.may(hosts, *host));
        let keep_until = self.now.saturating_add(KEPT_MAX_MS);
        for starved in self.queue.pass_over(id, keep_until, could_use) {
            self.timers.set(keep_until, Timer::Kept(starved));
        }
        if let Some(request) = self.take_request(id) {
            self.queue.requeue(request.demand.family);
            self.grant(request, places, out);
        }
        Tried::Granted
    }

    /// What may have changed while a request waited.
    fn check_head(&self, demand: &Demand) -> Result<(), CoreError> {
        if self.ledger.open(demand.family) >= FAMILY_TICKETS_MAX {
            return Err(CoreError::TooManyTickets);
        }
        let Some(by) = &demand.use_by else { return Ok(()) };
        if let (Some(given), Some(host)) = (by.host_epoch, demand.hosts.first()) {
            let is_current = self.hosts.up(*host).is_some_and(|host| host.epoch == given);
            if !is_current {
                return Err(CoreError::StaleHost { host: *host, given });
            }
        }
        self.check_new(demand.family, &by.vmids)
    }

    /// Takes a request out of the queue. If something was kept for it, it is for all now.
    pub(super) fn take_request(&mut self, request: u64) -> Option<Request> {
        self.keep_no_more(request);
        self.queue.remove(request)
    }

    /// What was kept for a request, if anything was, is for all.
    pub(super) fn keep_no_more(&mut self, request: u64) {
        if let Some(until) = self.queue.starved().get(&request).copied() {
            self.timers.unset(until, Timer::Kept(request));
            self.queue.calm(request);
            self.fresh.all = true;
        }
    }

    fn grant(&mut self, request: Request, places: Places, out: &mut Vec<Effect>) {
        let Request { demand, want, waiters, .. } = request;
        let epoch = self.next_epoch();
        let ttl_ms = demand.ttl_ms.unwrap_or(self.options.ttl_ms);
        let mut ticket = Ticket {
            id: self.new_id(demand.family, epoch),
            family: demand.family,
            state: State::Granted,
            epoch,
            request_id: demand.request_id,
            vcpus: want.vcpus,
            memory_mib: want.memory_mib,
            min_cpus_per_vm: demand.min_cpus_per_vm,
            places,
            immediate: false,
            parent_vmid: None,
            parent_host: None,
            parent_ended: false,
            parts: BTreeMap::new(),
            clones: BTreeMap::new(),
            results: BTreeMap::new(),
            kills_requested: BTreeMap::new(),
            met: None,
            granted_unix_ms: self.now,
            expires_unix_ms: self.now.saturating_add(ttl_ms),
            over_unix_ms: None,
        };
        if let (Some(by), Some(host)) = (demand.use_by, ticket.places.keys().next().copied()) {
            (ticket.state, ticket.immediate) = (State::Used, true);
            (ticket.parent_vmid, ticket.parent_host) = (Some(by.parent_vmid), Some(host));
            ticket.parent_ended = self.ledger.has_ended(ticket.family, by.parent_vmid);
            ticket.clones = by.vmids.into_iter().map(|vmid| (vmid, host)).collect();
        } else {
            self.timers.set(ticket.expires_unix_ms, Timer::Expire(ticket.id));
        }
        for (host, vms) in &ticket.places {
            self.hosts.hold(*host, &Load::of(&ticket), *vms);
        }
        let id = ticket.id;
        self.ledger.insert(ticket.clone());
        let vmids: Vec<u32> = ticket.clones.keys().copied().collect();
        self.raise_vmids(ticket.family, &vmids, out);
        self.put_state(id, out);
        for waiter in waiters {
            self.answer(waiter, Ok(Reply::Ticket(Box::new(ticket.clone()))), out);
        }
    }

    /// A number that no ticket has: made of the family's own, which is random, and of the epoch,
    /// which no other ticket has.
    fn new_id(&self, family: Uuid, epoch: u64) -> Uuid {
        let (high, low) = family.as_u64_pair();
        let mut salt = epoch;
        loop {
            let (high, low) = (mix(high ^ mix(salt)), mix(mix(low).wrapping_add(salt)));
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&high.to_be_bytes());
            bytes[8..].copy_from_slice(&low.to_be_bytes());
            let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
            if self.ledger.get(id).is_none() {
                return id;
            }
            salt = salt.wrapping_add(1 << 63);
            salt = salt.wrapping_add(1);
        }
    }
}

/// Spreads the bits of a number; different numbers stay different (the finalizer of `SplitMix64`).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
