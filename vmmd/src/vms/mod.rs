//! The VMs of a host.
//!
//! - [`host`]: the host; [`vm`]: a VM of it.
//! - [`create`](mod@create): makes one, or leaves nothing; [`clone`](mod@clone): makes copies of one that runs, out of
//!   [`warm`] VMs, which [`warm_up`] makes and of which [`pool`] keeps some ready; [`prefault`]: what helps clones to start;
//!   [`remove`](mod@remove): forgets one that has ended, and by itself the oldest clones that have.
//! - [`supervise`]: one task per VM that runs: what its vmm says, its end, the cleaning up.
//! - [`adopt`]: takes over what an earlier `vmmd` left; `register`: tells the scheduler what runs, and ends what it orders;
//!   `keep_record`: writes how VMs ended.
//! - [`table`]: names and families in use; [`family`]: numbers, vmids and bridges of families;
//!   [`images`]: the files a VM is made of; `parts`: what its vmm is given; [`guest`]: calls of guests; [`tickets`]: the way to the scheduler,
//!   `family_tickets` those of one family; [`gauges`]: what there is, in numbers.

pub mod adopt;
mod blocking;
pub mod clone;
pub mod create;
pub mod error;
pub mod family;
mod family_tickets;
pub mod gauges;
pub mod guest;
pub mod host;
pub mod images;
mod keep_record;
mod parts;
pub mod pool;
pub mod prefault;
mod register;
pub mod remove;
pub mod supervise;
pub mod table;
pub mod tickets;
pub mod vm;
pub mod warm;
pub mod warm_up;

pub use host::{Host, Settings};
pub use vm::{Status, Until, Vm};
