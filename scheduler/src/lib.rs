//! Tickets: reservations of VMs on hosts, and what the VMs of a ticket do together.
//!
//! - [`core`]: the pure part: what is granted, placed, queued, met and joined. No clock, socket or lock.

pub mod core;
