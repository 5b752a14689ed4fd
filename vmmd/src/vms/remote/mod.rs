//! Clones on other hosts. The vmmd of the VM that clones freezes it, and calls the vmmds of the
//! other hosts of the ticket (`patina.v1.HostPeer`). Their clones run before their memory has
//! arrived, as those of a snapshot do; it comes from the pager of the calling host.
//!
//! ```text
//!  host of the parent                                   another host of the ticket
//!  vmids ▶ freeze ▶ publish layers ▶ lease ── SpawnClones ──▶ network ▶ names ▶ UseTicket ▶ start
//!                        pager ◀──── connections of their own ─────── pager
//! ```
//!
//! - [`send`]: has clones made on another host. [`receive`]: makes clones of a VM of another host,
//!   whose family lives here from then on: [`join`].
//! - [`lease`]: the layers that other hosts read here. [`pages`]: how their pagers get connections
//!   to the one here.
//! - [`holders`]: finds another host that has a layer, when the one that lends it fails. [`lend`]:
//!   lends it.
//! - [`missing`]: has another host get a kernel or root file system that it lacks. [`fetch`]: gets
//!   it. [`give`]: gives it.
//! - [`states`]: the VMs of a family on all hosts, for a guest that lists them.

pub mod fetch;
pub mod give;
pub mod holders;
pub mod join;
pub mod lease;
pub mod lend;
pub mod missing;
pub mod pages;
pub mod receive;
pub mod send;
pub mod states;
