//! Deadlines, in order.

use super::{
    api::{UnixMs, Waiter},
    ticket::HostId,
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What becomes due. Of those that are due at once, what frees room comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A granted ticket was not used.
    Expire(Uuid),
    /// A host was silent for its lease.
    Lease(HostId),
    /// A host was silent for so long that it is given up.
    Lost(HostId),
    /// Room was kept for a request for long enough.
    Kept(u64),
    /// The waiter has waited long enough.
    Wait(Waiter),
    /// A ticket that is over need not be remembered any more.
    Forget(Uuid),
    /// Likewise a host that was given up.
    ForgetHost(HostId),
    /// What a clone left was read long enough ago.
    DropData(Uuid, u32),
    /// Whether anything lives of a family is to be looked at, for its counter of vmids.
    Vmids(Uuid),
}

/// All that is due some time.
#[derive(Debug, Default)]
pub struct Timers(BTreeSet<(UnixMs, Timer)>);

impl Timers {
    /// It is due then.
    pub fn set(&mut self, at: UnixMs, timer: Timer) {
        self.0.insert((at, timer));
    }

    /// It is not due any more.
    pub fn unset(&mut self, at: UnixMs, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    /// When the first one is due.
    pub fn next(&self) -> Option<UnixMs> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes the first one that is due now.
    pub fn pop(&mut self, now: UnixMs) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }
}
