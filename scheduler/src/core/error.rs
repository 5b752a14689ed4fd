//! The core's refusals. Each names its subject and what to do.

use super::{
    facts::Misfits,
    limits::{FAMILY_TICKETS_MAX, VMID_FAMILIES_MAX, VMID_MAX},
    ticket::HostId,
};
use uuid::Uuid;

/// What is free of all hosts that live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Free {
    /// CPUs that are free.
    pub cpus: u64,
    /// Memory that is free, MiB.
    pub memory_mib: u64,
    /// How many VMs of the size asked for have room.
    pub vms: u64,
}

/// How many hosts that might have room are granted nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// Hosts that are silent.
    pub suspect: u64,
    /// Hosts that are up, and cordoned or draining.
    pub cordoned: u64,
    /// Hosts that were given up.
    pub lost: u64,
}

impl Closed {
    /// One more, or one less, that is as this says.
    pub(super) fn add(&mut self, other: Self) {
        self.suspect = self.suspect.saturating_add(other.suspect);
        self.cordoned = self.cordoned.saturating_add(other.cordoned);
        self.lost = self.lost.saturating_add(other.lost);
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.suspect = self.suspect.saturating_sub(other.suspect);
        self.cordoned = self.cordoned.saturating_sub(other.cordoned);
        self.lost = self.lost.saturating_sub(other.lost);
    }

    /// Which hosts these are, as part of a message; empty: none.
    fn said(&self) -> String {
        let kinds = [
            (self.suspect, "suspect (they do not answer)"),
            (self.cordoned, "cordoned or draining"),
            (self.lost, "lost"),
        ];
        let some = kinds.iter().filter(|(count, _)| *count > 0);
        let some: Vec<_> = some.map(|(count, what)| format!("{count} {what}")).collect();
        if some.is_empty() {
            return String::new();
        }
        format!("; hosts that are granted nothing: {}", some.join(", "))
    }

    /// What to do about them.
    fn advice(&self) -> &'static str {
        match (self.cordoned > 0, self.suspect.saturating_add(self.lost) > 0) {
            (false, false) => "",
            (true, false) => ", or bring hosts back: `vmctl host uncordon`",
            (false, true) => ", or bring hosts back: `vmctl host ls` shows which do not answer",
            (true, true) => {
                ", or bring hosts back: `vmctl host uncordon`, and `vmctl host ls` shows which do not answer"
            }
        }
    }
}

/// Hosts that a VM does not fit, after what else is said.
fn differ(misfits: &Misfits) -> String {
    if misfits.hosts == 0 { String::new() } else { format!("; {}", misfits.said()) }
}

/// Why the core refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// The core knows no ticket of this number.
    #[error("use ticket {0}: there is no such ticket; request one")]
    Unknown(Uuid),
    /// The ticket belongs to another family.
    #[error("use ticket {0}: it belongs to another family")]
    Foreign(Uuid),
    /// Clones were made with the ticket.
    #[error("use ticket {0}: it has been used already; request another one")]
    Used(Uuid),
    /// The ticket was given back, or its clones have ended.
    #[error("use ticket {0}: it was released; request another one")]
    Released(Uuid),
    /// The ticket was not used in time.
    #[error(
        "use ticket {0}: it expired before it was used; request another one, and use it sooner or ask for a longer TTL"
    )]
    Expired(Uuid),
    /// The ticket's host went away.
    #[error("use ticket {0}: its host did not answer the scheduler in time; request another one")]
    Fenced(Uuid),
    /// The ticket has no clones yet.
    #[error("sync on ticket {0}: nothing has been cloned with it yet; clone with it first")]
    NotUsed(Uuid),
    /// The ticket is for another host.
    #[error("use ticket {ticket}: it has no VMs on host {host}")]
    OtherHost {
        /// The ticket.
        ticket: Uuid,
        /// The host that wanted to use the ticket.
        host: HostId,
    },
    /// Another VM has cloned with another part of the ticket.
    #[error(
        "use ticket {ticket}: VM {parent_vmid} has cloned with another part of it; name that VM and its host, or request another ticket"
    )]
    OtherParent {
        /// The ticket.
        ticket: Uuid,
        /// The VM that has cloned with it.
        parent_vmid: u32,
    },
    /// The caller wants more clones than the ticket has VMs.
    #[error(
        "use ticket {ticket}: it is for {has} VMs on this host, and {wanted} were requested; clone fewer, or request a larger ticket"
    )]
    SmallTicket {
        /// The ticket.
        ticket: Uuid,
        /// How many clones the caller wants.
        wanted: u32,
        /// How many VMs the ticket has on this host.
        has: u32,
    },
    /// A vmid cannot be given to a clone.
    #[error(
        "clone: vmid {0} cannot be used: it is the master's or the parent's, it is given twice, or another clone has it; give unused vmids"
    )]
    BadVmid(u32),
    /// The caller gave no vmids, or not as many as the ticket has VMs.
    #[error("clone: {given} vmids are given, and the ticket needs {wanted}; give {wanted}")]
    BadVmids {
        /// How many vmids the caller gave.
        given: u32,
        /// How many vmids it has to give, at least.
        wanted: u32,
    },
    /// The epoch that the caller gave is not the ticket's epoch any more.
    #[error(
        "use ticket {ticket}: epoch {given} is out of date, the ticket is at epoch {current}; read the ticket again"
    )]
    StaleEpoch {
        /// The ticket.
        ticket: Uuid,
        /// The epoch that the caller gave.
        given: u64,
        /// The ticket's epoch now.
        current: u64,
    },
    /// The host was fenced, or has registered anew.
    #[error("host {host}: registration {given} is over; register again")]
    StaleHost {
        /// The host whose registration is over.
        host: HostId,
        /// The registration's epoch that the host gave.
        given: u64,
    },
    /// No such host is registered.
    #[error("host {0} is not registered with the scheduler")]
    UnknownHost(HostId),
    /// The VM is neither a live clone of the ticket nor the VM that cloned with it.
    #[error("VM {vmid} is neither a live clone of ticket {ticket} nor the VM that cloned with it")]
    UnknownVm {
        /// The ticket.
        ticket: Uuid,
        /// The vmid that the caller gave.
        vmid: u32,
    },
    /// A clone asked for what only the VM that cloned may do.
    #[error("join ticket {ticket}: VM {vmid} did not clone with it; a clone joins without naming a ticket")]
    NotParent {
        /// The ticket.
        ticket: Uuid,
        /// The vmid of the VM that asked.
        vmid: u32,
    },
    /// The VM that cloned asked to leave as a clone.
    #[error(
        "join: VM {vmid} is not a clone of ticket {ticket}; the VM that cloned waits for its clones with `join TICKET`"
    )]
    NotClone {
        /// The ticket.
        ticket: Uuid,
        /// The vmid of the VM that asked.
        vmid: u32,
    },
    /// The family has no live clone of this vmid.
    #[error("kill: the family has no live clone with vmid {0}")]
    NoClone(u32),
    /// The request needs more than all hosts have, even if they were empty.
    #[error(
        "request a ticket: {min_vms} VMs with {vcpus} CPUs and {memory_mib} MiB each exceed the capacity of all hosts; ask for fewer"
    )]
    Impossible {
        /// The fewest VMs that the request takes.
        min_vms: u32,
        /// CPUs of each VM.
        vcpus: u32,
        /// Memory of each VM, MiB.
        memory_mib: u32,
    },
    /// The request's CPUs are too few for its VMs.
    #[error(
        "request a ticket: {max_cpus} CPUs are enough for {most} VMs with {vcpus} CPUs each, but {min_vms} VMs are wanted; allow more CPUs or ask for fewer VMs"
    )]
    FewCpus {
        /// The most CPUs that the request allows in all.
        max_cpus: u32,
        /// How many VMs these CPUs are enough for.
        most: u32,
        /// CPUs of each VM.
        vcpus: u32,
        /// The fewest VMs that the request takes.
        min_vms: u32,
    },
    /// The family's VMs have fewer CPUs than the request wants of each.
    #[error(
        "request a ticket: {min_cpus_per_vm} CPUs per VM are wanted, but the family's VMs have {vcpus} each; ask for at most {vcpus}"
    )]
    SmallVms {
        /// CPUs of each VM of the family.
        vcpus: u32,
        /// The fewest CPUs of each VM that the request takes.
        min_cpus_per_vm: u32,
    },
    /// The hosts had no room for the request in time.
    #[error("request a ticket: there is no capacity for {min_vms} VMs now; free are {} CPUs and {} MiB, enough for {} such VMs{}{}; end some VMs, wait longer, or ask for fewer{}", free.cpus, free.memory_mib, free.vms, closed.said(), differ(misfits), closed.advice())]
    NoCapacity {
        /// The fewest VMs that the request takes.
        min_vms: u32,
        /// What was free on all hosts at the end of the wait.
        free: Free,
        /// The hosts that are granted nothing, of those that may be chosen.
        closed: Closed,
        /// The hosts that were not looked at, as the VM that is cloned does not fit them.
        misfits: Misfits,
    },
    /// The hosts that might have had room do not fit the VM that is cloned.
    #[error("request a ticket: no host fits that could have {min_vms} VMs; {}{}; use hosts like the one of the VM that is cloned: `vmctl host inspect` shows what they have", misfits.said(), closed.said())]
    NoFit {
        /// The fewest VMs that the request takes.
        min_vms: u32,
        /// The hosts that the VM does not fit.
        misfits: Misfits,
        /// The hosts that are granted nothing, of those that it fits.
        closed: Closed,
    },
    /// The hosts that may be chosen are granted nothing, as an operator wants it.
    #[error(
        "request a ticket: host {name} ({host}) is cordoned; use another host, or let it be granted again: `vmctl host uncordon`"
    )]
    HostCordoned {
        /// The first of them.
        host: HostId,
        /// Its name.
        name: String,
    },
    /// The hosts that may be chosen do not answer.
    #[error(
        "request a ticket: host {name} ({host}) is {is}: it does not answer the scheduler; use another host, or ask again when it is back"
    )]
    HostSilent {
        /// The first of them.
        host: HostId,
        /// Its name.
        name: String,
        /// What it is.
        is: &'static str,
    },
    /// Another daemon has this host id.
    #[error(
        "register host {host}: {name} ({address}) has this id, and is up or may come back; if this host was copied from it, stop vmmd here, delete the file host-id in its state folder, and start it again; if it is the same host with a moved state folder, `vmctl host fence {host}` gives the old one up"
    )]
    HostIdInUse {
        /// The id.
        host: HostId,
        /// The name of the host that has it.
        name: String,
        /// The address of that host's vmmd.
        address: String,
    },
    /// A host is to be given up that answers.
    #[error(
        "fence host {0}: it is up, and only a silent host can be fenced; stop its vmmd first, or drain it: `vmctl host drain`"
    )]
    HostIsUp(HostId),
    /// Too many tickets of one family.
    #[error(
        "request a ticket: the family has the maximum of {FAMILY_TICKETS_MAX} tickets; release some, or end their clones"
    )]
    TooManyTickets,
    /// The family has not so many vmids left.
    #[error(
        "reserve {count} vmids: family {family} has {left} left of its {VMID_MAX}; clone a VM of another family"
    )]
    NoVmids {
        /// The family.
        family: Uuid,
        /// How many are wanted.
        count: u32,
        /// How many there are.
        left: u32,
    },
    /// Too many families have a counter of vmids.
    #[error(
        "reserve vmids: the scheduler knows the maximum of {VMID_FAMILIES_MAX} families, or this host has its share of them; families that have ended are forgotten after a day"
    )]
    TooManyFamilies,
    /// Too many calls of one family.
    #[error("{call}: the family has the maximum of {most} such calls waiting; end some of them")]
    TooManyWaiting {
        /// The call of which too many wait.
        call: &'static str,
        /// The most such calls of one family.
        most: usize,
    },
    /// What the clone left is not kept any more.
    #[error(
        "read the data that VM {vmid} of ticket {ticket} left: it is no longer kept, because it was read some time ago or the family's master has ended; read it sooner"
    )]
    DataDropped {
        /// The ticket.
        ticket: Uuid,
        /// The vmid of the clone that left the data.
        vmid: u32,
    },
    /// A clone wants to leave more data than the limits allow.
    #[error(
        "join: {bytes} bytes exceed the {most} bytes that the limits of the clone, its ticket, its family and the ledger still allow; leave less, or read the data that others have left"
    )]
    TooMuchData {
        /// The length of the data, bytes.
        bytes: u64,
        /// How many bytes the limits still allow.
        most: u64,
    },
    /// Not all VMs arrived at the barrier in time.
    #[error("sync: {arrived} of {wanted} VMs arrived in time; the barrier stays usable")]
    BarrierTimeout {
        /// How many VMs had arrived at the end of the wait.
        arrived: u32,
        /// How many VMs have to arrive.
        wanted: u32,
    },
    /// Not all clones ended in time.
    #[error("join: {live} clones have not ended in time")]
    JoinTimeout {
        /// How many clones had not ended.
        live: u32,
    },
}
