//! Layers of other hosts: their pagers serve runs, and this one serves theirs.
//!
//! ```text
//!  a host that needs runs                               a host that has them
//!  reader of faults ▶ Remote (PageSource) ▶ Lane ── request ──▶ Service ▶ memfd, or its source
//!  VMs go on ◀ memfd ◀ digest ◀ receiver thread   ◀── answer ───
//! ```
//!
//! `vmmd` makes the connections and gives them to both pagers: the pager's jail cannot. There are
//! two for each pair of hosts: what VMs wait for goes over one ([`Class::Demand`]), what is fetched
//! ahead over the other, so that a demand never waits behind a fill. [`tls`] protects them;
//! [`wire`] has what goes over them. Nothing that comes from a peer is trusted: a run counts only
//! when its digest is right, as with any other source. Over a slow link runs go compressed, if
//! `vmmd` says so (`compression`).
//!
//! [`Class::Demand`]: crate::source::Class::Demand

pub mod client;
mod compression;
mod service;
pub mod tls;
pub mod wire;

pub use client::{Peer, Remote};
pub(crate) use service::Service;

use std::time::Duration;

/// How long two pagers may take to agree on keys.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
