//! Hosts register: the ledger follows what runs there.
//!
//! | a clone that runs | its ticket is | then |
//! | --- | --- | --- |
//! | is known and lives | used | all is well |
//! | is not known | not remembered | a used ticket is made of it |
//! | is not known | used | it is one of its clones from now on |
//! | has ended, or was never made | remembered | it holds room as long as it runs, and is to end |
//!
//! Of a ticket whose use is under way nothing is concluded from a clone that was not made yet. A clone that is known to live and is not
//! among those that run is lost.

use super::{
    Core,
    api::{Effect, HostInfo, Reply, Running, Waiter},
    hosts::Link,
    ticket::{HostId, State, Ticket, VmEnd},
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What a clone that runs is.
enum Finding {
    /// What it should be, or nothing that can be judged yet.
    Fine,
    /// A clone of a ticket that is not known, or not complete.
    New,
    /// One that should not run.
    Ghost,
}

/// Clones that are to end, by family, and why.
type Kills = BTreeMap<(Uuid, String), Vec<u32>>;

impl Core {
    /// A host has connected.
    pub(super) fn host_up(
        &mut self,
        waiter: Waiter,
        info: HostInfo,
        running: Vec<Running>,
        making: &[Uuid],
        out: &mut Vec<Effect>,
    ) {
        let host = info.id;
        let before = self.hosts.up(host).map(|host| host.epoch);
        let epoch = self.next_epoch();
        self.hosts.come_up(info, epoch, self.now, &self.options);
        self.renew_lease(host);
        self.fresh.hosts.insert(host);
        // A host that was missing may make possible what is waited for, or show that it is not.
        self.fresh.all |= !self.queue.starved().is_empty();

        let listed: BTreeSet<(Uuid, u32)> = running.iter().map(|clone| (clone.ticket, clone.vmid)).collect();
        self.lose_unlisted(host, &listed, making, out);
        let mut kills = Kills::new();
        let mut adopted = BTreeSet::new();
        for clone in running {
            match self.judge(host, &clone, making) {
                Finding::Fine => {}
                Finding::New => {
                    self.adopt(host, &clone);
                    adopted.insert(clone.ticket);
                }
                Finding::Ghost => {
                    let size = (clone.vcpus, clone.memory_mib);
                    self.hosts.haunt(host, (clone.ticket, clone.vmid), size);
                    let why = "its ticket was fenced, or is over".to_owned();
                    kills.entry((clone.family, why)).or_default().push(clone.vmid);
                }
            }
            if let Some(why) = self.kills.why(clone.family, clone.vmid) {
                kills.entry((clone.family, why.to_owned())).or_default().push(clone.vmid);
            }
        }
        for id in adopted {
            Self::put(id, out);
        }
        self.answer(waiter, Ok(Reply::Registered(epoch)), out);
        if let Some(epoch) = before {
            out.push(Effect::Cut { host, epoch });
        }
        for ((family, reason), vmids) in kills {
            out.push(Effect::Kill { host, family, vmids, reason });
        }
    }

    /// Clones that should run there and do not are gone.
    fn lose_unlisted(
        &mut self,
        host: HostId,
        listed: &BTreeSet<(Uuid, u32)>,
        making: &[Uuid],
        out: &mut Vec<Effect>,
    ) {
        let tickets = self.hosts.get(host).map(|host| host.tickets.clone()).unwrap_or_default();
        let mut lost = BTreeSet::new();
        for ticket in tickets.iter().filter(|id| !making.contains(id)).filter_map(|id| self.ledger.get(*id)) {
            let here = ticket.live().filter(|(_, place)| *place == host).map(|(vmid, _)| (ticket.id, vmid));
            lost.extend(here.filter(|clone| !listed.contains(clone)));
        }
        lost.retain(|(id, vmid)| self.note_end(*id, *vmid, host, VmEnd::Lost));
        self.settle(&lost, State::Released, out);
    }

    fn judge(&self, host: HostId, clone: &Running, making: &[Uuid]) -> Finding {
        let making = making.contains(&clone.ticket);
        let Some(ticket) = self.ledger.get(clone.ticket) else {
            // Its use will be refused.
            return if making { Finding::Fine } else { self.new_or_ghost(clone) };
        };
        match ticket.clones.get(&clone.vmid) {
            Some(place) if *place == host && ticket.state == State::Used && ticket.is_live(clone.vmid) => {
                Finding::Fine
            }
            Some(_) => Finding::Ghost,
            // Its use is under way, or will be refused: until then it does not run.
            None if making => Finding::Fine,
            None if ticket.state == State::Used && ticket.family == clone.family => self.new_or_ghost(clone),
            None => Finding::Ghost,
        }
    }

    fn new_or_ghost(&self, clone: &Running) -> Finding {
        let is_other = self.ledger.is_live(clone.family, clone.vmid);
        if is_other { Finding::Ghost } else { Finding::New }
    }

    /// A clone becomes one of its ticket, which is made if it is not known. It holds room, whether there is any or not.
    fn adopt(&mut self, host: HostId, clone: &Running) {
        if self.ledger.get(clone.ticket).is_none() {
            let epoch = self.next_epoch();
            let parent_ended =
                clone.parent_vmid.is_some_and(|vmid| self.ledger.has_ended(clone.family, vmid));
            self.ledger.insert(Ticket {
                id: clone.ticket,
                family: clone.family,
                state: State::Used,
                epoch,
                request_id: None,
                vcpus: clone.vcpus,
                memory_mib: clone.memory_mib,
                min_cpus_per_vm: clone.vcpus,
                places: BTreeMap::new(),
                loose: true,
                parent_vmid: clone.parent_vmid,
                parent_ended,
                clones: BTreeMap::new(),
                results: BTreeMap::new(),
                granted_unix_ms: self.now,
                expires_unix_ms: self.now,
                over_unix_ms: None,
            });
        }
        let Some(size) = self.ledger.get(clone.ticket).map(|t| (t.vcpus, t.memory_mib)) else { return };
        self.ledger.change(clone.ticket, |ticket| {
            ticket.clones.insert(clone.vmid, host);
            let vms = ticket.places.entry(host).or_insert(0);
            *vms = vms.saturating_add(1);
        });
        self.hosts.hold(host, clone.ticket, 1, size.0, size.1);
    }

    /// A host lives.
    pub(super) fn host_beat(&mut self, host: HostId, epoch: u64) {
        if self.hosts.up(host).is_some_and(|host| host.epoch == epoch) {
            self.hosts.see(host, self.now);
            self.renew_lease(host);
        }
    }

    /// A host's connection is over.
    pub(super) fn host_down(&mut self, host: HostId, epoch: u64) {
        if self.hosts.up(host).is_some_and(|host| host.epoch == epoch) {
            self.hosts.set_link(host, Link::Down);
            self.renew_lease(host);
            self.fresh.all |= !self.queue.starved().is_empty();
        }
    }
}
