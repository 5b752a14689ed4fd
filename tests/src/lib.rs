//! The harness: a real `vmmd` with real guests, cleaned away afterwards.
//!
//! - [`setup`]: which binaries and images are used, and what the machine lacks to run guests.
//! - [`host`]: [`host::Host`], a private `vmmd` with its own socket and state directory.
//! - [`scheduler`]: a scheduler of its own for several hosts.
//! - [`vm`]: [`vm::Vm`], one VM of it: run programs in it, look at it, end it.
//! - [`process`]: running a program with a deadline, collecting what it prints.
//! - [`interrupt`]: Ctrl-C cleans up too; [`keeper`]: and so does a harness that is killed.
//! - [`l1`]: the tests on an emulated host with hardware virtualization and another kernel.
//! - [`leftovers`]: processes and network interfaces that were not there before.
//! - [`memfds`]: the memory of guests and generations.
//!
//! Everything goes through `vmctl`, the command that users have, so that the tests tell what users see.
//! The `demo` and `bench` programs are built on the same harness.

mod daemon;
pub mod host;
pub mod interrupt;
pub mod keeper;
pub mod l1;
pub mod leftovers;
pub mod memfds;
mod place;
pub mod process;
pub mod scheduler;
pub mod setup;
pub mod vm;
