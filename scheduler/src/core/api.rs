//! What is said to the core, and what it has to say.
//!
//! A shell gives it commands one after another, with the time, and carries out the effects in their order: what is to be
//! stored is stored (all effects of a batch of commands in one transaction) before any answer of that batch is sent. When storing
//! fails, the shell answers UNAVAILABLE and takes the core from the store again.

pub use super::error::CoreError;
pub use super::limits::*;
use super::ticket::{HostId, Policy, State, Ticket, VmEnd};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Milliseconds since 1970. The shell sees to it that they do not go back.
pub type UnixMs = u64;

/// A call that waits for its answer; chosen by the shell, never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub u64);

/// How the core is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a granted ticket may stay unused, milliseconds.
    pub ttl_ms: u64,
    /// How long a host may be silent, milliseconds; 0: for ever.
    pub lease_ms: u64,
    /// How long a ticket is remembered after its end, milliseconds.
    pub remember_ms: u64,
    /// CPUs that may be granted for each 100 real ones.
    pub cpu_percent: u32,
    /// Memory that may be granted for each 100 MiB.
    pub memory_percent: u32,
    /// For requests that say none.
    pub policy: Policy,
}

/// What a family asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Whose ticket it will be.
    pub family: Uuid,
    /// The same one gives the same ticket.
    pub request_id: Option<String>,
    /// Most CPUs in all.
    pub max_cpus: u32,
    /// Fewest VMs.
    pub min_vms: u32,
    /// CPUs of each VM at least.
    pub min_cpus_per_vm: u32,
    /// CPUs of each VM.
    pub vcpus: u32,
    /// Memory of each VM.
    pub memory_mib: u32,
    /// How long it may wait.
    pub timeout_ms: u64,
    /// Only these; empty: any.
    pub hosts: Vec<HostId>,
    /// Or as the core is set up.
    pub policy: Option<Policy>,
    /// Or as the core is set up.
    pub ttl_ms: Option<u64>,
    /// Granted and used at once: for clones that are asked for by number.
    pub use_by: Option<UseBy>,
}

/// Who makes which clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseBy {
    /// Who clones.
    pub parent_vmid: u32,
    /// The clones, as many as [`Demand::min_vms`]; all on one host.
    pub vmids: Vec<u32>,
    /// The registration of the first of [`Demand::hosts`] that asks; None: whatever it is.
    pub host_epoch: Option<u64>,
}

/// A host, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The same whenever it comes back.
    pub id: HostId,
    /// For people.
    pub name: String,
    /// Of its vmmd.
    pub address: String,
    /// Real ones.
    pub cpus: u32,
    /// Real memory.
    pub memory_mib: u64,
    /// Most clones at once; None: no limit of its own.
    pub max_vms: Option<u32>,
    /// CPUs that may be granted for each 100 real ones; None: as the core is set up.
    pub cpu_percent: Option<u32>,
    /// Likewise of its memory.
    pub memory_percent: Option<u32>,
}

/// What a host has when it registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// What runs there: the ledger follows it.
    pub running: Vec<Running>,
    /// Tickets whose use is under way there: of them, what does not run yet is not taken as ended.
    pub making: BTreeSet<Uuid>,
    /// Families whose master lives there; None: it does not say.
    pub masters: Option<BTreeSet<Uuid>>,
}

/// A clone that runs on a host that registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// What it was made under.
    pub ticket: Uuid,
    /// Its family.
    pub family: Uuid,
    /// Its number.
    pub vmid: u32,
    /// Its CPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory_mib: u32,
    /// The VM that it was cloned from, if the host knows.
    pub parent_vmid: Option<u32>,
}

/// Which clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// These of the family.
    Vmids(Vec<u32>),
    /// All of a ticket.
    Ticket(Uuid),
}

/// A ticket and who names it: a family that is given must be the ticket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The ticket.
    pub id: Uuid,
    /// Who says so; None: an operator.
    pub family: Option<Uuid>,
}

/// Which tickets are listed, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listing {
    /// Only a family's.
    pub family: Option<Uuid>,
    /// Only those that somebody asked for: none that are loose.
    pub asked_for: bool,
    /// In the order of granting, or the other way round.
    pub newest_first: bool,
    /// After the one that was the last of a page: when it was granted, and its number.
    pub after: Option<(UnixMs, Uuid)>,
    /// At most so many.
    pub most: usize,
}

/// What the core is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A ticket is wanted. Answered with [`Reply::Ticket`], now or later.
    Request {
        /// Who waits.
        waiter: Waiter,
        /// What for.
        demand: Demand,
    },
    /// Who waited has gone: for a ticket, at a barrier, for a join or a kill.
    Gone(Waiter),
    /// Gives a ticket back. [`Reply::Ticket`].
    Release(Waiter, Named),
    /// A host makes the VMs of a ticket. What it has beyond them is given back. The same again is answered the same.
    /// [`Reply::Ticket`].
    Use {
        /// Who waits.
        waiter: Waiter,
        /// Which.
        ticket: Named,
        /// As the caller knows it; None: whatever it is.
        epoch: Option<u64>,
        /// Where.
        host: HostId,
        /// Of the host's registration; None: whatever it is.
        host_epoch: Option<u64>,
        /// Who clones.
        parent_vmid: u32,
        /// The clones: at least one, at most what the ticket has on this host.
        vmids: Vec<u32>,
    },
    /// Nothing was made. [`Reply::Ticket`].
    Unuse {
        /// Who waits.
        waiter: Waiter,
        /// Which.
        ticket: Named,
        /// As the caller knows it; None: whatever it is.
        epoch: Option<u64>,
        /// Where.
        host: HostId,
    },
    /// A host has connected. Answered with [`Reply::Registered`]; an earlier connection of the same host is over.
    HostUp {
        /// Who waits.
        waiter: Waiter,
        /// Which.
        info: HostInfo,
        /// What it has.
        present: Present,
    },
    /// A host lives. It is told again what is to end there.
    HostBeat {
        /// Which.
        host: HostId,
        /// Of its registration.
        epoch: u64,
    },
    /// A host's connection has ended. It is fenced when its lease is over, unless it is back by then.
    HostDown {
        /// Which.
        host: HostId,
        /// Of its registration.
        epoch: u64,
    },
    /// Clones are gone, or were never made; masters are gone. [`Reply::Noted`]; the same one twice is noted once.
    Ended {
        /// Who waits.
        waiter: Waiter,
        /// Where.
        host: HostId,
        /// Of its registration.
        epoch: u64,
        /// Ticket, vmid, how.
        clones: Vec<(Uuid, u32, VmEnd)>,
        /// Families whose master it was.
        masters: Vec<Uuid>,
    },
    /// A VM arrives at its ticket's barrier. [`Reply::Met`], when all have.
    Arrive {
        /// Who waits.
        waiter: Waiter,
        /// Whose barrier.
        ticket: Named,
        /// The VM.
        vmid: u32,
        /// The last meeting that it knows of, 0 before the first: a later one is answered at once. None: it waits for the next.
        after_round: Option<u64>,
        /// How long it waits; None: for ever.
        timeout_ms: Option<u64>,
    },
    /// A clone leaves its result; its end follows. [`Reply::Noted`].
    JoinLeave {
        /// Who waits.
        waiter: Waiter,
        /// Its ticket.
        ticket: Named,
        /// The clone.
        vmid: u32,
        /// Its result.
        status: i32,
        /// The length of its data, which the shell keeps.
        data_bytes: u64,
        /// Whether the VM that cloned is to see it.
        reported: bool,
    },
    /// A family has read what a clone left. [`Reply::Noted`].
    DataRead {
        /// Who waits.
        waiter: Waiter,
        /// The clone's ticket.
        ticket: Named,
        /// The clone.
        vmid: u32,
    },
    /// The VM that cloned waits for the end of all clones. [`Reply::Joined`].
    JoinWait {
        /// Who waits.
        waiter: Waiter,
        /// For whose.
        ticket: Named,
        /// The VM; None: an operator.
        vmid: Option<u32>,
        /// How long; None: for ever.
        timeout_ms: Option<u64>,
    },
    /// Clones are to end. [`Reply::Killed`], when they have.
    Kill {
        /// Who waits.
        waiter: Waiter,
        /// Whose.
        family: Uuid,
        /// Which.
        targets: Targets,
        /// Why, for their records.
        reason: String,
    },
    /// Time has passed: see [`super::Core::next_deadline`].
    Tick,
}

/// What a call brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// As it is now.
    Ticket(Box<Ticket>),
    /// The epoch of a host's registration.
    Registered(u64),
    /// It is in the ledger.
    Noted,
    /// All have arrived.
    Met {
        /// Which meeting it was, from 1.
        round: u64,
        /// How many VMs met; 0: not known.
        arrived: u32,
    },
    /// All clones have ended: the ticket has their results.
    Joined(Box<Ticket>),
    /// These have ended.
    Killed(Vec<u32>),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Store a ticket as [`super::Core::ticket`] has it at the end of the batch; nothing to do if it is not there any more.
    Put(Uuid),
    /// For the log: a ticket has come to another state, whatever comes after that in the same batch.
    Became(Became),
    /// Forget a ticket and its data.
    Forget(Uuid),
    /// Forget what a clone left.
    DropData {
        /// Its ticket.
        ticket: Uuid,
        /// The clone.
        vmid: u32,
    },
    /// Answer a call.
    Answer(Waiter, Result<Reply, CoreError>),
    /// Tell a host to end clones.
    Kill {
        /// Which host.
        host: HostId,
        /// Of the family.
        family: Uuid,
        /// Of the ticket.
        ticket: Uuid,
        /// As it was when they were clones of it: one that was unused and used again has a greater one, and other clones.
        epoch: u64,
        /// Which clones.
        vmids: Vec<u32>,
        /// Why.
        reason: String,
    },
    /// A registration is over, by its lease or by a later one: its connection, if there is one, is to be cut.
    Cut {
        /// Which host.
        host: HostId,
        /// Of the registration that is over.
        epoch: u64,
    },
}

/// Where a ticket stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Became {
    /// Which.
    pub ticket: Uuid,
    /// Whose.
    pub family: Uuid,
    /// In which state.
    pub state: State,
    /// The VM that cloned with it, if one did.
    pub parent_vmid: Option<u32>,
    /// Its clones: when it is used, not at its end.
    pub vmids: Vec<u32>,
    /// How many VMs it is for.
    pub vms: u32,
}

/// What is free of all hosts that live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Free {
    /// CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory_mib: u64,
    /// VMs of the size asked for.
    pub vms: u64,
}
