//! Who may have how many clones on this host: tickets, and clones that are made without one.
//!
//! ```text
//!            take             last clone gone
//!  granted ─────────▶ used ───────────────────▶ released
//!     ▲  nothing cloned │
//!     └────────────────-┘
//! ```
//!
//! A granted ticket holds its share until it is used, a used one as much as it has clones. No clock and no lock in here; a
//! cluster's scheduler does the same for many hosts.

use patina_abi::link::{TicketArgs, TicketView};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most tickets of a family that are not released; and so many are remembered in all.
pub const TICKETS_MAX: usize = 64;

/// What the host has given to whom.
#[derive(Debug)]
pub struct Ledger {
    most: u32,
    loose: u32,
    tickets: BTreeMap<Uuid, Ticket>,
    granted: u64,
}

#[derive(Debug)]
struct Ticket {
    family: Uuid,
    vms: u32,
    vcpus: u32,
    min_cpus_per_vm: u32,
    state: State,
    /// The order in which they were granted.
    serial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Granted,
    Used { live: u32 },
    Released,
}

/// What a family asks for, as it can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    least: u32,
    most: u32,
    vcpus: u32,
    min_cpus_per_vm: u32,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// No such ticket.
    #[error(
        "use ticket {0}: this host knows none of that number; request one (tickets that were not used are lost when vmmd restarts)"
    )]
    Unknown(Uuid),
    /// Another family's.
    #[error("use ticket {0}: it belongs to another family")]
    Foreign(Uuid),
    /// Clones were made with it.
    #[error("use ticket {0}: it was used already; request another one")]
    Used(Uuid),
    /// Its last clone is gone.
    #[error("use ticket {0}: it was released; request another one")]
    Released(Uuid),
    /// The host has not so many.
    #[error(
        "make {count} clones: this host has room for {free} of at most {most}; end some, or start vmmd with a greater --max-vms"
    )]
    Full {
        /// As asked for.
        count: u32,
        /// What is left.
        free: u32,
        /// Of all.
        most: u32,
    },
    /// The numbers of a request cannot be.
    #[error("request a ticket: {0}")]
    Ask(AskError),
    /// The family has too many tickets.
    #[error(
        "request a ticket: the family has {TICKETS_MAX} tickets that are not released, the most; clone with them, or end their clones"
    )]
    TooMany,
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// None of the family's VMs has so many CPUs.
    #[error(
        "the family's VMs have {vcpus} vCPUs each, fewer than {min_cpus_per_vm}; ask for at most that, or make the master with --vcpus {min_cpus_per_vm}"
    )]
    Cpus {
        /// Of each VM.
        vcpus: u32,
        /// As asked for.
        min_cpus_per_vm: u32,
    },
    /// The CPUs are not enough for the VMs.
    #[error(
        "{max_cpus} CPUs are {most} VMs of {vcpus} vCPUs, fewer than {least}; allow more CPUs or ask for fewer VMs"
    )]
    Vms {
        /// As asked for.
        max_cpus: u32,
        /// That they are enough for.
        most: u32,
        /// Of each VM.
        vcpus: u32,
        /// As asked for.
        least: u32,
    },
}

impl Ask {
    /// Checks a request of a VM with `vcpus` vCPUs. A ticket is for `clones_max` VMs at most.
    ///
    /// # Errors
    /// It can never be met, whoever leaves.
    pub fn check(args: &TicketArgs, vcpus: u8, clones_max: u32) -> Result<Self, LedgerError> {
        let vcpus = u32::from(vcpus.max(1));
        let (max_cpus, least) = (args.max_cpus, args.min_vms.max(1));
        if args.min_cpus_per_vm > vcpus {
            let min_cpus_per_vm = args.min_cpus_per_vm;
            return Err(LedgerError::Ask(AskError::Cpus { vcpus, min_cpus_per_vm }));
        }
        let most = (max_cpus / vcpus).min(clones_max);
        if most < least {
            return Err(LedgerError::Ask(AskError::Vms { max_cpus, most, vcpus, least }));
        }
        Ok(Self { least, most, vcpus, min_cpus_per_vm: args.min_cpus_per_vm })
    }
}

impl Ledger {
    /// A host with room for `most` clones.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self { most, loose: 0, tickets: BTreeMap::new(), granted: 0 }
    }

    fn held(&self) -> u32 {
        let held = |ticket: &Ticket| match ticket.state {
            State::Granted => ticket.vms,
            State::Used { live } => live,
            State::Released => 0,
        };
        self.loose + self.tickets.values().map(held).sum::<u32>()
    }

    fn free(&self) -> u32 {
        // Clones that an earlier vmmd made may be more than this one allows.
        self.most.saturating_sub(self.held())
    }

    /// Grants a ticket to a family, if as many VMs as it needs can be had now. `uuid` is new.
    ///
    /// # Errors
    /// The family has too many.
    pub fn grant(&mut self, uuid: Uuid, family: Uuid, ask: Ask) -> Result<Option<TicketView>, LedgerError> {
        let vms = ask.most.min(self.free());
        if vms < ask.least {
            return Ok(None);
        }
        self.make_room(family)?;
        let Ask { vcpus, min_cpus_per_vm, .. } = ask;
        let (state, serial) = (State::Granted, self.granted);
        let ticket = Ticket { family, vms, vcpus, min_cpus_per_vm, state, serial };
        let view = view(uuid, &ticket);
        self.granted += 1;
        self.tickets.insert(uuid, ticket);
        Ok(Some(view))
    }

    /// Whether a request can be met at all, were all others gone.
    #[must_use]
    pub fn could_grant(&self, ask: Ask) -> bool {
        ask.least <= self.most
    }

    /// Forgets the family's oldest released ticket when it has as many as are remembered.
    fn make_room(&mut self, family: Uuid) -> Result<(), LedgerError> {
        let own = || self.tickets.iter().filter(|(_, ticket)| ticket.family == family);
        if own().count() < TICKETS_MAX {
            return Ok(());
        }
        let released = own().filter(|(_, ticket)| ticket.state == State::Released);
        let oldest = released.min_by_key(|(_, ticket)| ticket.serial).map(|(uuid, _)| *uuid);
        match oldest {
            Some(uuid) => {
                self.tickets.remove(&uuid);
                Ok(())
            }
            None => Err(LedgerError::TooMany),
        }
    }

    fn own(&mut self, uuid: Uuid, family: Uuid) -> Result<&mut Ticket, LedgerError> {
        match self.tickets.get_mut(&uuid) {
            None => Err(LedgerError::Unknown(uuid)),
            Some(ticket) if ticket.family != family => Err(LedgerError::Foreign(uuid)),
            Some(ticket) => Ok(ticket),
        }
    }

    /// Uses a ticket: so many clones are made now, and each of them [leaves](Self::leave) once.
    ///
    /// # Errors
    /// It is not there, not the family's, or not fresh.
    pub fn take(&mut self, uuid: Uuid, family: Uuid) -> Result<u32, LedgerError> {
        let ticket = self.own(uuid, family)?;
        match ticket.state {
            State::Granted => {
                ticket.state = State::Used { live: ticket.vms };
                Ok(ticket.vms)
            }
            State::Used { .. } => Err(LedgerError::Used(uuid)),
            State::Released => Err(LedgerError::Released(uuid)),
        }
    }

    /// Nothing was cloned with a ticket that was taken: it is as before.
    pub fn give_back(&mut self, uuid: Uuid) {
        if let Some(ticket) = self.tickets.get_mut(&uuid) {
            ticket.state = State::Granted;
        }
    }

    /// So many clones are made now without a ticket, and each of them [leaves](Self::leave) once.
    ///
    /// # Errors
    /// There is no room.
    pub fn admit(&mut self, count: u32) -> Result<(), LedgerError> {
        let free = self.free();
        if count > free {
            return Err(LedgerError::Full { count, free, most: self.most });
        }
        self.loose += count;
        Ok(())
    }

    /// A clone that runs was found by a `vmmd` that starts, made with or without a ticket.
    pub fn find(&mut self, ticket: Option<Uuid>, family: Uuid, vcpus: u8) {
        let Some(uuid) = ticket else {
            self.loose += 1;
            return;
        };
        let serial = self.granted;
        let found = self.tickets.entry(uuid).or_insert_with(|| {
            let vcpus = u32::from(vcpus);
            // How many it was for, and what was asked for, nobody knows any more: what lives is what it is.
            Ticket { family, vms: 0, vcpus, min_cpus_per_vm: vcpus, state: State::Used { live: 0 }, serial }
        });
        found.vms += 1;
        found.state = State::Used { live: found.vms };
        self.granted += 1;
    }

    /// A clone is gone, or was never made.
    pub fn leave(&mut self, ticket: Option<Uuid>) {
        let Some(uuid) = ticket else {
            self.loose = self.loose.saturating_sub(1);
            return;
        };
        // With its family a ticket may be forgotten before its last clone leaves.
        let Some(ticket) = self.tickets.get_mut(&uuid) else { return };
        if let State::Used { live } = ticket.state {
            let live = live.saturating_sub(1);
            ticket.state = if live == 0 { State::Released } else { State::Used { live } };
        }
    }

    /// A family has ended: its tickets go.
    pub fn forget(&mut self, family: Uuid) {
        self.tickets.retain(|_, ticket| ticket.family != family);
    }

    /// How many VMs a family may clone at any moment with the tickets that it has.
    #[must_use]
    pub fn reserved(&self, family: Uuid) -> u32 {
        let granted = |ticket: &&Ticket| ticket.family == family && ticket.state == State::Granted;
        self.tickets.values().filter(granted).map(|ticket| ticket.vms).sum()
    }

    /// One ticket.
    ///
    /// # Errors
    /// It is not there, or not the family's.
    pub fn show(&mut self, uuid: Uuid, family: Uuid) -> Result<TicketView, LedgerError> {
        self.own(uuid, family).map(|ticket| view(uuid, ticket))
    }

    /// A family's tickets, in the order in which they were granted.
    #[must_use]
    pub fn list(&self, family: Uuid) -> Vec<TicketView> {
        let mut own: Vec<_> = self.tickets.iter().filter(|(_, ticket)| ticket.family == family).collect();
        own.sort_by_key(|(_, ticket)| ticket.serial);
        own.into_iter().map(|(uuid, ticket)| view(*uuid, ticket)).collect()
    }
}

fn view(uuid: Uuid, ticket: &Ticket) -> TicketView {
    let status = match ticket.state {
        State::Granted => "granted",
        State::Used { .. } => "used",
        State::Released => "released",
    };
    TicketView {
        uuid: uuid.to_string(),
        status: status.to_owned(),
        cpus: ticket.vms.saturating_mul(ticket.vcpus),
        vms: ticket.vms,
        min_cpus_per_vm: ticket.min_cpus_per_vm,
    }
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod tests;
