//! A host: its resources, how much of them is reserved, and whether it is alive.

use super::{
    api::{Closed, HostInfo, Running, UnixMs},
    present::Image,
    record::{HostRecord, Scheduling},
    room::{Held, Room},
    state::{HostState, Standing},
    ticket::HostId,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Whether a host is connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// It has tickets from before the scheduler's start and has not connected yet.
    #[default]
    Expected,
    /// It is connected.
    Up,
    /// It was connected, and is silent: it may come back.
    Suspect,
    /// It was given up: its tickets are fenced. It may come back all the same.
    Lost,
}

/// A host, with what is held of it.
#[derive(Debug, Default)]
pub struct Host {
    /// The host, as it described itself; None: it has not yet.
    pub info: Option<HostInfo>,
    /// Whether it is connected.
    pub link: Link,
    /// The epoch of its registration; 0: none yet.
    pub epoch: u64,
    /// When it last gave a sign of life.
    pub seen: UnixMs,
    /// The memory that was really free there then, MiB; None: it is not known.
    pub free_memory_mib: Option<u64>,
    /// Since when its link is what it is.
    pub since: UnixMs,
    /// What an operator wants of it.
    pub scheduling: Scheduling,
    /// Since when.
    pub scheduling_since: UnixMs,
    /// When it is suspect, given up, or forgotten, whichever comes next.
    pub deadline: Option<UnixMs>,
    /// Tickets that hold some of it.
    pub tickets: BTreeSet<Uuid>,
    /// The families whose master lives there, as it has said it last; None: it has not.
    pub masters: Option<BTreeSet<Uuid>>,
    /// Those of them of which no other host said so before, unless that was given up: a family has
    /// one master.
    pub believed_masters: BTreeSet<Uuid>,
    /// The kernels and root file systems that are there.
    pub images: BTreeSet<Image>,
    /// Clones that run without a ticket, by the ticket that they had and vmid; with that ticket's
    /// epoch.
    pub ghosts: BTreeMap<(Uuid, u32), (Running, u64)>,
    /// What it has; nothing before it registers.
    pub capacity: Room,
    /// What is held of it.
    pub held: Held,
}

impl Host {
    /// What is free of it.
    pub fn room(&self) -> Room {
        self.capacity.without(&self.held)
    }

    /// Clones that run there without a ticket, and the epoch of the ticket that they had.
    pub fn ghosts(&self) -> impl Iterator<Item = (&Running, u64)> {
        self.ghosts.values().map(|(ghost, epoch)| (ghost, *epoch))
    }

    /// Whether the master of a family lives there, as it has said it last.
    pub fn has_master(&self, family: Uuid) -> bool {
        self.masters.as_ref().is_some_and(|masters| masters.contains(&family))
    }

    /// The same, and no other host has said it before.
    pub fn is_home_of(&self, family: Uuid) -> bool {
        self.has_master(family) && self.believed_masters.contains(&family)
    }

    /// Whether it lives, as far as is known.
    pub fn standing(&self) -> Standing {
        match self.link {
            Link::Up => Standing::Up,
            Link::Expected | Link::Suspect => Standing::Suspect,
            Link::Lost => Standing::Lost,
        }
    }

    /// Whether it may be granted something.
    pub fn is_usable(&self) -> bool {
        self.link == Link::Up && self.scheduling == Scheduling::Open
    }

    /// Whether it may be granted something again.
    pub fn is_away(&self) -> bool {
        !self.is_usable() && self.link != Link::Lost
    }

    /// As what it counts where it is granted nothing.
    pub fn closed(&self) -> Closed {
        let is = |standing| u64::from(self.standing() == standing && !self.is_usable());
        Closed { suspect: is(Standing::Suspect), cordoned: is(Standing::Up), lost: is(Standing::Lost) }
    }

    /// What is stored of it.
    pub fn record(&self, id: HostId) -> Option<HostRecord> {
        let is_stored = self.info.is_some() || self.scheduling != Scheduling::Open;
        is_stored.then(|| HostRecord {
            id,
            info: self.info.clone(),
            scheduling: self.scheduling,
            scheduling_unix_ms: self.scheduling_since,
            lost_unix_ms: (self.link == Link::Lost).then_some(self.since),
        })
    }

    /// For lists: if it has registered.
    pub fn state(&self) -> Option<HostState> {
        let u32_of = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some(HostState {
            info: self.info.clone()?,
            standing: self.standing(),
            since_unix_ms: self.since,
            scheduling: self.scheduling,
            scheduling_unix_ms: self.scheduling_since,
            lost_unix_ms: self.deadline.filter(|_| self.standing() == Standing::Suspect),
            epoch: self.epoch,
            cpus: self.capacity.cpus,
            memory_mib: self.capacity.memory_mib,
            held_cpus: u32_of(self.held.cpus),
            held_memory_mib: self.held.memory_mib,
            held_vms: u32_of(self.held.vms),
            seen_unix_ms: self.seen,
            free_memory_mib: self.free_memory_mib,
            images: self.images.clone(),
        })
    }
}
