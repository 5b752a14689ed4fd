//! The vmm's conversations: with `vmmd` on the control socket, with the guest's agent on its link.
//!
//! One thread, the process's main one, waits for all of them and for what the other threads have to tell.
//!
//! - [`mailbox`]: how the other threads tell it.
//! - [`lines`]: JSON lines on a non-blocking socket, bounded both ways.
//! - [`session`]: what is said, as pure logic: identity, ready, requests and replies, preparing for a freeze.
//! - `fresh`: the clock and the randomness that it needs.
//! - [`opening`]: the first line of a connection and its answer.
//! - [`vm`]: what it needs of the VM around it.
//! - [`server`]: the sockets around it.

pub mod clock;
mod fresh;
pub mod lines;
pub mod mailbox;
pub mod opening;
pub mod server;
pub mod session;
pub mod vm;
