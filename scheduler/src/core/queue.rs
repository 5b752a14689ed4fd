//! Waiting requests: first come, first served within a family, and families take turns.
//!
//! Only the head of each family's line can be granted. [`Queue`] keeps the lines, the turns, and
//! which heads have not been tried yet with the current free capacity. [`super::serve`] decides who
//! gets what.

use super::{
    api::{Demand, PASSED_OVER_MAX, UnixMs, Waiter},
    place::Want,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};
use uuid::Uuid;

/// A request that waits.
#[derive(Debug)]
pub struct Request {
    /// What the family asks for.
    pub demand: Demand,
    /// What is to be placed for it.
    pub want: Want,
    /// Those who wait for it: more than one if the request was repeated.
    pub waiters: BTreeSet<Waiter>,
    /// How often later ones were granted what it could have used, since something was kept for it.
    passed: u32,
}

/// The requests of a family.
#[derive(Debug, Default)]
struct Line {
    turn: u64,
    /// The numbers of its requests, in the order of their arrival.
    requests: BTreeSet<u64>,
}

/// All requests that wait, by their order of arrival.
#[derive(Debug, Default)]
pub struct Queue {
    requests: HashMap<u64, Request>,
    lines: HashMap<Uuid, Line>,
    /// Whose turn it is, one after another.
    turns: BTreeMap<u64, Uuid>,
    /// The first request of each line.
    heads: BTreeSet<u64>,
    /// Heads for which it has not been looked whether they fit, by their families' turns.
    untried: BTreeSet<(u64, u64)>,
    /// Heads that were passed over too often, and until when what becomes free is kept for them.
    starved: BTreeMap<u64, UnixMs>,
    ids: HashMap<Uuid, HashMap<String, u64>>,
    last_request: u64,
    last_turn: u64,
}

impl Queue {
    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// A request.
    pub fn get(&self, request: u64) -> Option<&Request> {
        self.requests.get(&request)
    }

    /// A request by the number that its caller gave it.
    pub fn of_id(&self, family: Uuid, id: &str) -> Option<u64> {
        self.ids.get(&family)?.get(id).copied()
    }

    /// One more request; nobody waits for it yet.
    pub fn push(&mut self, demand: Demand, want: Want) -> u64 {
        self.last_request += 1;
        let request = self.last_request;
        if let Some(id) = &demand.request_id {
            self.ids.entry(demand.family).or_default().insert(id.clone(), request);
        }
        let family = demand.family;
        self.requests.insert(request, Request { demand, want, waiters: BTreeSet::new(), passed: 0 });
        if !self.lines.contains_key(&family) {
            self.last_turn += 1;
            self.lines.insert(family, Line { turn: self.last_turn, ..Line::default() });
            self.turns.insert(self.last_turn, family);
        }
        if let Some(line) = self.lines.get_mut(&family) {
            line.requests.insert(request);
        }
        self.set_head(family);
        request
    }

    /// One more waits for a request.
    pub fn join(&mut self, request: u64, waiter: Waiter) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.waiters.insert(waiter);
        }
    }

    /// One does not wait any more. Returns whether nobody is left.
    pub fn leave(&mut self, request: u64, waiter: Waiter) -> bool {
        let Some(waited) = self.requests.get_mut(&request) else { return false };
        waited.waiters.remove(&waiter);
        waited.waiters.is_empty()
    }

    /// Takes a request out; the next one of its family becomes the head of its line, which keeps
    /// its turn.
    pub fn remove(&mut self, request: u64) -> Option<Request> {
        let removed = self.requests.remove(&request)?;
        let family = removed.demand.family;
        self.heads.remove(&request);
        self.starved.remove(&request);
        if let Some(id) = &removed.demand.request_id
            && let Some(ids) = self.ids.get_mut(&family)
        {
            ids.remove(id);
            if ids.is_empty() {
                self.ids.remove(&family);
            }
        }
        if let Some(line) = self.lines.get_mut(&family) {
            self.untried.remove(&(line.turn, request));
            line.requests.remove(&request);
            if line.requests.is_empty() {
                self.turns.remove(&line.turn);
                self.lines.remove(&family);
            }
        }
        self.set_head(family);
        Some(removed)
    }

    /// A family was granted something: its turn comes after all others'.
    pub fn requeue(&mut self, family: Uuid) {
        let Some(line) = self.lines.get_mut(&family) else { return };
        self.last_turn += 1;
        self.turns.remove(&line.turn);
        if let Some(head) = line.requests.first()
            && self.untried.remove(&(line.turn, *head))
        {
            self.untried.insert((self.last_turn, *head));
        }
        line.turn = self.last_turn;
        self.turns.insert(line.turn, family);
    }

    fn set_head(&mut self, family: Uuid) {
        let Some(line) = self.lines.get(&family) else { return };
        if let Some(head) = line.requests.first()
            && self.heads.insert(*head)
        {
            self.untried.insert((line.turn, *head));
        }
    }

    /// The first head whose turn comes after this one, with its turn.
    pub fn head_after(&self, turn: u64) -> Option<(u64, u64)> {
        let (turn, family) = self.turns.range((Bound::Excluded(turn), Bound::Unbounded)).next()?;
        Some((*turn, *self.lines.get(family)?.requests.first()?))
    }

    /// The first head that was not tried and whose turn comes after this one, with its turn.
    pub fn untried_after(&self, turn: u64) -> Option<(u64, u64)> {
        self.untried.range((Bound::Excluded((turn, u64::MAX)), Bound::Unbounded)).next().copied()
    }

    /// Whether it has not been looked yet if it fits.
    pub fn is_untried(&self, turn: u64, request: u64) -> bool {
        self.untried.contains(&(turn, request))
    }

    /// It does not fit in what is free now.
    pub fn tried(&mut self, turn: u64, request: u64) {
        self.untried.remove(&(turn, request));
    }

    /// Heads that were passed over too often, by arrival, and until when something is kept for
    /// them.
    pub fn starved(&self) -> &BTreeMap<u64, UnixMs> {
        &self.starved
    }

    /// Something was kept for a request for long enough: it may be passed over again.
    pub fn calm(&mut self, request: u64) {
        self.starved.remove(&request);
        if let Some(request) = self.requests.get_mut(&request) {
            request.passed = 0;
        }
    }

    /// Which turn a request's family has.
    pub fn turn(&self, request: u64) -> Option<u64> {
        let family = self.requests.get(&request)?.demand.family;
        self.lines.get(&family).map(|line| line.turn)
    }

    /// A request is granted: those heads that came before it and `could_use` its hosts were passed
    /// over. Returns those for which something is kept from now on, until that time.
    pub fn pass_over(
        &mut self,
        granted: u64,
        keep_until: UnixMs,
        could_use: impl Fn(&Want) -> bool,
    ) -> Vec<u64> {
        let mut starved = Vec::new();
        let Some(family) = self.requests.get(&granted).map(|request| request.demand.family) else {
            return starved;
        };
        for head in self.heads.range(..granted) {
            let Some(request) = self.requests.get_mut(head) else { continue };
            if request.demand.family != family && could_use(&request.want) {
                request.passed = request.passed.saturating_add(1);
                if request.passed >= PASSED_OVER_MAX && !self.starved.contains_key(head) {
                    self.starved.insert(*head, keep_until);
                    starved.push(*head);
                }
            }
        }
        starved
    }
}
