//! Tickets: reservations of VMs on hosts, and what the VMs of a ticket do together.
//!
//! The path of a call: [`grpc`] checks it, [`core`] decides and [`store`] writes, both within
//! [`engine`], which then answers.
//!
//! - [`core`]: the pure part: grants, placement, queue, barriers and joins. No clock, socket or
//!   lock.
//! - [`store`]: keeps the ledger.
//! - [`engine`]: the single owner of core and store.
//! - [`grpc`]: the calls of `patina.v1.Scheduler`.
//! - [`client`]: calls a scheduler. [`host`]: a host's side. [`embedded`]: a scheduler in the same
//!   process.
//! - [`metrics`]: counters and gauges.
//! - [`serve`]: the scheduler's start and stop, with the [`options`] of its command line.

pub mod client;
pub mod core;
pub mod embedded;
pub mod engine;
pub mod grpc;
pub mod host;
pub mod metrics;
pub mod options;
pub mod serve;
pub mod store;
