//! The core's commands, answers and effects.
//!
//! A shell passes commands one after another, each with the time, and carries out the effects in
//! order. All effects of a batch that must be stored are stored in one transaction before any
//! answer of that batch is sent. If storing fails, the shell answers UNAVAILABLE and loads the core
//! from the store again.

pub use super::calls::{Named, Usage, VmidDemand};
pub use super::error::{Closed, CoreError, Free};
pub use super::facts::Misfits;
pub use super::limits::*;
pub use super::present::{Beat, HostInfo, Image, Needs, Present, Running, UnixMs};
use super::{
    record::Scheduling,
    state::HostState,
    ticket::{HostId, Policy, State, Ticket, VmEnd},
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// A call that waits for its answer; chosen by the shell, never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub u64);

/// How the core is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a granted ticket may stay unused, milliseconds.
    pub ttl_ms: u64,
    /// How long a host may be silent before it is suspect, milliseconds; 0: for ever, and no host
    /// is given up.
    pub lease_ms: u64,
    /// How long a host may be silent before it is given up, milliseconds; 0: for ever.
    pub lost_after_ms: u64,
    /// How long a ticket is remembered after its end, milliseconds.
    pub remember_ms: u64,
    /// CPUs that may be granted for each 100 real ones.
    pub cpu_percent: u32,
    /// Memory that may be granted for each 100 MiB.
    pub memory_percent: u32,
    /// Where VMs are placed for requests that do not say it.
    pub policy: Policy,
}

/// What a family asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The family that gets the ticket.
    pub family: Uuid,
    /// The caller's name for the request: the same one gives the same ticket.
    pub request_id: Option<String>,
    /// Most CPUs in all.
    pub max_cpus: u32,
    /// Fewest VMs.
    pub min_vms: u32,
    /// CPUs of each VM at least.
    pub min_cpus_per_vm: u32,
    /// CPUs of each VM.
    pub vcpus: u32,
    /// Memory of each VM, MiB.
    pub memory_mib: u32,
    /// How long the request may wait for room, milliseconds.
    pub timeout_ms: u64,
    /// The hosts that may be chosen; empty: any.
    pub hosts: Vec<HostId>,
    /// The host that is taken first, as far as it has room; None: as the policy says.
    pub prefer: Option<HostId>,
    /// The host of the VM that is cloned: only hosts that fit its VMs are chosen; None: any.
    pub parent: Option<HostId>,
    /// What that VM needs of a host; None: what its host offers.
    pub needs: Option<Needs>,
    /// The kernel and the root file system of the VM that is cloned: hosts that have them go before
    /// hosts that are as good otherwise.
    pub images: BTreeSet<Image>,
    /// Where VMs are placed; None: as [`Options::policy`] says.
    pub policy: Option<Policy>,
    /// How long the ticket may stay unused, milliseconds; None: as [`Options::ttl_ms`] says.
    pub ttl_ms: Option<u64>,
    /// The clones for which the ticket is granted and used at once, when they are asked for by
    /// number; None: it is only granted.
    pub use_by: Option<UseBy>,
}

/// Who makes which clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseBy {
    /// The vmid of the VM that is cloned.
    pub parent_vmid: u32,
    /// The clones' vmids, as many as [`Demand::min_vms`]; all on one host.
    pub vmids: Vec<u32>,
    /// The epoch of the registration of the first of [`Demand::hosts`], which asks; None: any
    /// epoch.
    pub host_epoch: Option<u64>,
}

/// Which clones of a family are to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// The clones of these vmids.
    Vmids(Vec<u32>),
    /// All clones of a ticket.
    Ticket(Uuid),
}

/// Which tickets are listed, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listing {
    /// Only tickets of this family; None: of all.
    pub family: Option<Uuid>,
    /// Only tickets that somebody asked for: none that are immediate.
    pub asked_for: bool,
    /// The latest granted comes first, not the earliest.
    pub newest_first: bool,
    /// The last ticket of the page before, by when it was granted and its number: the list goes on
    /// after it.
    pub after: Option<(UnixMs, Uuid)>,
    /// The most tickets in the list.
    pub most: usize,
}

/// What the core is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A ticket is wanted. Answered with [`Reply::Ticket`], now or later.
    Request {
        /// The call that gets the answer.
        waiter: Waiter,
        /// What the family asks for.
        demand: Demand,
    },
    /// A call does not wait any more: for a ticket, at a barrier, for a join or a kill.
    Gone(Waiter),
    /// Gives a ticket back. [`Reply::Ticket`].
    Release(Waiter, Named),
    /// A host makes VMs of a ticket. The same again is answered the same. [`Reply::Ticket`].
    Use(Waiter, Usage),
    /// A host made no VM of a ticket that it had said it uses. [`Reply::Ticket`].
    Unuse {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The ticket that was to be used.
        ticket: Named,
        /// The ticket's epoch as the caller knows it; None: any epoch.
        epoch: Option<u64>,
        /// The host that made no clones.
        host: HostId,
    },
    /// A host has connected. Answered with [`Reply::Registered`]; an earlier connection of the same
    /// host is over.
    HostUp {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The host, as it describes itself.
        info: HostInfo,
        /// What runs on the host.
        present: Present,
    },
    /// A host lives. It is told again what is to end there.
    HostBeat {
        /// The host that lives.
        host: HostId,
        /// The epoch of the host's registration.
        epoch: u64,
        /// What it says of itself.
        beat: Beat,
    },
    /// A host's connection has ended: it is suspect until it is back, or is given up.
    HostDown {
        /// The host whose connection has ended.
        host: HostId,
        /// The epoch of the registration whose connection it was.
        epoch: u64,
    },
    /// An operator wants something else of a host. [`Reply::Host`].
    SetScheduling {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The host that is meant.
        host: HostId,
        /// What it is from now on.
        scheduling: Scheduling,
    },
    /// An operator gives up a host that is silent. [`Reply::Host`].
    FenceHost {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The host that is meant.
        host: HostId,
    },
    /// Clones are gone, or were never made; masters are gone. [`Reply::Noted`]; the same one twice
    /// is noted once.
    Ended {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The host on which they were.
        host: HostId,
        /// The epoch of the host's registration.
        epoch: u64,
        /// Of each clone its ticket, its vmid and how it ended.
        clones: Vec<(Uuid, u32, VmEnd)>,
        /// The families whose masters are gone.
        masters: Vec<Uuid>,
    },
    /// A VM arrives at its ticket's barrier. [`Reply::Met`], when all have.
    Arrive {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The ticket whose barrier it is.
        ticket: Named,
        /// The vmid of the VM that arrives.
        vmid: u32,
        /// The last meeting that it knows of, 0 before the first: a later one is answered at once.
        /// None: it waits for the next.
        after_round: Option<u64>,
        /// How long the VM waits, milliseconds; None: without limit.
        timeout_ms: Option<u64>,
    },
    /// A clone leaves its result; its end follows. [`Reply::Noted`].
    JoinLeave {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The ticket under which the clone was made.
        ticket: Named,
        /// The clone's vmid.
        vmid: u32,
        /// The clone's result.
        status: i32,
        /// The length of the clone's data, which the shell keeps, bytes.
        data_bytes: u64,
        /// Whether the VM that cloned is to see it.
        reported: bool,
    },
    /// A family has read what a clone left. [`Reply::Noted`].
    DataRead {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The ticket under which the clone was made.
        ticket: Named,
        /// The clone's vmid.
        vmid: u32,
    },
    /// The VM that cloned waits for the end of all clones. [`Reply::Joined`].
    JoinWait {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The ticket whose clones are waited for.
        ticket: Named,
        /// The vmid of the VM that waits; None: an operator waits.
        vmid: Option<u32>,
        /// How long the call waits, milliseconds; None: without limit.
        timeout_ms: Option<u64>,
    },
    /// Clones are to end. [`Reply::Killed`], when they have.
    Kill {
        /// The call that gets the answer.
        waiter: Waiter,
        /// The family whose clones are to end.
        family: Uuid,
        /// Which of the family's clones are to end.
        targets: Targets,
        /// Why they are to end, for their records.
        reason: String,
    },
    /// A host reserves vmids of a family. [`Reply::Vmids`].
    ReserveVmids(Waiter, VmidDemand),
    /// Time has passed: see [`super::Core::next_deadline`].
    Tick,
}

/// What a call brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The ticket as it is now.
    Ticket(Box<Ticket>),
    /// The epoch of a host's registration.
    Registered(u64),
    /// The call's facts are in the ledger.
    Noted,
    /// All VMs of the barrier have arrived.
    Met {
        /// The number of the meeting, from 1.
        round: u64,
        /// How many VMs met; 0: not known.
        arrived: u32,
    },
    /// All clones have ended: the ticket has their results.
    Joined(Box<Ticket>),
    /// The vmids of the clones that have ended.
    Killed(Vec<u32>),
    /// A host as it is now.
    Host(Box<HostChange>),
    /// Vmids that nobody else gets.
    Vmids {
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// What an operator has done with a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostChange {
    /// The host as it is now.
    pub state: HostState,
    /// The clones that still live there: ticket, family, vmid.
    pub clones: Vec<(Uuid, Uuid, u32)>,
    /// How many tickets were taken back.
    pub released: u32,
    /// The families whose master lives there, as the host has said it last.
    pub masters: Vec<Uuid>,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Store a ticket as [`super::Core::ticket`] has it at the end of the batch; nothing to do if
    /// it is not there any more.
    Put(Uuid),
    /// Store a host as [`super::Core::host_record`] has it at the end of the batch; nothing to do
    /// if it is not there any more.
    PutHost(HostId),
    /// Forget a host.
    ForgetHost(HostId),
    /// Store a family's counter of vmids as [`super::Core::vmid_record`] has it at the end of the
    /// batch, or forget it.
    PutVmids(Uuid),
    /// For the log: a ticket has come to another state, whatever comes after that in the same
    /// batch.
    Became(Became),
    /// Forget a ticket and its data.
    Forget(Uuid),
    /// Forget what a clone left.
    DropData {
        /// The ticket under which the clone was made.
        ticket: Uuid,
        /// The clone's vmid.
        vmid: u32,
    },
    /// Answer a call.
    Answer(Waiter, Result<Reply, CoreError>),
    /// Tell a host to end clones.
    Kill {
        /// The host on which the clones run.
        host: HostId,
        /// The family of the clones.
        family: Uuid,
        /// The ticket under which the clones were made.
        ticket: Uuid,
        /// The ticket's epoch when these were its clones: a ticket that was unused and used again
        /// has a greater one, and other clones.
        epoch: u64,
        /// The vmids of the clones that are to end.
        vmids: Vec<u32>,
        /// Why they are to end, for their records.
        reason: String,
    },
    /// A registration is over, by its lease or by a later one: its connection, if there is one, is
    /// to be cut.
    Cut {
        /// The host whose registration is over.
        host: HostId,
        /// The epoch of the registration that is over.
        epoch: u64,
    },
}

/// The state to which a ticket has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Became {
    /// The ticket's number.
    pub ticket: Uuid,
    /// The family that has the ticket.
    pub family: Uuid,
    /// The state that it is in now.
    pub state: State,
    /// The vmid of the VM that cloned with it, if one did.
    pub parent_vmid: Option<u32>,
    /// The vmids of its clones: when it is used, not at its end.
    pub vmids: Vec<u32>,
    /// How many VMs it is for.
    pub vms: u32,
}
