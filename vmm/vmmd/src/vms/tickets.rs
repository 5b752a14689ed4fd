//! The host's [ledger](crate::plan::ledger) with a lock around it: shares of clones, tickets of guests.
//!
//! It is in memory. A `vmmd` that starts finds the tickets of the clones that run; those that were not used are lost.

use super::{Host, Vm, clone::COUNT, error::Error};
use crate::{
    plan::ledger::{Ask, Ledger, LedgerError},
    store::record::Record,
};
use patina_abi::link::{TicketArgs, TicketView};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};
use uuid::Uuid;

/// Longest that a guest may wait for a ticket.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How many clones are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// So many.
    Count(u32),
    /// As many as a ticket is for.
    Ticket(Uuid),
}

/// The ledger, shared.
#[derive(Debug, Clone)]
pub struct Tickets(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    // Something was given back.
    freed: Notify,
}

/// One clone's share of the host; given back when dropped.
#[derive(Debug)]
pub struct Share {
    tickets: Tickets,
    ticket: Option<Uuid>,
    held: bool,
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.held {
            self.tickets.lock().leave(self.ticket);
            self.tickets.0.freed.notify_waiters();
        }
    }
}

/// The shares of the clones of one call.
#[derive(Debug)]
pub struct Shares {
    /// One a clone.
    pub shares: Vec<Share>,
    /// The ticket that was used.
    pub ticket: Option<Uuid>,
}

impl Shares {
    /// Nothing was cloned: a ticket is as if it had not been used.
    pub fn give_back(mut self) {
        if let (Some(ticket), Some(first)) = (self.ticket, self.shares.first()) {
            first.tickets.lock().give_back(ticket);
            self.shares.iter_mut().for_each(|share| share.held = false);
        }
    }
}

impl Tickets {
    /// For a host with room for so many clones.
    #[must_use]
    pub fn new(clones_max: u32) -> Self {
        Self(Arc::new(Shared { ledger: Mutex::new(Ledger::new(clones_max)), freed: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // No code panics under this lock; if some did, the ledger itself is still whole.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, ticket: Option<Uuid>) -> Share {
        Share { tickets: self.clone(), ticket, held: true }
    }

    /// Takes the shares for clones of a family.
    ///
    /// # Errors
    /// There is no room, or the ticket cannot be used.
    pub fn admit(&self, family: Uuid, wanted: Wanted) -> Result<Shares, LedgerError> {
        let (count, ticket) = match wanted {
            Wanted::Count(count) => {
                self.lock().admit(count)?;
                (count, None)
            }
            Wanted::Ticket(uuid) => (self.lock().take(uuid, family)?, Some(uuid)),
        };
        Ok(Shares { shares: (0..count).map(|_| self.share(ticket)).collect(), ticket })
    }

    /// The share of a clone that was found running.
    #[must_use]
    pub fn find(&self, record: &Record) -> Share {
        self.lock().find(record.ticket, record.family, record.vcpus);
        self.share(record.ticket)
    }
}

impl Host {
    /// Grants a family a ticket, now or when there is room.
    ///
    /// # Errors
    /// It cannot be had, in this time or ever.
    pub(super) async fn request_ticket(&self, vm: &Vm, args: &TicketArgs) -> Result<TicketView, Error> {
        let (family, index) = (vm.record.family, vm.record.net.index);
        let ask = Ask::check(args, vm.record.vcpus, *COUNT.end())?;
        let busy = || Error::TicketTimeout { vms: args.min_vms.max(1), timeout_ms: args.timeout_ms };
        if !self.tickets.lock().could_grant(ask) {
            return Err(busy());
        }
        let grant = async {
            loop {
                // Before looking: what is given back while it looks is not missed.
                let mut freed = std::pin::pin!(self.tickets.0.freed.notified());
                freed.as_mut().enable();
                if let Some(view) = self.tickets.lock().grant(Uuid::new_v4(), family, ask)? {
                    return Ok(view);
                }
                freed.await;
            }
        };
        let patience = Duration::from_millis(args.timeout_ms).min(WAIT_MAX);
        let view = timeout(patience, grant).await.unwrap_or_else(|_| Err(busy()))?;
        tracing::info!(%family, ticket = view.uuid, view.vms, "a ticket is granted");
        self.table.wake_pool(index, family);
        Ok(view)
    }

    /// One ticket of a family.
    pub(super) fn ticket(&self, uuid: Uuid, family: Uuid) -> Result<TicketView, Error> {
        Ok(self.tickets.lock().show(uuid, family)?)
    }

    /// The tickets of a family.
    pub(super) fn list_tickets(&self, family: Uuid) -> Vec<TicketView> {
        self.tickets.lock().list(family)
    }

    /// How many VMs a family may clone at any moment with its tickets.
    pub(super) fn reserved(&self, family: Uuid) -> u32 {
        self.tickets.lock().reserved(family)
    }

    pub(super) fn forget_tickets(&self, family: Uuid) {
        self.tickets.lock().forget(family);
        self.tickets.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back_one_by_one_and_a_ticket_that_was_not_used_whole() {
        let tickets = Tickets::new(4);
        let family = Uuid::from_u128(1);
        let mut shares = tickets.admit(family, Wanted::Count(4)).unwrap().shares;
        assert!(tickets.admit(family, Wanted::Count(1)).is_err());
        shares.truncate(2);
        let args =
            TicketArgs { max_cpus: 9, min_vms: 2, min_cpus_per_vm: 1, timeout_ms: 0, request_id: None };
        let (uuid, ask) = (Uuid::from_u128(7), Ask::check(&args, 1, 256).unwrap());
        assert_eq!(tickets.lock().grant(uuid, family, ask).unwrap().unwrap().vms, 2);
        for _ in 0..2 {
            let taken = tickets.admit(family, Wanted::Ticket(uuid)).unwrap();
            assert_eq!((taken.shares.len(), tickets.lock().reserved(family)), (2, 0));
            taken.give_back();
            assert_eq!(tickets.lock().reserved(family), 2);
        }
        drop(tickets.admit(family, Wanted::Ticket(uuid)).unwrap());
        assert_eq!(tickets.lock().show(uuid, family).unwrap().status, "released");
    }
}
