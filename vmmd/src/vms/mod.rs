//! The VMs of a host.
//!
//! - [`host`]: the host; [`vm`]: one VM.
//! - [`create`](mod@create): creates a VM; `baseline`: with CPU features that several hosts have.
//!   [`clone`](mod@clone): clones a running VM into [`warm`] VMs. [`warm_up`] creates those, and
//!   [`pool`] keeps some ready. [`prefault`]: the pages that a clone will write first.
//!   [`remove`](mod@remove): removes ended VMs.
//! - [`remote`]: clones on other hosts, and clones here of VMs of other hosts.
//!   [`remote_data`]: what that is made of. [`fetched_data`]: kernels and root file systems that
//!   come from other hosts.
//! - `members`: tells other hosts which VMs of a family run here, and hears which run there.
//!   [`members_data`]: what that is made of.
//! - [`snapshots`]: keeps VMs on the disk, and restores them. [`snapshot_data`]: what that is made
//!   of.
//! - [`booted`]: keeps VMs that have just booted as images, for the next ones to start from.
//!   [`image_cache`]: where these are.
//! - [`spares`]: vmms of no family yet, for VMs that begin one; `spare_up` creates them.
//! - [`supervise`]: one task per running VM, which serves its vmm and cleans up after its end.
//! - [`adopt`]: takes over the VMs of an earlier `vmmd`. `register`: tells the scheduler what runs,
//!   and carries out its kill orders. `masters`: families whose master is about to start.
//!   `keep_record`: writes how VMs ended. `making`: ends the vmms that are being made when vmmd
//!   stops.
//! - [`table`]: names and families in use. [`family`]: numbers, vmids and bridges of families.
//!   [`images`]: kernels and root file systems. `parts`: the configuration of a vmm.
//! - [`guest`]: calls of guests. [`tickets`]: calls to the scheduler; `family_tickets`: those of
//!   one family. [`gauges`]: how many VMs there are, and what they use.

pub mod adopt;
mod baseline;
mod blocking;
pub mod booted;
pub mod clone;
pub mod create;
pub mod error;
pub mod family;
mod family_tickets;
pub mod fetched_data;
pub mod gauges;
pub mod guest;
pub mod host;
pub mod image_cache;
pub mod images;
mod keep_record;
mod making;
mod masters;
mod members;
pub mod members_data;
mod parts;
pub mod pool;
pub mod prefault;
mod publish;
mod register;
pub mod remote;
pub mod remote_data;
pub mod remove;
pub mod snapshot_data;
pub mod snapshots;
mod spare_up;
pub mod spares;
pub mod supervise;
pub mod table;
pub mod tickets;
pub mod vm;
pub mod warm;
pub mod warm_up;

pub use host::{Host, Settings};
pub use vm::{Status, Until, Vm};
