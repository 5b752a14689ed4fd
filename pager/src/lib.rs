//! The pager: the process that fills the layers of a host and answers the page faults of the VMs
//! that use them. `vmmd` starts it; [`patina_control::pager`] has the protocol.
//!
//! A layer is one sparse memfd for all VMs of the host. Each VM maps it privately and registers a
//! userfaultfd. The way of a fault:
//!
//! - [`workers`]: a reader reads it, and whatever else waits for the same VM.
//! - `serve`: what is known of the page decides. Data of a present run is mapped from the memfd,
//!   zero as the page of zeros. For an absent run the VM waits with all others that need it.
//! - `fetch`: the run is read at its source ([`source`]), checked, and put into the memfd. Then
//!   those who wait are answered.
//!
//! If the host that has a layer fails, another one takes its place (`switch`).
//!
//! [`layer`] has what is present, [`vm`] what a VM's addresses show, [`waiting`] who waits for
//! what, [`engine`] all of it, [`server`] the sockets, [`process`] the process from its start.

pub mod engine;
mod fetch;
pub mod layer;
mod lines;
mod parked;
pub mod peer;
mod pool;
pub mod process;
mod serve;
pub mod server;
pub mod source;
mod switch;
pub mod sys;
pub mod vm;
pub mod waiting;
pub mod workers;
