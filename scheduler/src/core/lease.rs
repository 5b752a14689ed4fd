//! Silence: a host that is silent for its lease is suspect, and nothing is ended for that. One that
//! is silent for much longer, or that an operator gives up, is lost: its tickets are fenced. What
//! it has kept when it comes back, `returns` judges.

use super::{
    Core,
    api::Effect,
    host::Link,
    parts::forget_part,
    room::Load,
    ticket::{HostId, State, VmEnd},
    timers::Timer,
};
use std::collections::BTreeSet;

impl Core {
    /// A host has given a sign of life: it has its lease's time from now on.
    pub(super) fn renew_lease(&mut self, host: HostId) {
        let at = self.now.saturating_add(self.options.lease_ms);
        self.set_deadline(host, (self.options.lease_ms > 0).then_some((at, Timer::Lease(host))));
    }

    /// Whether a host was given up, and has not come back.
    pub(super) fn is_lost(&self, host: HostId) -> bool {
        self.hosts.get(host).is_some_and(|host| host.link == Link::Lost)
    }

    /// A host is given up after this time, unless it says something.
    pub(super) fn give_up_after(&mut self, host: HostId, ms: u64) {
        // Without leases nobody knows who is silent.
        let has_end = self.options.lease_ms > 0 && self.options.lost_after_ms > 0;
        let at = self.now.saturating_add(ms);
        self.set_deadline(host, has_end.then_some((at, Timer::Lost(host))));
    }

    /// What becomes due of a host next, instead of anything before.
    fn set_deadline(&mut self, host: HostId, next: Option<(u64, Timer)>) {
        if let Some(before) = self.hosts.set_deadline(host, next.map(|(at, _)| at)) {
            for timer in [Timer::Lease(host), Timer::Lost(host), Timer::ForgetHost(host)] {
                self.timers.unset(before, timer);
            }
        }
        if let Some((at, timer)) = next {
            self.timers.set(at, timer);
        }
    }

    /// A host was silent for its lease. Its connection is cut: if it lives, it registers again, and
    /// nothing has happened.
    pub(super) fn suspect(&mut self, host: HostId, out: &mut Vec<Effect>) {
        let Some(epoch) = self.hosts.up(host).map(|host| host.epoch) else { return };
        self.hosts.set_link(host, Link::Suspect, self.now);
        let left_ms = self.options.lost_after_ms.saturating_sub(self.options.lease_ms);
        self.give_up_after(host, left_ms);
        self.fresh.all |= !self.queue.starved().is_empty();
        out.push(Effect::Cut { host, epoch });
    }

    /// A host is given up: its tickets are fenced, its clones are lost.
    pub(super) fn fence(&mut self, host: HostId, out: &mut Vec<Effect>) {
        let Some(gone) = self.hosts.get(host) else { return };
        let tickets = gone.tickets.clone();
        self.hosts.set_link(host, Link::Lost, self.now);
        self.fresh.all |= !self.queue.starved().is_empty();

        let (mut lost, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for id in tickets {
            let Some(ticket) = self.ledger.get(id) else { continue };
            if ticket.state == State::Granted {
                self.finish(id, State::Fenced, out);
                continue;
            }
            let here: Vec<u32> =
                ticket.live().filter(|(_, place)| *place == host).map(|(vmid, _)| vmid).collect();
            let (load, to_come) = (Load::of(ticket), ticket.to_come().find(|(place, _)| *place == host));
            lost.extend(here.iter().map(|vmid| (id, *vmid)));
            for vmid in here {
                self.note_end(id, vmid, host, VmEnd::Lost);
            }
            self.free_on(host, &load, to_come.map_or(0, |(_, vms)| vms), false);
            self.ledger.change(id, |ticket| {
                ticket.parts.remove(&host);
            });
            changed.insert(id);
            // What it has on other hosts goes on, under a new epoch.
            if self.ledger.get(id).is_some_and(|ticket| !ticket.is_spent()) {
                let epoch = self.next_epoch();
                self.ledger.change(id, |ticket| {
                    ticket.epoch = epoch;
                    forget_part(ticket, host);
                });
            }
        }
        // Masters are no clones. Those of this host are as lost, and are not waited for elsewhere.
        let masters = self
            .ledger
            .cloned_on(host)
            .into_iter()
            .filter(|ticket| ticket.parent_vmid == Some(0) && !ticket.parent_ended);
        for id in masters.map(|ticket| ticket.id).collect::<Vec<_>>() {
            self.ledger.set_parent_ended(id, true);
            changed.insert(id);
        }
        self.settle(&lost, changed, State::Fenced, out);

        self.forget_later(host);
        out.push(Effect::PutHost(host));
    }

    /// A host that is lost need not be remembered for ever.
    pub(super) fn forget_later(&mut self, host: HostId) {
        if self.is_lost(host) {
            let forget_at = self.now.saturating_add(self.options.remember_ms);
            self.set_deadline(host, Some((forget_at, Timer::ForgetHost(host))));
        }
    }

    /// A host that was lost long ago is forgotten, unless it holds something, or an operator wants
    /// something of it.
    pub(super) fn forget_host(&mut self, host: HostId, out: &mut Vec<Effect>) {
        if self.hosts.forget(host) {
            out.push(Effect::ForgetHost(host));
        }
    }
}
