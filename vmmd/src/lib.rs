//! The daemon of a Patina host.
//!
//! - [`daemon`]: its life ([`options`] in): lock the state, take over what runs, serve, stop and
//!   leave the VMs running.
//! - [`grpc`]: the operator's interface, `patina.v1.Vmmd`.
//! - [`cluster`]: the scheduler, in this process or elsewhere; [`events`], [`metrics`]: what
//!   happens, for those who watch.
//! - [`vms`]: the host's VMs: making, supervising, ending and adopting them.
//! - [`pager`]: the host's pager, which fills the memory of VMs while they run.
//! - [`plan`]: what is decided without I/O: names, addresses, states.
//! - [`process`], [`net`], [`store`]: `vmm` processes, bridges and ports, files; [`process_id`]: a
//!   process for good; [`clock`]: the time of day.
//!
//! ```text
//!  vmctl ──gRPC──▶ grpc ──▶ vms ──spawn, control socket──▶ vmm (one process a VM)
//!                            ├──▶ net    bridge, tap, published ports
//!                            └──▶ store  vm.json: what a new vmmd adopts
//! ```

pub mod clock;
pub mod cluster;
pub mod daemon;
pub mod events;
pub mod grpc;
pub mod identity;
pub mod metrics;
pub mod net;
pub mod options;
pub mod pager;
pub mod plan;
pub mod process;
pub mod process_id;
pub mod store;
pub mod sys;
pub mod vms;
