//! The pure core: commands in, effects out. No clock, socket or lock: time comes with each command.
//!
//! - [`api`], `error`, [`state`]: commands, answers and effects. [`ticket`]: a ticket in its stored
//!   form.
//! - knowledge: `ledger` (tickets), `left` (the data that clones left), `epochs`, `hosts`, `host`
//!   and `room` (their resources and free capacity), `queue` (requests), `waiting` (callers that
//!   wait), `timers`.
//! - decisions: `request` and `serve` (who gets a ticket next), `place` (on which hosts), `spend`
//!   (released, used, over), `parts` (unused; each host's part), `ended` (clones end), `register`,
//!   `lease` and `returns` (hosts come, go, and come back).
//! - who a host is: `identity`; whether VMs fit it: [`facts`]. What operators do with hosts:
//!   `operate`. [`record`]: a host in its stored form.
//! - vmids that are unique in a family: `vmids`.
//! - what the VMs of a ticket do together: `barrier`, `join`, `kill`.
//!
//! ```text
//!            grant           use            last clone ended
//!  waiting ─────────▶ granted ───▶ used ─────────────────────▶ released
//!     │                │  ▲  │      │                             ▲
//!     │ timeout, or    │  │  │ TTL  │ its host is lost            │ given back
//!     │ caller left    │  │  ▼      ▼                             │
//!     ▼                │  │ expired fenced ─▶ used, if the host   │
//!                      │  │                   returns with clones │
//!  refused             └──┴───────────────────────────────────────┘
//!                     unuse: no clone was created
//! ```

pub mod api;
mod barrier;
mod calls;
mod ended;
pub mod epochs;
pub mod error;
pub mod facts;
pub mod family;
mod host;
mod hosts;
mod identity;
mod join;
mod kill;
mod lease;
mod ledger;
mod left;
mod limits;
mod operate;
mod parts;
mod place;
pub mod present;
mod queue;
pub mod record;
mod register;
mod request;
mod returns;
mod room;
mod serve;
mod spend;
pub mod state;
pub mod ticket;
mod timers;
pub mod vmids;
mod waiting;

#[cfg(test)]
mod tests;

use api::{Became, Command, CoreError, Effect, Free, Listing, Named, Options, Reply, UnixMs, Waiter};
use barrier::Meeting;
use epochs::Epochs;
use hosts::Hosts;
use kill::Kills;
use ledger::Ledger;
use queue::Queue;
use record::HostRecord;
use serve::Fresh;
use state::{Counts, HostState};
use std::collections::{BTreeSet, HashMap};
use ticket::Ticket;
use timers::{Timer, Timers};
use uuid::Uuid;
use vmids::Vmids;
use waiting::{Place, Waiting};

/// The ledger of tickets and hosts, the queue of requests, and who waits for whom.
#[derive(Debug)]
pub struct Core {
    options: Options,
    now: UnixMs,
    epochs: Epochs,
    ledger: Ledger,
    hosts: Hosts,
    queue: Queue,
    /// What has become free since the queue was served.
    fresh: Fresh,
    /// Barriers, by ticket.
    meetings: HashMap<Uuid, Meeting>,
    /// Who waits for the end of a ticket's clones.
    joins: HashMap<Uuid, BTreeSet<Waiter>>,
    kills: Kills,
    vmids: Vmids,
    waiting: Waiting,
    timers: Timers,
}

impl Core {
    /// A core that goes on from what is stored; hosts register anew.
    #[must_use]
    pub fn new(
        options: Options,
        stored: Vec<Ticket>,
        hosts: &[HostRecord],
        epochs: Epochs,
        now: UnixMs,
    ) -> Self {
        let mut core = Self {
            options,
            now,
            epochs,
            ledger: Ledger::default(),
            hosts: Hosts::default(),
            queue: Queue::default(),
            fresh: Fresh::default(),
            meetings: HashMap::new(),
            joins: HashMap::new(),
            kills: Kills::default(),
            vmids: Vmids::default(),
            waiting: Waiting::default(),
            timers: Timers::default(),
        };
        for record in hosts {
            core.recall_host(record);
        }
        for ticket in stored {
            core.epochs.given(ticket.epoch);
            core.recall(ticket);
        }
        core
    }

    /// Carries out a command; what it brings is appended to the effects.
    pub fn apply(&mut self, now: UnixMs, command: Command, out: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.run_due(out);
        match command {
            Command::Request { waiter, demand } => self.request(waiter, demand, out),
            Command::Gone(waiter) => self.gone(waiter),
            Command::Release(waiter, named) => {
                let answer = self.release(named, out);
                self.answer_ticket(waiter, answer, out);
            }
            Command::Use(waiter, usage) => {
                let answer = self.use_ticket(&usage, out);
                self.answer_ticket(waiter, answer, out);
            }
            Command::Unuse { waiter, ticket, epoch, host } => {
                let answer = self.unuse(ticket, epoch, host, out);
                self.answer_ticket(waiter, answer, out);
            }
            Command::HostUp { waiter, info, present } => self.host_up(waiter, info, &present, out),
            Command::HostBeat { host, epoch, beat } => self.host_beat(host, epoch, beat, out),
            Command::HostDown { host, epoch } => self.host_down(host, epoch),
            Command::SetScheduling { waiter, host, scheduling } => {
                let answer = self.set_scheduling(host, scheduling, out);
                self.answer(waiter, answer.map(|change| Reply::Host(Box::new(change))), out);
            }
            Command::FenceHost { waiter, host } => {
                let answer = self.fence_host(host, out);
                self.answer(waiter, answer.map(|change| Reply::Host(Box::new(change))), out);
            }
            Command::Ended { waiter, host, epoch, clones, masters } => {
                let answer = self.ended(host, epoch, clones, &masters, out);
                self.answer(waiter, answer.map(|()| Reply::Noted), out);
            }
            Command::Arrive { waiter, ticket, vmid, after_round, timeout_ms } => {
                let arrival = barrier::Arrival { waiter, vmid, after_round };
                self.arrive(&arrival, ticket, timeout_ms, out);
            }
            Command::JoinLeave { waiter, ticket, vmid, status, data_bytes, reported } => {
                let left = join::Left { vmid, status, data_bytes, reported };
                let answer = self.join_leave(ticket, &left, out);
                self.answer(waiter, answer.map(|()| Reply::Noted), out);
            }
            Command::JoinWait { waiter, ticket, vmid, timeout_ms } => {
                self.join_wait(waiter, ticket, vmid, timeout_ms, out);
            }
            Command::DataRead { waiter, ticket, vmid } => {
                let answer = self.data_read(ticket, vmid, out);
                self.answer(waiter, answer.map(|()| Reply::Noted), out);
            }
            Command::Kill { waiter, family, targets, reason } => {
                self.kill(waiter, family, &targets, &reason, out);
            }
            Command::ReserveVmids(waiter, demand) => {
                let answer = self.reserve_vmids(demand, out);
                self.answer(waiter, answer.map(|(first, count)| Reply::Vmids { first, count }), out);
            }
            Command::Tick => {}
        }
        self.serve(out);
    }

    /// When [`Command::Tick`] has work to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.timers.next()
    }

    /// A ticket.
    ///
    /// # Errors
    /// It is unknown, or another family's.
    pub fn ticket(&self, named: Named) -> Result<&Ticket, CoreError> {
        let ticket = self.ledger.get(named.id).ok_or(CoreError::Unknown(named.id))?;
        match named.family {
            Some(family) if family != ticket.family => Err(CoreError::Foreign(named.id)),
            _ => Ok(ticket),
        }
    }

    /// Tickets, those of a page.
    #[must_use]
    pub fn tickets(&self, of: &Listing) -> Vec<&Ticket> {
        self.ledger.list(of)
    }

    /// All hosts that have registered, by their numbers.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostState> {
        self.hosts.states()
    }

    /// How many clones of a ticket have not ended.
    #[must_use]
    pub fn live(&self, ticket: &Ticket) -> u32 {
        u32::try_from(ticket.live().count()).unwrap_or(u32::MAX)
    }

    /// What is free of all hosts that live, and for how many VMs of a size there is room.
    #[must_use]
    pub fn free(&self, vcpus: u32, memory_mib: u32) -> Free {
        self.hosts.free(vcpus, memory_mib)
    }

    /// How many there are of what.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (hosts, hosts_alive) = self.hosts.counts();
        let waiting = u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
        Counts { waiting, hosts, hosts_alive, ..self.ledger.counts() }
    }

    /// Does what is due. What becomes free by it goes to those who waited until then.
    fn run_due(&mut self, out: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::Expire(id) => self.expire(id, out),
                Timer::Lease(host) => self.suspect(host, out),
                Timer::Lost(host) => self.fence(host, out),
                Timer::Kept(request) => self.keep_no_more(request),
                Timer::Wait(waiter) => self.time_out(waiter, out),
                Timer::Forget(id) => self.forget(id, out),
                Timer::ForgetHost(host) => self.forget_host(host, out),
                Timer::DropData(id, vmid) => self.drop_data(id, vmid, out),
                Timer::Vmids(family) => self.look_at_vmids(family, out),
            }
            self.serve(out);
        }
    }

    /// Somebody has waited long enough.
    fn time_out(&mut self, waiter: Waiter, out: &mut Vec<Effect>) {
        let answer = match self.waiting.place(waiter) {
            Some(Place::Request(request)) => self.request_timed_out(request, waiter),
            Some(Place::Barrier(id)) => self.arrival_timed_out(id, waiter),
            Some(Place::Join(id)) => self.join_timed_out(id, waiter),
            Some(Place::Kill) | None => return,
        };
        self.answer(waiter, Err(answer), out);
    }

    /// Somebody who waited has gone.
    fn gone(&mut self, waiter: Waiter) {
        match self.waiting.remove(waiter, &mut self.timers) {
            Some(Place::Request(request)) => self.leave_request(request, waiter),
            Some(Place::Barrier(id)) => self.withdraw(id, waiter),
            Some(Place::Join(id)) => self.leave_join(id, waiter),
            Some(Place::Kill) => self.kills.leave(waiter),
            None => {}
        }
    }

    /// Answers with a ticket as it is now.
    fn answer_ticket(&mut self, waiter: Waiter, answer: Result<Uuid, CoreError>, out: &mut Vec<Effect>) {
        let answer = answer.and_then(|id| self.ledger.get(id).ok_or(CoreError::Unknown(id)));
        let answer = answer.map(|ticket| Reply::Ticket(Box::new(ticket.clone())));
        self.answer(waiter, answer, out);
    }

    /// A ticket has changed.
    fn put(id: Uuid, out: &mut Vec<Effect>) {
        if out.last() != Some(&Effect::Put(id)) {
            out.push(Effect::Put(id));
        }
    }

    /// A ticket has come to another state.
    fn put_state(&self, id: Uuid, out: &mut Vec<Effect>) {
        Self::put(id, out);
        let Some(ticket) = self.ledger.get(id) else { return };
        let vmids = if ticket.is_over() { Vec::new() } else { ticket.clones.keys().copied().collect() };
        out.push(Effect::Became(Became {
            ticket: id,
            family: ticket.family,
            state: ticket.state,
            parent_vmid: ticket.parent_vmid,
            vmids,
            vms: ticket.vms(),
        }));
    }

    fn next_epoch(&mut self) -> u64 {
        self.epochs.next()
    }

    /// The epochs that were given, and those that are reserved: to be stored with the tickets.
    #[must_use]
    pub fn epochs(&self) -> Epochs {
        self.epochs
    }
}
