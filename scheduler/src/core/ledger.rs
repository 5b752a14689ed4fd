//! The tickets that are kept, and indexes of them.

use super::{
    api::{Listing, UnixMs},
    left::{Left, kept_bytes},
    state::Counts,
    ticket::{HostId, Kept, Met, Outcome, State, Ticket},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};
use uuid::Uuid;

/// Tickets by their granting.
#[derive(Debug, Default)]
struct Order {
    all: BTreeSet<(UnixMs, Uuid)>,
    /// Those that are not immediate.
    asked_for: BTreeSet<(UnixMs, Uuid)>,
}

impl Order {
    fn insert(&mut self, ticket: &Ticket) {
        let key = (ticket.granted_unix_ms, ticket.id);
        self.all.insert(key);
        if !ticket.immediate {
            self.asked_for.insert(key);
        }
    }

    fn remove(&mut self, ticket: &Ticket) {
        let key = (ticket.granted_unix_ms, ticket.id);
        self.all.remove(&key);
        self.asked_for.remove(&key);
    }

    fn list(&self, of: &Listing) -> Vec<Uuid> {
        let order = if of.asked_for { &self.asked_for } else { &self.all };
        let after = of.after.map_or(Bound::Unbounded, Bound::Excluded);
        let id = |(_, id): &(UnixMs, Uuid)| *id;
        if of.newest_first {
            order.range((Bound::Unbounded, after)).rev().take(of.most).map(id).collect()
        } else {
            order.range((after, Bound::Unbounded)).take(of.most).map(id).collect()
        }
    }
}

/// Tickets by all that they are looked for by.
#[derive(Debug, Default)]
pub struct Ledger {
    tickets: HashMap<Uuid, Ticket>,
    order: Order,
    families: HashMap<Uuid, Family>,
    /// The ticket of each clone, ended ones included; of a vmid that was given twice, the later
    /// one.
    clones: HashMap<(Uuid, u32), Uuid>,
    /// Tickets that are used, by the host of who cloned.
    parent_hosts: HashMap<HostId, BTreeSet<Uuid>>,
    requests: HashMap<Uuid, HashMap<String, Uuid>>,
    left: Left,
    granted: u64,
    used: u64,
    released: u64,
    expired: u64,
    fenced: u64,
}

/// The tickets of a family.
#[derive(Debug, Default)]
struct Family {
    order: Order,
    /// By their end.
    over: BTreeSet<(UnixMs, Uuid)>,
    /// Those that are used, by who cloned.
    parents: BTreeMap<u32, BTreeSet<Uuid>>,
}

impl Ledger {
    /// A ticket.
    pub fn get(&self, id: Uuid) -> Option<&Ticket> {
        self.tickets.get(&id)
    }

    /// Tickets, those of a page.
    pub fn list(&self, of: &Listing) -> Vec<&Ticket> {
        let order = match of.family {
            None => Some(&self.order),
            Some(id) => self.families.get(&id).map(|family| &family.order),
        };
        let listed = order.map(|order| order.list(of)).unwrap_or_default();
        listed.iter().filter_map(|id| self.tickets.get(id)).collect()
    }

    /// All tickets of a family.
    pub fn of_family(&self, family: Uuid) -> impl Iterator<Item = &Ticket> {
        let tickets = self.families.get(&family).into_iter().flat_map(|family| &family.order.all);
        tickets.filter_map(|(_, id)| self.tickets.get(id))
    }

    /// The ticket that a request was granted.
    pub fn of_request(&self, family: Uuid, request: &str) -> Option<&Ticket> {
        self.tickets.get(self.requests.get(&family)?.get(request)?)
    }

    /// The ticket of a clone.
    pub fn of_clone(&self, family: Uuid, vmid: u32) -> Option<&Ticket> {
        self.tickets.get(self.clones.get(&(family, vmid))?)
    }

    /// Whether a VM is a clone that has not ended.
    pub fn is_live(&self, family: Uuid, vmid: u32) -> bool {
        self.of_clone(family, vmid).is_some_and(|ticket| ticket.state == State::Used && ticket.is_live(vmid))
    }

    /// Whether a VM is known to have ended: it was a clone. Of masters nothing is known here.
    pub fn has_ended(&self, family: Uuid, vmid: u32) -> bool {
        self.of_clone(family, vmid).is_some() && !self.is_live(family, vmid)
    }

    /// The tickets with which a VM has cloned and that are used, or may be used again because
    /// clones of theirs come back.
    pub fn cloned_by(&self, family: Uuid, vmid: u32) -> Vec<Uuid> {
        let parents = self.families.get(&family).and_then(|family| family.parents.get(&vmid));
        parents.into_iter().flatten().copied().collect()
    }

    /// Such tickets with which VMs of a host have cloned, as far as that is known.
    pub fn cloned_on(&self, host: HostId) -> Vec<&Ticket> {
        let ids = self.parent_hosts.get(&host).into_iter().flatten();
        ids.filter_map(|id| self.tickets.get(id)).collect()
    }

    /// The greatest vmid of all clones of a family that are known, ended ones included; 0: none is.
    pub fn last_vmid(&self, family: Uuid) -> u32 {
        let last = |ticket: &Ticket| ticket.clones.keys().next_back().copied();
        self.of_family(family).filter_map(last).max().unwrap_or(0)
    }

    /// How many tickets of a family are granted or used.
    pub fn open(&self, family: Uuid) -> usize {
        self.families
            .get(&family)
            .map_or(0, |family| family.order.all.len().saturating_sub(family.over.len()))
    }

    /// The ticket of a family that came to its end first, if more than so many have.
    pub fn surplus(&self, family: Uuid, most: usize) -> Option<Uuid> {
        let over = &self.families.get(&family)?.over;
        if over.len() <= most {
            return None;
        }
        over.first().map(|(_, id)| *id)
    }

    /// How many there are in which state.
    pub fn counts(&self) -> Counts {
        let Self { granted, used, released, expired, fenced, .. } = *self;
        let data_bytes = self.left.bytes();
        Counts { granted, used, released, expired, fenced, data_bytes, ..Counts::default() }
    }

    /// One more ticket.
    pub fn insert(&mut self, ticket: Ticket) {
        self.remove(ticket.id);
        self.count(ticket.state, true);
        self.order.insert(&ticket);
        let family = self.families.entry(ticket.family).or_default();
        family.order.insert(&ticket);
        if ticket.is_over() {
            family.over.insert((ticket.over_unix_ms.unwrap_or_default(), ticket.id));
        }
        let may_have_vms = ticket.may_have_vms();
        if let Some(parent) = ticket.parent_vmid.filter(|_| may_have_vms) {
            family.parents.entry(parent).or_default().insert(ticket.id);
        }
        if let Some(host) = ticket.parent_host.filter(|_| may_have_vms) {
            self.parent_hosts.entry(host).or_default().insert(ticket.id);
        }
        for vmid in ticket.clones.keys() {
            let known = self.clones.get(&(ticket.family, *vmid)).and_then(|id| self.tickets.get(id));
            if known.is_none_or(|known| known.granted_unix_ms <= ticket.granted_unix_ms) {
                self.clones.insert((ticket.family, *vmid), ticket.id);
            }
        }
        self.left.set(ticket.family, ticket.id, kept_bytes(&ticket));
        if let Some(request) = &ticket.request_id {
            self.requests.entry(ticket.family).or_default().insert(request.clone(), ticket.id);
        }
        self.tickets.insert(ticket.id, ticket);
    }

    /// Forgets a ticket.
    pub fn remove(&mut self, id: Uuid) -> Option<Ticket> {
        let ticket = self.tickets.remove(&id)?;
        self.count(ticket.state, false);
        self.order.remove(&ticket);
        self.leave_family(&ticket);
        if let Some(host) = ticket.parent_host
            && let Some(ids) = self.parent_hosts.get_mut(&host)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.parent_hosts.remove(&host);
            }
        }
        self.left.set(ticket.family, id, 0);
        for vmid in ticket.clones.keys() {
            if self.clones.get(&(ticket.family, *vmid)) == Some(&id) {
                self.clones.remove(&(ticket.family, *vmid));
            }
        }
        let requests = self.requests.get_mut(&ticket.family);
        if let (Some(request), Some(requests)) = (&ticket.request_id, requests) {
            if requests.get(request) == Some(&id) {
                requests.remove(request);
            }
            if requests.is_empty() {
                self.requests.remove(&ticket.family);
            }
        }
        Some(ticket)
    }

    fn leave_family(&mut self, ticket: &Ticket) {
        let Some(family) = self.families.get_mut(&ticket.family) else { return };
        family.order.remove(ticket);
        family.over.remove(&(ticket.over_unix_ms.unwrap_or_default(), ticket.id));
        if let Some(parent) = ticket.parent_vmid
            && let Some(children) = family.parents.get_mut(&parent)
        {
            children.remove(&ticket.id);
            if children.is_empty() {
                family.parents.remove(&parent);
            }
        }
        if family.order.all.is_empty() {
            self.families.remove(&ticket.family);
        }
    }

    /// Changes a ticket in any way.
    pub fn change(&mut self, id: Uuid, change: impl FnOnce(&mut Ticket)) {
        if let Some(mut ticket) = self.remove(id) {
            change(&mut ticket);
            self.insert(ticket);
        }
    }

    /// What became of the clones of a ticket: nothing is looked for by that.
    pub fn results(&mut self, id: Uuid) -> Option<&mut BTreeMap<u32, Outcome>> {
        self.tickets.get_mut(&id).map(|ticket| &mut ticket.results)
    }

    /// A clone of a ticket is to end: nothing is looked for by that.
    pub fn request_kill(&mut self, id: Uuid, vmid: u32, reason: &str) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.kills_requested.insert(vmid, reason.to_owned());
        }
    }

    /// A clone of a ticket has ended: nothing is looked for by that.
    pub fn forget_kill(&mut self, id: Uuid, vmid: u32) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.kills_requested.remove(&vmid);
        }
    }

    /// The VMs of a ticket have met: nothing is looked for by that.
    pub fn set_met(&mut self, id: Uuid, met: Met) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.met = Some(met);
        }
    }

    /// What clones left that is kept.
    pub fn left(&self) -> &Left {
        &self.left
    }

    /// A clone leaves its result.
    pub fn leave(&mut self, id: Uuid, vmid: u32, outcome: Outcome) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.results.insert(vmid, outcome);
            self.left.set(ticket.family, id, kept_bytes(ticket));
        }
    }

    /// What becomes of what a clone left.
    pub fn keep(&mut self, id: Uuid, vmid: u32, kept: Kept) {
        let Some(ticket) = self.tickets.get_mut(&id) else { return };
        if let Some(outcome) = ticket.results.get_mut(&vmid) {
            outcome.kept = kept;
            self.left.set(ticket.family, id, kept_bytes(ticket));
        }
    }

    /// Whether nobody waits any more for the VM that cloned with a ticket: nothing is looked for by
    /// that.
    pub fn set_parent_ended(&mut self, id: Uuid, ended: bool) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.parent_ended = ended;
        }
    }

    fn count(&mut self, state: State, more: bool) {
        let counter = match state {
            State::Granted => &mut self.granted,
            State::Used => &mut self.used,
            State::Released => &mut self.released,
            State::Expired => &mut self.expired,
            State::Fenced => &mut self.fenced,
        };
        *counter = if more { counter.saturating_add(1) } else { counter.saturating_sub(1) };
    }
}
