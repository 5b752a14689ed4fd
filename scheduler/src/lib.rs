//! Tickets: reservations of VMs on hosts, and what the VMs of a ticket do together.
//!
//! A call's way: [`grpc`] checks it, [`engine`] has [`core`] decide and [`store`] write, then answers.
//!
//! - [`core`]: the pure part: what is granted, placed, queued, met and joined. No clock, socket or lock.
//! - [`store`]: where the ledger is kept.
//! - [`engine`]: the one owner of core and store.
//! - [`grpc`]: the calls of `patina.v1.Scheduler`.
//! - [`client`]: how a scheduler is called. [`host`]: what a host does with it. [`embedded`]: a scheduler in the same process.
//! - [`metrics`]: what is counted.
//! - [`serve`]: the scheduler's life ([`options`] in).

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
