//! Hosts register: the ledger is reconciled with the clones that run there.
//!
//! | a clone that runs | its ticket is | then |
//! | --- | --- | --- |
//! | is known and alive | used | nothing changes |
//! | is unknown | unknown | a used ticket is created for it |
//! | is unknown | used | it becomes one of its clones |
//! | was lost with its host, and not replaced | known | it is a clone of its ticket again |
//! | has ended otherwise, or was never created | known | it counts while it runs, and must end |
//!
//! While a ticket is being used, a clone that does not run yet means nothing. A clone that the
//! ledger has as alive and that does not run is lost. The host is told which clones must end when
//! it registers, and again at each heartbeat until they have ended.

use super::{
    Core,
    api::{Beat, Effect, HostInfo, KILLS_A_BEAT_MAX, Present, Reply, Running, Waiter},
    host::{Host, Link},
    room::Load,
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
    /// A clone that was lost with its host.
    Returned,
    /// A clone that should not run.
    Ghost,
}

/// Why a clone that should not run is to end.
const GHOST: &str = "it was killed, replaced, or its ticket is over";

impl Core {
    /// A host has connected.
    pub(super) fn host_up(
        &mut self,
        waiter: Waiter,
        info: HostInfo,
        present: &Present,
        out: &mut Vec<Effect>,
    ) {
        if let Err(error) = self.check_identity(&info) {
            return self.answer(waiter, Err(error), out);
        }
        let host = info.id;
        let Present { running, making, masters, images } = present;
        let before = self.hosts.up(host).map(|host| host.epoch);
        // One that was lost for long is forgotten.
        let was_lost = self.is_lost(host) || self.hosts.state(host).is_none();
        let stored = self.host_record(host);
        let known = self.hosts.get(host).and_then(|known| known.info.as_ref());
        let has_changed = known != Some(&info);
        let is_new_daemon = self.replaces_another(&info);
        let epoch = self.next_epoch();
        self.hosts.come_up(info, epoch, self.now, &self.options);
        if self.host_record(host) != stored {
            out.push(Effect::PutHost(host));
        }
        self.hosts.see(host, self.now, masters.clone());
        self.hosts.set_images(host, images.clone().unwrap_or_default());
        self.renew_lease(host);
        self.fresh.hosts.insert(host);
        // A host that was missing may make possible what is waited for, or show that it is not.
        // Its VMs may fit other hosts than they did, or than anybody knew.
        self.fresh.all |= has_changed || !self.queue.starved().is_empty();

        let listed: BTreeSet<(Uuid, u32)> = running.iter().map(|clone| (clone.ticket, clone.vmid)).collect();
        self.lose_unlisted(host, &listed, making, out);
        let (mut adopted, mut revived) = (BTreeSet::new(), BTreeSet::new());
        for clone in running {
            match self.judge(host, clone, making) {
                Finding::Fine => {}
                Finding::New => {
                    self.adopt(host, clone);
                    self.raise_vmids(clone.family, &[clone.vmid], out);
                    adopted.insert(clone.ticket);
                }
                Finding::Returned => {
                    self.revive(host, clone.ticket, clone.vmid);
                    revived.insert((clone.ticket, clone.vmid));
                }
                Finding::Ghost => {
                    let epoch = self.epoch_of_ghost(clone.ticket, host);
                    self.hosts.haunt(host, *clone, epoch);
                }
            }
        }
        self.rejoin(&revived, out);
        for id in adopted {
            self.look_for_parent(id);
            self.put_state(id, out);
            self.settle_barrier(id, out);
        }
        self.look_for_parents_on(host, out);
        if is_new_daemon {
            self.drop_parts_to_come(host, out);
        }
        if let Some(masters) = masters {
            if was_lost {
                self.regain_masters(host, masters, out);
            }
            self.lose_masters(host, |family| !masters.contains(&family), out);
        }
        self.answer(waiter, Ok(Reply::Registered(epoch)), out);
        if let Some(epoch) = before {
            out.push(Effect::Cut { host, epoch });
        }
        self.say_kills(host, out);
    }

    /// Tells a host what is to end there and has not.
    fn say_kills(&self, host: HostId, out: &mut Vec<Effect>) {
        let ghosts = self.hosts.get(host).into_iter().flat_map(Host::ghosts);
        let ghosts = ghosts.map(|(ghost, epoch)| (ghost.ticket, epoch, ghost.family, GHOST, ghost.vmid));
        let requested = self.kills.of_host(host).filter_map(|(id, vmid)| {
            let ticket = self.ledger.get(id)?;
            Some((id, ticket.epoch, ticket.family, ticket.kills_requested.get(&vmid)?.as_str(), vmid))
        });
        let mut orders: BTreeMap<(Uuid, u64, Uuid, &str), Vec<u32>> = BTreeMap::new();
        for (ticket, epoch, family, reason, vmid) in ghosts.chain(requested).take(KILLS_A_BEAT_MAX) {
            orders.entry((ticket, epoch, family, reason)).or_default().push(vmid);
        }
        for ((ticket, epoch, family, reason), vmids) in orders {
            out.push(Effect::Kill { host, family, ticket, epoch, vmids, reason: reason.to_owned() });
        }
    }

    /// The epoch of the ticket for a clone that should not run. If the ticket became unused again
    /// since, it is an earlier epoch. A ticket that is forgotten or over is not used again.
    fn epoch_of_ghost(&self, ticket: Uuid, host: HostId) -> u64 {
        let Some(ticket) = self.ledger.get(ticket) else { return u64::MAX };
        let is_granted = ticket.state == State::Granted || ticket.is_to_come(host);
        let granted = ticket.parts.get(&host).map_or(ticket.epoch, |part| part.epoch);
        if is_granted { granted.saturating_sub(1) } else { ticket.epoch }
    }

    /// Clones that should run there and do not are gone.
    fn lose_unlisted(
        &mut self,
        host: HostId,
        listed: &BTreeSet<(Uuid, u32)>,
        making: &BTreeSet<Uuid>,
        out: &mut Vec<Effect>,
    ) {
        let tickets = self.hosts.get(host).map(|host| host.tickets.clone()).unwrap_or_default();
        let mut lost = BTreeSet::new();
        for ticket in tickets.iter().filter(|id| !making.contains(id)).filter_map(|id| self.ledger.get(*id)) {
            let here = ticket.live().filter(|(_, place)| *place == host).map(|(vmid, _)| (ticket.id, vmid));
            lost.extend(here.filter(|clone| !listed.contains(clone)));
        }
        lost.retain(|(id, vmid)| self.note_end(*id, *vmid, host, VmEnd::Lost));
        self.settle(&lost, BTreeSet::new(), State::Released, out);
    }

    /// Masters that a host has not are gone: the tickets with which they cloned wait for them no
    /// more, on whatever hosts these tickets have clones.
    pub(super) fn lose_masters(
        &mut self,
        host: HostId,
        is_gone: impl Fn(Uuid) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let tickets = self.hosts.get(host).into_iter().flat_map(|host| &host.tickets);
        let unsaid = tickets.filter_map(|id| self.ledger.get(*id)).filter(|t| t.parent_host.is_none());
        let unsaid = unsaid.filter(|ticket| ticket.state == State::Used);
        let waits = |ticket: &&Ticket| ticket.parent_vmid == Some(0) && !ticket.parent_ended;
        let orphans = unsaid.chain(self.ledger.cloned_on(host)).filter(waits);
        let orphans: Vec<_> =
            orphans.filter(|ticket| is_gone(ticket.family)).map(|ticket| ticket.id).collect();
        self.drop_data_of(host, is_gone, out);
        for id in orphans {
            self.ledger.set_parent_ended(id, true);
            Self::put(id, out);
            self.settle_barrier(id, out);
        }
    }

    /// Masters of a host live that it was given up with, or that it had not said: the tickets with
    /// which they cloned on other hosts wait for them again.
    fn regain_masters(&mut self, host: HostId, masters: &BTreeSet<Uuid>, out: &mut Vec<Effect>) {
        let is_one = |ticket: &&Ticket| ticket.parent_vmid == Some(0) && masters.contains(&ticket.family);
        let found = self.ledger.cloned_on(host).into_iter().filter(is_one).filter(|t| t.parent_ended);
        for id in found.map(|ticket| ticket.id).collect::<Vec<_>>() {
            self.ledger.set_parent_ended(id, false);
            Self::put(id, out);
        }
    }

    fn judge(&self, host: HostId, clone: &Running, making: &BTreeSet<Uuid>) -> Finding {
        let making = making.contains(&clone.ticket);
        let Some(ticket) = self.ledger.get(clone.ticket) else { return self.new_or_ghost(clone) };
        match ticket.clones.get(&clone.vmid) {
            Some(place) if *place == host && ticket.state == State::Used && ticket.is_live(clone.vmid) => {
                Finding::Fine
            }
            Some(_) if self.has_returned(host, clone, ticket) => Finding::Returned,
            Some(_) => Finding::Ghost,
            None if ticket.state == State::Used
                && ticket.family == clone.family
                && !ticket.is_to_come(host) =>
            {
                self.new_or_ghost(clone)
            }
            // Its use is under way, or will be refused: until then it does not run. Under a ticket
            // that is over it may run: an earlier copy of the ticket, which is forgotten, was used.
            None if making && !ticket.is_over() => Finding::Fine,
            None => Finding::Ghost,
        }
    }

    fn new_or_ghost(&self, clone: &Running) -> Finding {
        let is_other = self.ledger.is_live(clone.family, clone.vmid);
        if is_other { Finding::Ghost } else { Finding::New }
    }

    /// A clone becomes one of its ticket, which is made if it is not known. It holds room, whether
    /// there is any or not.
    fn adopt(&mut self, host: HostId, clone: &Running) {
        if self.ledger.get(clone.ticket).is_none() {
            let epoch = self.next_epoch();
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
                immediate: true,
                parent_vmid: clone.parent_vmid,
                parent_host: clone.parent_host,
                parent_ended: false,
                parts: BTreeMap::new(),
                clones: BTreeMap::new(),
                results: BTreeMap::new(),
                kills_requested: BTreeMap::new(),
                met: None,
                granted_unix_ms: self.now,
                expires_unix_ms: self.now,
                over_unix_ms: None,
            });
        }
        let Some(load) = self.ledger.get(clone.ticket).map(Load::of) else { return };
        self.ledger.change(clone.ticket, |ticket| {
            ticket.clones.insert(clone.vmid, host);
            let vms = ticket.places.entry(host).or_insert(0);
            *vms = vms.saturating_add(1);
        });
        self.hosts.hold(host, &load, 1);
    }

    /// Whether the VM that cloned with a ticket lives, as far as it is known of the host that it is
    /// on: the one that was named, or else the one that has just registered. VMs of a host that was
    /// given up are not waited for until it is back.
    pub(super) fn look_for_parent(&mut self, id: Uuid) {
        let Some(ticket) = self.ledger.get(id) else { return };
        let (Some(vmid), family) = (ticket.parent_vmid, ticket.family) else { return };
        let place = ticket.parent_host.and_then(|host| self.hosts.get(host));
        let lives = match ticket.parent_host {
            Some(host) if self.is_lost(host) => false,
            Some(host) if self.hosts.up(host).is_none() => return,
            _ if vmid > 0 => self.ledger.is_live(family, vmid),
            _ => place.and_then(|host| host.masters.as_ref()).is_none_or(|all| all.contains(&family)),
        };
        if !lives {
            self.ledger.set_parent_ended(id, true);
        }
    }

    /// Tickets with clones elsewhere wait for no clone of this host that does not live, now that
    /// all of them are known: their own hosts may have registered first.
    fn look_for_parents_on(&mut self, host: HostId, out: &mut Vec<Effect>) {
        let elsewhere = |ticket: &&Ticket| ticket.places.keys().any(|place| *place != host);
        let waiting = self.ledger.cloned_on(host).into_iter().filter(|ticket| !ticket.parent_ended);
        for id in waiting.filter(elsewhere).map(|ticket| ticket.id).collect::<Vec<_>>() {
            self.look_for_parent(id);
            if self.ledger.get(id).is_some_and(|ticket| ticket.parent_ended) {
                Self::put(id, out);
                self.settle_barrier(id, out);
            }
        }
    }

    /// A host's earlier daemon has not called all hosts of its tickets, and nobody else does.
    fn drop_parts_to_come(&mut self, host: HostId, out: &mut Vec<Effect>) {
        let begun = self.ledger.cloned_on(host).into_iter().filter(|ticket| ticket.vms_to_come() > 0);
        for id in begun.map(|ticket| ticket.id).collect::<Vec<_>>() {
            self.drop_parts(id, None, out);
        }
    }

    /// A host lives.
    pub(super) fn host_beat(&mut self, host: HostId, epoch: u64, beat: Beat, out: &mut Vec<Effect>) {
        let Beat { masters, free_memory_mib, images } = beat;
        let Some(up) = self.hosts.up(host).filter(|host| host.epoch == epoch) else { return };
        // Masters that are in one list only have begun or ended since the last beat.
        if let (Some(before), Some(now)) = (&up.masters, &masters) {
            let begun: BTreeSet<_> = now.difference(before).copied().collect();
            let gone: BTreeSet<_> = before.difference(now).copied().collect();
            self.regain_masters(host, &begun, out);
            self.lose_masters(host, |family| gone.contains(&family), out);
        }
        self.hosts.see(host, self.now, masters);
        self.hosts.set_free_memory(host, free_memory_mib);
        if let Some(images) = images {
            self.hosts.set_images(host, images);
        }
        self.renew_lease(host);
        self.say_kills(host, out);
    }

    /// A host's connection is over.
    pub(super) fn host_down(&mut self, host: HostId, epoch: u64) {
        if self.hosts.up(host).is_some_and(|host| host.epoch == epoch) {
            self.hosts.set_link(host, Link::Suspect, self.now);
            self.give_up_after(host, self.options.lost_after_ms);
            self.fresh.all |= !self.queue.starved().is_empty();
        }
    }
}
