//! Tickets: reservations of VMs on hosts, and what the VMs of a ticket do together.
//!
//! - [`core`]: the pure part: what is granted, placed, queued, met and joined. No clock, socket or lock.
//! - [`store`]: where the ledger is kept.
//! - [`client`]: what hosts and operators use to talk to a scheduler.

pub mod client;
pub mod core;
pub mod store;
