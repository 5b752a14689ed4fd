//! Leases: a host that is silent for longer than its lease is fenced, and its tickets with it.

use super::{
    Core,
    api::Effect,
    hosts::Link,
    room::Load,
    ticket::{HostId, State, VmEnd},
    timers::Timer,
};
use std::collections::BTreeSet;

impl Core {
    /// A host has its lease's time from now on.
    pub(super) fn renew_lease(&mut self, host: HostId) {
        let lease_ms = self.options.lease_ms;
        let deadline = (lease_ms > 0).then(|| self.now.saturating_add(lease_ms));
        if let Some(before) = self.hosts.set_deadline(host, deadline) {
            self.timers.unset(before, Timer::Lease(host));
            self.timers.unset(before, Timer::ForgetHost(host));
        }
        if let Some(at) = deadline {
            self.timers.set(at, Timer::Lease(host));
        }
    }

    /// A host was silent for its lease's time: its tickets are fenced, its clones are lost. If it
    /// comes back, with clones that live after all, they are ended.
    pub(super) fn fence(&mut self, host: HostId, out: &mut Vec<Effect>) {
        let Some(gone) = self.hosts.get(host) else { return };
        let epoch = gone.epoch;
        let tickets = gone.tickets.clone();
        self.hosts.set_link(host, Link::Fenced);
        self.fresh.all |= !self.queue.starved().is_empty();

        let mut lost = BTreeSet::new();
        for id in tickets {
            let Some(ticket) = self.ledger.get(id) else { continue };
            let here: Vec<u32> =
                ticket.live().filter(|(_, place)| *place == host).map(|(vmid, _)| vmid).collect();
            if ticket.state == State::Granted {
                self.finish(id, State::Fenced, out);
                continue;
            }
            let load = Load::of(ticket);
            lost.extend(here.iter().map(|vmid| (id, *vmid)));
            for vmid in here {
                self.note_end(id, vmid, host, VmEnd::Lost);
            }
            // What it has on other hosts goes on, under a new epoch.
            if self.ledger.get(id).is_some_and(|ticket| ticket.live().next().is_some()) {
                self.free_on(host, &load, 0, false);
                let epoch = self.next_epoch();
                self.ledger.change(id, |ticket| {
                    ticket.epoch = epoch;
                    ticket.places.remove(&host);
                });
                Self::put(id, out);
            }
        }
        self.settle(&lost, State::Fenced, out);

        let forget_at = self.now.saturating_add(self.options.remember_ms);
        self.hosts.set_deadline(host, Some(forget_at));
        self.timers.set(forget_at, Timer::ForgetHost(host));
        if epoch > 0 {
            out.push(Effect::Cut { host, epoch });
        }
    }
}
