//! Why the core says no: each with what it is about, and what to do.

use super::api::{FAMILY_TICKETS_MAX, Free};
use super::ticket::HostId;
use uuid::Uuid;

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// No such ticket.
    #[error("use ticket {0}: the scheduler knows none of that number; request one")]
    Unknown(Uuid),
    /// Another family's.
    #[error("use ticket {0}: it belongs to another family")]
    Foreign(Uuid),
    /// Clones were made with it.
    #[error("use ticket {0}: it was used already; request another one")]
    Used(Uuid),
    /// It was given back, or its clones have ended.
    #[error("use ticket {0}: it was released; request another one")]
    Released(Uuid),
    /// It was not used in time.
    #[error(
        "use ticket {0}: it expired before it was used; request another one, and use it sooner or ask for a longer TTL"
    )]
    Expired(Uuid),
    /// Its host went away.
    #[error("use ticket {0}: its host did not answer the scheduler in time; request another one")]
    Fenced(Uuid),
    /// It has no clones.
    #[error("meet at ticket {0}: nothing was cloned with it yet; clone with it first")]
    NotUsed(Uuid),
    /// It is for another host.
    #[error("use ticket {ticket}: it has no VMs on host {host}")]
    OtherHost {
        /// The ticket.
        ticket: Uuid,
        /// Who wanted to use it.
        host: HostId,
    },
    /// More clones than VMs.
    #[error(
        "use ticket {ticket}: it has {has} VMs on this host, fewer than {wanted}; clone fewer, or request a larger one"
    )]
    SmallTicket {
        /// The ticket.
        ticket: Uuid,
        /// Clones.
        wanted: u32,
        /// VMs.
        has: u32,
    },
    /// No number for a clone.
    #[error("clone: vmid {0} is a master's, the parent's, given twice, or another clone's already")]
    BadVmid(u32),
    /// No number at all, or not as many as VMs.
    #[error("clone: {given} vmids do not do; give {wanted}")]
    BadVmids {
        /// As it was given.
        given: u32,
        /// At least so many.
        wanted: u32,
    },
    /// The caller's knowledge is old.
    #[error("use ticket {ticket}: epoch {given} is not its epoch {current} any more; look at it again")]
    StaleEpoch {
        /// The ticket.
        ticket: Uuid,
        /// As it was given.
        given: u64,
        /// As it is.
        current: u64,
    },
    /// The host was fenced, or has registered anew.
    #[error("host {host}: registration {given} is over; register again")]
    StaleHost {
        /// Which.
        host: HostId,
        /// As it was given.
        given: u64,
    },
    /// No such host.
    #[error("host {0} is not registered with the scheduler")]
    UnknownHost(HostId),
    /// Not of the ticket, or it has ended.
    #[error("VM {vmid} is neither a live clone of ticket {ticket} nor the VM that cloned with it")]
    UnknownVm {
        /// The ticket.
        ticket: Uuid,
        /// As it was given.
        vmid: u32,
    },
    /// A clone wants what only the VM that cloned can.
    #[error("join ticket {ticket}: VM {vmid} did not clone with it; a clone joins without naming a ticket")]
    NotParent {
        /// The ticket.
        ticket: Uuid,
        /// Who asked.
        vmid: u32,
    },
    /// The VM that cloned wants to leave as a clone.
    #[error(
        "join: VM {vmid} is no clone of ticket {ticket}; the VM that cloned waits for its clones with `join TICKET`"
    )]
    NotClone {
        /// The ticket.
        ticket: Uuid,
        /// Who asked.
        vmid: u32,
    },
    /// Clones of that family that are not there.
    #[error("kill: the family has no live clone with vmid {0}")]
    NoClone(u32),
    /// Not even an empty cluster has so much.
    #[error(
        "request a ticket: {min_vms} VMs of {vcpus} CPUs and {memory_mib} MiB are more than all hosts have; ask for fewer"
    )]
    Impossible {
        /// Fewest.
        min_vms: u32,
        /// Of each.
        vcpus: u32,
        /// Of each.
        memory_mib: u32,
    },
    /// CPUs do not do.
    #[error(
        "request a ticket: {max_cpus} CPUs are {most} VMs of {vcpus} CPUs, fewer than {min_vms}; allow more CPUs or ask for fewer VMs"
    )]
    FewCpus {
        /// As asked for.
        max_cpus: u32,
        /// What they are enough for.
        most: u32,
        /// Of each VM.
        vcpus: u32,
        /// Fewest.
        min_vms: u32,
    },
    /// VMs are smaller than wanted.
    #[error(
        "request a ticket: the family's VMs have {vcpus} CPUs each, fewer than {min_cpus_per_vm}; ask for at most that"
    )]
    SmallVms {
        /// Of each VM.
        vcpus: u32,
        /// As asked for.
        min_cpus_per_vm: u32,
    },
    /// Not in time.
    #[error("request a ticket: {min_vms} VMs are not free; {} CPUs, {} MiB and room for {} such VMs are; end some, wait longer, or ask for fewer", free.cpus, free.memory_mib, free.vms)]
    NoCapacity {
        /// Fewest.
        min_vms: u32,
        /// What is free.
        free: Free,
    },
    /// Too many tickets of one family.
    #[error(
        "request a ticket: the family has {FAMILY_TICKETS_MAX} tickets, the most; release some, or end their clones"
    )]
    TooManyTickets,
    /// Too many calls of one family.
    #[error("{call}: {most} such calls of the family wait already, the most; end some of them")]
    TooManyWaiting {
        /// For what they wait.
        call: &'static str,
        /// The limit.
        most: usize,
    },
    /// It was kept for a while.
    #[error(
        "read what VM {vmid} of ticket {ticket} left: it is not kept any more, because it was read some time ago or its family's master has ended; read it sooner"
    )]
    DataDropped {
        /// The ticket.
        ticket: Uuid,
        /// The clone.
        vmid: u32,
    },
    /// Too much data.
    #[error(
        "join: {bytes} bytes are more than the {most} that are left for them of the limits of a clone, a ticket, a family and the ledger; leave less, or read what others have left"
    )]
    TooMuchData {
        /// As it came.
        bytes: u64,
        /// What may come.
        most: u64,
    },
    /// The barrier's time is over.
    #[error("sync: {arrived} of {wanted} VMs arrived in time; the barrier stays usable")]
    BarrierTimeout {
        /// Who was there.
        arrived: u32,
        /// Who should have been.
        wanted: u32,
    },
    /// The join's time is over.
    #[error("join: {live} clones have not ended in time")]
    JoinTimeout {
        /// How many.
        live: u32,
    },
}
