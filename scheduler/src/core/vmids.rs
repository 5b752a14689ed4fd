//! Vmids that are unique in a family over all hosts: hosts reserve blocks of them.
//!
//! A family has one counter, which is in the ledger before a host hears of a block. The vmids that
//! hosts name when they use tickets, and those of clones that run, raise it: a vmid that a clone
//! has had is in no later block.
//!
//! A counter may be forgotten only when its family can have no VM any more, because a family that
//! lives and whose counter began again would get vmids, and with them addresses, twice. A master is
//! known to no ticket, so hosts say which ones they have. A host that is away says nothing: what it
//! said last counts as long as it is remembered. Then a day passes, in case a host was away for
//! longer than it is remembered, or the scheduler has just started and not all hosts have
//! registered. A host that comes back even later names, with `at_least`, the vmids that its family
//! has had.

use super::{
    Core,
    api::{CoreError, Effect, UnixMs, VMID_FAMILIES_MAX, VMID_MAX, VmidDemand},
    host::Host,
    ticket::HostId,
    timers::Timer,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// How long no host says that a family lives before its counter is forgotten, milliseconds.
pub const FORGET_AFTER_MS: UnixMs = 24 * 3600 * 1000;
/// How many blocks of a family are given again when they are asked for again.
const GIVEN_MAX: usize = 32;

/// The counter of a family, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmidRecord {
    /// The family.
    pub family: Uuid,
    /// The host that was the first to ask.
    pub host: HostId,
    /// No vmid from here on has been given.
    pub next: u32,
    /// The last blocks.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub given: VecDeque<Block>,
}

/// Vmids that were given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// To which host.
    pub host: HostId,
    /// For which request.
    pub request: String,
    /// The first of them.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Vmids {
    counters: BTreeMap<Uuid, Counter>,
    /// How many are of which host.
    shares: BTreeMap<HostId, usize>,
}

#[derive(Debug)]
struct Counter {
    record: VmidRecord,
    /// When it is looked at next.
    look_unix_ms: UnixMs,
    /// Nothing lived of the family when it was looked at last, and nobody has asked since.
    is_idle: bool,
}

impl Vmids {
    /// The counter of a family; None: it has none.
    pub fn record(&self, family: Uuid) -> Option<&VmidRecord> {
        self.counters.get(&family).map(|counter| &counter.record)
    }

    fn forget(&mut self, family: Uuid) {
        let Some(counter) = self.counters.remove(&family) else { return };
        let host = counter.record.host;
        if let Some(share) = self.shares.get_mut(&host) {
            *share = share.saturating_sub(1);
            if *share == 0 {
                self.shares.remove(&host);
            }
        }
    }

    /// All counters.
    #[cfg(test)]
    pub fn records(&self) -> impl Iterator<Item = &VmidRecord> {
        self.counters.values().map(|counter| &counter.record)
    }
}

impl Core {
    /// A host reserves vmids: the first of them, and how many.
    pub(super) fn reserve_vmids(
        &mut self,
        demand: VmidDemand,
        out: &mut Vec<Effect>,
    ) -> Result<(u32, u32), CoreError> {
        let VmidDemand { family, host, host_epoch, count, request, at_least } = demand;
        let up = self.hosts.up(host).ok_or(CoreError::UnknownHost(host))?;
        if let Some(given) = host_epoch.filter(|given| *given != up.epoch) {
            return Err(CoreError::StaleHost { host, given });
        }
        let known = self.vmids.record(family);
        let is_same = |block: &&Block| block.host == host && request.as_ref() == Some(&block.request);
        if let Some(block) = known.and_then(|record| record.given.iter().find(is_same)) {
            return Ok((block.first, block.count));
        }
        let next = match known {
            Some(record) => record.next,
            None => {
                self.check_counters(host)?;
                self.ledger.last_vmid(family).saturating_add(1)
            }
        };
        let first = next.max(at_least).max(1);
        let left = VMID_MAX.saturating_add(1).saturating_sub(first);
        if count > left {
            return Err(CoreError::NoVmids { family, count, left });
        }
        let after = first.saturating_add(count);
        let mut record = known.cloned().unwrap_or(VmidRecord { family, host, next, given: VecDeque::new() });
        record.next = after;
        if let Some(request) = request {
            record.given.push_back(Block { host, request, first, count });
            record.given.drain(..record.given.len().saturating_sub(GIVEN_MAX));
        }
        self.set_vmids(record);
        out.push(Effect::PutVmids(family));
        Ok((first, count))
    }

    /// No host has more counters than there is room left for: one host alone cannot keep others
    /// from having any.
    fn check_counters(&self, host: HostId) -> Result<(), CoreError> {
        let own = self.vmids.shares.get(&host).copied().unwrap_or(0);
        if own >= VMID_FAMILIES_MAX.saturating_sub(self.vmids.counters.len()) {
            return Err(CoreError::TooManyFamilies);
        }
        Ok(())
    }

    /// A counter is this from now on, and has all its time.
    fn set_vmids(&mut self, record: VmidRecord) {
        let (family, host) = (record.family, record.host);
        let look_unix_ms = self.now.saturating_add(FORGET_AFTER_MS);
        let counter = Counter { record, look_unix_ms, is_idle: false };
        match self.vmids.counters.insert(family, counter) {
            Some(before) => self.timers.unset(before.look_unix_ms, Timer::Vmids(family)),
            None => {
                let share = self.vmids.shares.entry(host).or_insert(0);
                *share = share.saturating_add(1);
            }
        }
        self.timers.set(look_unix_ms, Timer::Vmids(family));
    }

    /// Clones have vmids that nobody has reserved, or reserved with another scheduler's ledger:
    /// they are not given any more.
    pub(super) fn raise_vmids(&mut self, family: Uuid, vmids: &[u32], out: &mut Vec<Effect>) {
        let Some(counter) = self.vmids.counters.get_mut(&family) else { return };
        let last = vmids.iter().copied().max().unwrap_or(0).min(VMID_MAX);
        if last >= counter.record.next {
            counter.record.next = last.saturating_add(1);
            out.push(Effect::PutVmids(family));
        }
    }

    /// A counter is forgotten if nothing has lived of its family for a day.
    pub(super) fn look_at_vmids(&mut self, family: Uuid, out: &mut Vec<Effect>) {
        let lives = self.family_lives(family);
        let Some(counter) = self.vmids.counters.get_mut(&family) else { return };
        if counter.is_idle && !lives {
            self.vmids.forget(family);
            out.push(Effect::PutVmids(family));
            return;
        }
        counter.is_idle = !lives;
        counter.look_unix_ms = self.now.saturating_add(FORGET_AFTER_MS);
        self.timers.set(counter.look_unix_ms, Timer::Vmids(family));
    }

    /// Whether a host says that a VM of a family lives, or one may still be made.
    fn family_lives(&self, family: Uuid) -> bool {
        let has =
            |host: &Host| host.has_master(family) || host.ghosts().any(|(ghost, _)| ghost.family == family);
        self.ledger.open(family) > 0 || self.hosts.all().any(|(_, host)| has(host))
    }

    /// Counters of before the scheduler's start. They have all their time again: hosts have not
    /// said yet what lives.
    pub fn recall_vmids(&mut self, records: Vec<VmidRecord>) {
        for record in records {
            self.set_vmids(record);
        }
    }

    /// What is to be stored of a family's counter; None: it has none.
    #[must_use]
    pub fn vmid_record(&self, family: Uuid) -> Option<&VmidRecord> {
        self.vmids.record(family)
    }
}
