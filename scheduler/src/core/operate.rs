//! What operators do with hosts: cordon, drain, uncordon and fence.

use super::{
    Core,
    api::{CoreError, Effect, HostChange},
    record::{HostRecord, Scheduling},
    state::Standing,
    ticket::{HostId, State},
};
use uuid::Uuid;

impl Core {
    /// An operator wants something else of a host. Draining takes back what was granted there and
    /// is not used: tickets are not moved, because guests' tickets are for their own host.
    /// Of a ticket that other hosts have used, the part there is taken back.
    pub(super) fn set_scheduling(
        &mut self,
        host: HostId,
        scheduling: Scheduling,
        out: &mut Vec<Effect>,
    ) -> Result<HostChange, CoreError> {
        let before = self.hosts.get(host).ok_or(CoreError::UnknownHost(host))?.scheduling;
        if before != scheduling {
            self.hosts.set_scheduling(host, scheduling, self.now);
            out.push(Effect::PutHost(host));
            // One that was kept because of that is forgotten later.
            self.forget_later(host);
        }
        self.fresh.hosts.insert(host);
        self.fresh.all |= !self.queue.starved().is_empty();
        let mut released = 0;
        if scheduling == Scheduling::Draining {
            for id in self.tickets_on(host, State::Granted) {
                self.finish(id, State::Released, out);
                released += 1;
            }
            for id in self.tickets_on(host, State::Used) {
                released += u32::from(self.drop_parts(id, Some(host), out));
            }
        }
        self.host_change(host, released)
    }

    /// An operator gives a host up that is silent.
    pub(super) fn fence_host(
        &mut self,
        host: HostId,
        out: &mut Vec<Effect>,
    ) -> Result<HostChange, CoreError> {
        match self.hosts.get(host).ok_or(CoreError::UnknownHost(host))?.standing() {
            Standing::Up => return Err(CoreError::HostIsUp(host)),
            Standing::Suspect => self.fence(host, out),
            Standing::Lost => {}
        }
        self.host_change(host, 0)
    }

    /// The tickets of a state that have something on a host.
    fn tickets_on(&self, host: HostId, state: State) -> Vec<Uuid> {
        let tickets = self.hosts.get(host).into_iter().flat_map(|host| &host.tickets);
        let of_state = |id: &&Uuid| self.ledger.get(**id).is_some_and(|ticket| ticket.state == state);
        tickets.filter(of_state).copied().collect()
    }

    fn host_change(&self, host: HostId, released: u32) -> Result<HostChange, CoreError> {
        let state = self.hosts.state(host).ok_or(CoreError::UnknownHost(host))?;
        let used = self.tickets_on(host, State::Used);
        let tickets = used.iter().filter_map(|id| self.ledger.get(*id));
        let clones = tickets.flat_map(|ticket| {
            let here = ticket.live().filter(|(_, place)| *place == host);
            here.map(|(vmid, _)| (ticket.id, ticket.family, vmid))
        });
        let masters = self.hosts.get(host).and_then(|host| host.masters.as_ref());
        let masters = masters.into_iter().flatten().copied().collect();
        Ok(HostChange { clones: clones.collect(), state, released, masters })
    }

    /// What is to be stored of a host; None: it is not known, or nothing is.
    #[must_use]
    pub fn host_record(&self, host: HostId) -> Option<HostRecord> {
        self.hosts.get(host)?.record(host)
    }

    /// A host of before the scheduler's start.
    pub(super) fn recall_host(&mut self, record: &HostRecord) {
        self.hosts.recall(record, self.now, &self.options);
        if record.lost_unix_ms.is_some() {
            self.forget_later(record.id);
        } else {
            self.give_up_after(record.id, self.options.lost_after_ms);
        }
    }
}
