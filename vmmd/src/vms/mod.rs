//! The VMs of a host.
//!
//! - [`host`]: the host; [`vm`]: a VM of it.
//! - [`create`](mod@create): makes one, or leaves nothing; [`clone`](mod@clone): makes copies of one that runs, out of
//!   [`warm`] VMs, of which [`pool`] keeps some ready; [`touched`]: what helps clones to start;
//!   [`remove`](mod@remove): forgets one that has ended, and by itself the oldest clones that have.
//! - [`supervise`]: one task per VM that runs: what its vmm says, its end, the cleaning up.
//! - [`adopt`]: takes over what an earlier `vmmd` left.
//! - [`table`]: names and families in use; [`family`]: numbers, vmids and bridges of families;
//!   [`images`]: the files a VM is made of; [`guest`]: calls of guests; [`tickets`]: the way to the scheduler.

pub mod adopt;
pub mod clone;
pub mod create;
pub mod error;
pub mod family;
pub mod guest;
pub mod host;
pub mod images;
pub mod pool;
pub mod remove;
pub mod supervise;
pub mod table;
pub mod tickets;
pub mod touched;
pub mod vm;
pub mod warm;

use error::Error;
pub use host::{Host, Settings};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::spawn_blocking;
pub(crate) use vm::ToEnd;
pub use vm::{Status, Until, Vm};

/// How long a vmm, and the guest's agent behind it, may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after a kill the process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How long vmmd waits at its start for the scheduler.
const REGISTER_PATIENCE: Duration = Duration::from_secs(3);

/// How many vmm processes are made at the same time. Each takes a thread meanwhile.
const MAKING_AT_ONCE: usize = 16;
/// How many records of clones are written at the same time.
const WRITING_AT_ONCE: usize = 2;

/// Runs file work where it may block, inside the runtime's context.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Now, milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
