//! The control thread: talks to `vmmd` on the control socket and to the guest's agent on its link.
//!
//! It is the main thread of the process. It waits for both peers and for events from the other
//! threads, and never for the guest's memory.
//!
//! - [`mailbox`]: events from the other threads.
//! - [`lines`]: JSON lines on a non-blocking socket, bounded both ways.
//! - [`session`]: the protocol as pure logic: identity, ready, requests and replies, preparation
//!   for a freeze.
//! - `fresh`: the clock and the randomness that the session sends.
//! - `clock`: notices when the host's clock is set.
//! - [`orders`]: the thread that works on the VM.
//! - [`opening`]: the first line of a connection and its answer.
//! - [`vm`]: the traits of the VM that the control thread calls.
//! - [`server`]: the sockets.

pub mod clock;
mod fresh;
pub mod lines;
pub mod mailbox;
pub mod opening;
pub mod orders;
pub mod server;
pub mod session;
pub mod vm;
