//! The pure core: commands in, effects out. No clock, socket or lock: time comes with each command.
//!
//! - [`api`]: what is said to the core and by it.
//! - [`ticket`]: a ticket, as it is stored.
//!
//! ```text
//!            grant           use            last clone ended
//!  waiting ─────────▶ granted ───▶ used ─────────────────────▶ released
//!     │                │  ▲  │      │                             ▲
//!     │ time is over,  │  │  │ TTL  │ its host went away          │ given back
//!     │ caller left    │  │  ▼      ▼                             │
//!     ▼                │  │ expired fenced                        │
//!  refused             └──┴───────────────────────────────────────┘
//!                     unuse: nothing was made
//! ```

pub mod api;
pub mod error;
pub mod state;
pub mod ticket;

use api::{Command, CoreError, Effect, Free, Named, Options, UnixMs};
use state::{Counts, HostState};
use ticket::Ticket;
use uuid::Uuid;

/// The ledger of tickets and hosts, the queue of requests, and who waits for whom.
#[derive(Debug)]
pub struct Core {
    options: Options,
}

impl Core {
    /// A core that goes on from what is stored; hosts register anew.
    #[must_use]
    pub fn new(options: Options, stored: Vec<Ticket>, now: UnixMs) -> Self {
        drop((stored, now));
        Self { options }
    }

    /// Carries out a command; what it brings is appended to the effects.
    pub fn apply(&mut self, now: UnixMs, command: Command, effects: &mut Vec<Effect>) {
        drop((now, command, effects, &self.options));
    }

    /// When [`Command::Tick`] has work to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        None
    }

    /// A ticket.
    ///
    /// # Errors
    /// It is unknown, or another family's.
    pub fn ticket(&self, named: Named) -> Result<&Ticket, CoreError> {
        Err(CoreError::Unknown(named.id))
    }

    /// Tickets in the order of granting, of a family or of all, after one that was the last of a page.
    #[must_use]
    pub fn tickets(&self, family: Option<Uuid>, after: Option<(UnixMs, Uuid)>, most: usize) -> Vec<&Ticket> {
        drop((family, after, most));
        Vec::new()
    }

    /// All hosts, by their numbers.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostState> {
        Vec::new()
    }

    /// How many clones of a ticket have not ended.
    #[must_use]
    pub fn live(&self, ticket: &Ticket) -> u32 {
        u32::try_from(ticket.live().count()).unwrap_or(u32::MAX)
    }

    /// What is free of all hosts that live, and for how many VMs of a size there is room.
    #[must_use]
    pub fn free(&self, vcpus: u32, memory_mib: u32) -> Free {
        drop((vcpus, memory_mib));
        Free::default()
    }

    /// How many there are of what.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
}
