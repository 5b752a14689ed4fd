//! The test harness: a real `vmmd` with real guests, cleaned up afterwards.
//!
//! - [`setup`]: the binaries and images in use, and what the machine lacks to run guests.
//! - [`host`]: [`host::Host`], a private `vmmd` with its own socket and state directory.
//! - [`scheduler`]: a private scheduler for several hosts.
//! - [`link`]: a network link between them that can be cut.
//! - [`switch`]: network namespaces for several hosts, on one Ethernet.
//! - [`hosts`]: three hosts, a scheduler and an operator there, who trust certificates.
//! - [`audit`]: whether what hosts have is what they and their scheduler say.
//! - [`vm`]: [`vm::Vm`], one VM of it: runs programs in it, examines it, ends it.
//! - [`process`]: runs a program with a deadline and collects its output.
//! - [`interrupt`]: cleans up after Ctrl-C; [`keeper`]: cleans up if the harness is killed.
//! - [`l1`]: the tests on an emulated host with hardware virtualization and another kernel.
//! - [`leftovers`]: processes and network interfaces that did not exist before.
//! - [`memfds`]: the memory of guests and generations.
//!
//! Everything goes through `vmctl`, the users' command, so the tests check what users see. The
//! `demo` and `bench` programs are built on the same harness.

pub mod audit;
mod daemon;
pub mod host;
pub mod hosts;
pub mod interrupt;
pub mod keeper;
pub mod l1;
pub mod leftovers;
pub mod link;
pub mod memfds;
mod place;
pub mod process;
pub mod scheduler;
pub mod setup;
pub mod switch;
pub mod vm;
